"""The eraser's one equation: score, gate, steering, strength."""

from dataclasses import replace

import pytest
import torch
from core_parts import POOLED, TOKENS, detector_of, full_eraser, normal, prompt, random_regressor, small_eraser

from unhype.hypernet.detector import Detector
from unhype.hypernet.embedding import content_key, entries_of
from unhype.hypernet.factor_cache import FactorCache

C = normal(3, POOLED, seed=1)


def test_the_score_is_that_of_the_top_concept():
    eraser = full_eraser()
    assert torch.equal(eraser.score(C), eraser.detector.scores(C).amax(1))


def test_without_a_detector_every_score_is_at_the_threshold():
    assert small_eraser().score(C).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("strength", "step", "scale"), [(0.25, 75, 1), (0.5, 150, 1), (1.0, 300, 1), (1.5, 300, 1.5)])
def test_strength_moves_along_the_trajectory_and_then_scales(strength, step, scale):
    eraser = small_eraser()
    for found, expected in zip(eraser.factors(C, strength), eraser.hypernet(C, step), strict=True):
        assert torch.equal(found.A, expected.A)
        assert torch.equal(found.B, expected.B * scale)


def test_strength_zero_generates_no_change():
    assert not any(factors.B.any() for factors in small_eraser().factors(C, 0.0))


@pytest.mark.parametrize(("bounded", "moved"), [(False, 1.5), (True, 2.0)])
def test_the_factors_are_those_of_the_steered_embedding(bounded, moved):
    """All the way to the name where the trunk is bounded, half way where it isn't."""
    c = C[:1]
    detector = Detector(c, 2 - c.square().sum(1))  # scores c itself 2
    eraser = small_eraser(detector=detector, concept_embeddings=2 * c, concepts=(("cat", "tree"),))
    eraser.hypernet.config = replace(eraser.config, bounded=bounded)
    for found, expected in zip(eraser.factors(c), eraser.hypernet(moved * c, 300), strict=True):
        torch.testing.assert_close(found.B, expected.B)
    below = replace(eraser, detector=Detector(c, 0.5 - c.square().sum(1)))
    for found, expected in zip(below.factors(c), eraser.hypernet(c, 300), strict=True):
        assert torch.equal(found.B, expected.B), "an embedding below the threshold is not moved"


def test_every_chunk_of_a_prompt_has_its_candidates():
    eraser = small_eraser(regressor=random_regressor(), concept_embeddings=C[:2])
    (entry,) = entries_of(prompt(1, tokens=2 * TOKENS))
    ((first, second),) = eraser.chunks(entry)
    assert (first.start, first.stop, second.start, second.stop) == (0, TOKENS, TOKENS, 2 * TOKENS)
    assert [len(first.candidates), len(second.candidates)] == [2, 1]
    assert torch.equal(first.candidates[0], entry["pooled_output"][0])
    assert torch.equal(second.candidates[0], eraser.regressor.candidates(entry["cross_attn"][0, TOKENS:])[0])


# The factor cache


@pytest.fixture
def cache():
    """A cache whose detector finds the first embedding of C and not the others."""
    return FactorCache(small_eraser(detector=detector_of([C[0]], [C[1], C[2]])))


def test_the_cache_holds_factors_above_the_threshold_only(cache):
    cache.fill(C)
    assert len(cache) == 3
    assert cache[content_key(C[0])].score == pytest.approx(2, abs=1e-4)
    assert cache.get(content_key(C[1])) is None
    with pytest.raises(KeyError):
        cache[content_key(C[1])]
    for found, expected in zip(cache[content_key(C[0])].factors, cache.eraser.factors(C), strict=True):
        assert torch.equal(found.A, expected.A[:1])


def test_without_the_gate_the_cache_holds_all_factors(cache):
    ungated = FactorCache(cache.eraser, gate=False)
    ungated.fill(C)
    assert all(ungated.get(content_key(c)) for c in C)


def test_h_runs_once_for_equal_embeddings_and_never_for_benign_ones(cache, monkeypatch):
    runs, forward = [], type(cache.eraser.hypernet).forward
    monkeypatch.setattr(
        type(cache.eraser.hypernet), "forward", lambda self, c, step: runs.append(len(c)) or forward(self, c, step)
    )
    cache.fill(C[1:])
    assert runs == []
    cache.fill([C[0], C[0].clone()])
    cache.fill(C[:1])
    assert runs == [1]


def test_the_cache_forgets_its_oldest_entries_and_clears(cache):
    cache.fill(normal(300, POOLED, seed=4))
    cache.trim()
    assert len(cache) == 256
    cache.clear()
    assert len(cache) == 0

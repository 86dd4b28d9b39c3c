"""The token detector: its score by hand, and what it makes of a chunk."""

from dataclasses import replace

import pytest
import torch
from core_parts import CONTEXT, POOLED, TOKENS, detector_of, normal, prompt, random_regressor, small_eraser

from unhype.hypernet.embedding import entries_of
from unhype.hypernet.files import load, save
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.token_detector import TokenDetector

C = normal(2, POOLED, seed=1)


def test_the_highest_token_counts_and_its_length_doesnt():
    detector = TokenDetector((2,), torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([[0.5, 0.0]]))
    tokens = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-30.0, -40.0]])
    unit = torch.tensor([3.0, 4.0]) / 12.5**0.5
    assert torch.equal(detector.token_scores(tokens)[1], torch.tensor([-torch.inf, -torch.inf]))
    torch.testing.assert_close(detector(tokens), torch.tensor([unit[0] + 0.5, unit[1]]))
    torch.testing.assert_close(detector(100 * tokens), detector(tokens))


def test_of_encoders_side_by_side_either_is_enough():
    detector = TokenDetector((1, 1), torch.tensor([[2.0, 3.0]]), torch.tensor([[0.0], [-1.0]]))
    scores = detector.token_scores(torch.tensor([[5.0, -5.0], [-5.0, 5.0], [0.0, 5.0]]))
    assert scores.flatten().tolist() == [2.0, 2.0, 2.0]
    assert detector.token_scores(torch.tensor([[-5.0, -5.0]])).item() == -2.0


def named(tokens, place, concepts=2):
    """A token detector that scores the token at `place` 2 for concept 1, and everything else less than 1."""
    weight = torch.zeros(concepts, CONTEXT)
    own = tokens[place] / tokens[place].square().mean().sqrt()
    weight[1] = 2 * own / own.square().sum()
    detector = TokenDetector((CONTEXT,), weight, torch.zeros(1, concepts))
    assert (detector.token_scores(tokens)[:, 1] >= 1).nonzero().flatten().tolist() == [place]
    return detector


@pytest.fixture
def entry():
    (entry,) = entries_of(prompt(1, tokens=2 * TOKENS))
    return entry


def test_a_chunk_that_names_a_concept_has_its_embedding_as_the_last_candidate(entry):
    tokens = entry["cross_attn"][0]
    detector = named(tokens, TOKENS + 3)
    eraser = small_eraser(regressor=random_regressor(), concept_embeddings=C, token_detector=detector)
    ((first, second),) = eraser.chunks(entry)
    assert [len(first.candidates), len(second.candidates)] == [2, 2]
    assert torch.equal(second.candidates[1], C[1])
    ((_, without),) = replace(eraser, token_detector=None).chunks(entry)
    assert len(without.candidates) == 1


def test_text_that_is_judged_by_its_tokens_alone_is_known(entry):
    eraser = small_eraser(concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    ((first, second),) = eraser.chunks({**entry, "pooled_output": None})
    assert [first.unknown, second.unknown] == [False, False] or first.stop == 2 * TOKENS
    wider = {**entry, "cross_attn": normal(1, TOKENS, CONTEXT + 1), "pooled_output": None}
    assert all(chunk.unknown for chunk in eraser.chunks(wider)[0])


def test_its_embedding_is_what_drives_the_hypernet(entry):
    """The pooled embedding is below the threshold, the concept's own is above it."""
    detector = detector_of([C[1]], [entry["pooled_output"][0]])
    eraser = small_eraser(detector=detector, concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    chunk = eraser.chunks(entry)[0][0]
    scores = eraser.score(torch.stack(chunk.candidates)).tolist()
    assert scores == pytest.approx([0.0, 2.0], abs=1e-5)


def test_a_file_brings_it_back(tmp_path, entry):
    detector = named(entry["cross_attn"][0], 3).half().float()
    save(small_eraser(concept_embeddings=C, token_detector=detector), tmp_path / "own.safetensors")
    found = load(tmp_path / "own.safetensors")
    assert found.record.text_encoder.token_widths == [CONTEXT]
    assert torch.equal(found.token_detector(entry["cross_attn"][0]), detector(entry["cross_attn"][0]))


def test_a_file_without_embeddings_for_it_is_refused(tmp_path, entry):
    """Without them it would detect and nothing would happen."""
    eraser = small_eraser(concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    encoder = replace(eraser.record.text_encoder, chunk=0)
    record = replace(eraser.record, text_encoder=encoder)
    save(replace(eraser, record=record, concept_embeddings=None), tmp_path / "own.safetensors")
    with pytest.raises(HypernetFileError, match="damaged"):
        load(tmp_path / "own.safetensors")

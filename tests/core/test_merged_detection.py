"""The scores of all concepts of a merged eraser at once, and the parts that they leave out."""

from dataclasses import replace

import pytest
import torch
from core_parts import POOLED, normal, random_regressor
from test_merged import BOAT, CAT, DOG, TEXTS, entry_of, part, same

from unhype.hypernet.detector import Detector
from unhype.hypernet.embedding import Chunk, chunks_of
from unhype.hypernet.merged import MergedEraser
from unhype.hypernet.merged_deltas import deltas_of
from unhype.hypernet.merged_detection import joined_detection
from unhype.hypernet.merging import merge
from unhype.hypernet.regressor import chunk_features


def chunk_of(tokens, c=None):
    """The only chunk of a prompt of these token states."""
    ((chunk,),) = chunks_of({"cross_attn": tokens.unsqueeze(0), "pooled_output": c}, "pooled", POOLED)
    return chunk


@pytest.mark.parametrize("name", TEXTS)
def test_the_parts_that_may_detect_are_those_whose_own_scores_are_near(name):
    parts = [CAT, DOG, BOAT]
    expected = {n for n, own in enumerate(parts) if any(own.score(c[None]) >= 0.99 for c in estimates(own, name))}
    assert joined_detection(parts).may_detect(chunk_of(TEXTS[name])) == expected
    assert expected == ({["cat", "dog", "boat"].index(name)} if name != "house" else set())


def estimates(own, name):
    return own.regressor.candidates(TEXTS[name])


def test_joined_scores_are_those_of_each_part_to_rounding():
    joined = joined_detection([CAT, DOG])
    f = chunk_features(TEXTS["cat"], joined.widths)
    for n, own in enumerate((CAT, DOG)):
        layer = int((own.regressor.key[:, :-1] @ f + own.regressor.key[:, -1]).argmax())
        found = joined.G[0][layer, n] @ f + joined.h[0][layer, n]
        (c,) = own.regressor.candidates(TEXTS["cat"])
        torch.testing.assert_close(found, own.detector.scores(c[None])[0, 0], rtol=1e-4, atol=1e-4)


def test_a_pooled_embedding_counts_as_well_also_beside_zeros():
    joined = joined_detection([CAT, DOG])
    (c,) = DOG.regressor.candidates(TEXTS["dog"])
    for tokens in (TEXTS["house"], torch.zeros_like(TEXTS["house"])):
        assert joined.may_detect(chunk_of(tokens, c[None])) == {1}


def test_parts_of_another_shape_look_for_themselves():
    other = replace(part("dog", seed=1), regressor=None)
    joined = joined_detection([CAT, other, BOAT])
    assert joined.parts == (0, 2)
    assert joined_detection([other]) is None
    assert not joined.fits(chunk_of(normal(4, CAT.regressor.widths[0] + 1)))


def test_a_part_that_was_left_out_gives_later_what_it_gives_alone():
    merged, alone = deltas_of(merge([CAT, DOG], "all")), deltas_of(CAT)
    for names in (("house", "dog"), ("house",), ("house", "cat", "dog"), ("cat",)):
        ((one,),), _ = merged.parts([entry_of(*names)])
        ((other,),), _ = alone.parts([entry_of(*names)])
        assert same([part for part in one if part.key[:2] == b"\x00\x00"], other), names
    assert merged._left_out.keys() == {1}
    merged.clear()
    assert not merged._left_out


def test_without_a_gate_every_part_looks():
    deltas = deltas_of(MergedEraser((CAT, DOG), "all"), gate=False)
    deltas.parts([entry_of("house")])
    assert not deltas._left_out
    assert [len(own.cache) for own in deltas.own] == [1, 1]


def test_of_several_encoders_and_layers_the_right_ones_count():
    """On random maps, of two encoders side by side and three layers that tokens may come from."""
    parts = [
        replace(
            CAT,
            regressor=random_regressor((5, 3), layers=3, seed=10 * n),
            detector=Detector(normal(4, POOLED, seed=n), torch.full((4,), -1.5)),
        )
        for n in range(6)
    ]
    joined, sizes = joined_detection(parts), set()
    for seed in range(20):
        tokens = normal(7, 8, seed=seed)
        own = [part.regressor.candidates(tokens) for part in parts]
        expected = {n for n, part in enumerate(parts) if part.score(torch.stack(own[n])).amax() >= 0.99}
        assert joined.may_detect(Chunk(0, 7, (), False, tokens)) == expected
        sizes.add(len(expected))
    assert len(sizes) > 2

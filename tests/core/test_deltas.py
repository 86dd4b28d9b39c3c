"""Which tokens of a prompt get which delta, for chunks that are detected, benign or unknown."""

import pytest
import torch
from core_parts import CONTEXT, POOLED, TOKENS, detector_scoring, normal, random_regressor, small_eraser

from unhype.hypernet.deltas import PromptDeltas
from unhype.hypernet.embedding import content_key
from unhype.hypernet.record import HypernetFileError

REGRESSOR = random_regressor(rank=POOLED)
CAT, DOG, BOAT = (normal(TOKENS, CONTEXT, seed=seed) for seed in (30, 31, 32))
EMBEDDINGS = torch.stack([REGRESSOR.candidates(tokens)[0] for tokens in (CAT, DOG, BOAT)])
ZEROS = torch.zeros(TOKENS, CONTEXT)


def eraser_of(regressor=REGRESSOR):
    """It scores CAT 2, DOG 4 and BOAT 0."""
    detector = detector_scoring(EMBEDDINGS, torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
    return small_eraser(detector=detector, regressor=regressor, concept_embeddings=EMBEDDINGS[:2])


def spans(entry, regressor=REGRESSOR, **options):
    """Start, stop and index of the embedding, CAT 0 and DOG 1, of each part of a one-row entry."""
    ((parts,),), unknown = PromptDeltas(eraser_of(regressor), **options).parts([entry])
    keys = [content_key(c) for c in EMBEDDINGS]
    return [(part.span.start, part.span.stop, keys.index(part.key)) for part in parts], unknown


def entry_of(*chunks, pooled=None):
    return {"cross_attn": torch.cat(chunks).unsqueeze(0), "pooled_output": None if pooled is None else pooled[None]}


T = TOKENS


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ((BOAT,), []),
        ((CAT,), [(0, T, 0)]),
        ((BOAT, CAT, BOAT), [(T, 2 * T, 0)]),
        ((CAT, BOAT, DOG), [(0, T, 0), (2 * T, 3 * T, 1)]),
        ((CAT, CAT, DOG), [(0, 2 * T, 0), (2 * T, 3 * T, 1)]),  # neighbours with the same factors are one part
        ((ZEROS, CAT), [(T, 2 * T, 0)]),
    ],
)
def test_each_detected_chunk_gets_its_delta_on_its_own_tokens(chunks, expected):
    assert spans(entry_of(*chunks)) == (expected, False)


def test_the_first_detected_candidate_is_chosen_unless_another_scores_much_higher():
    assert spans(entry_of(DOG, pooled=EMBEDDINGS[1]))[0] == [(0, T, 1)]
    assert spans(entry_of(CAT, pooled=EMBEDDINGS[1]))[0] == [(0, T, 1)], "the pooled embedding comes first"
    assert spans(entry_of(DOG, pooled=EMBEDDINGS[0]))[0] == [(0, T, 1)], "4 is much more than 2"
    assert spans(entry_of(CAT, pooled=EMBEDDINGS[2]))[0] == [(0, T, 0)], "the pooled embedding is below the threshold"


def test_joint_layers_get_the_delta_of_the_top_chunk_on_the_whole_prompt():
    assert spans(entry_of(BOAT, DOG, CAT), joint=True)[0] == [(0, 3 * T, 1)]
    assert spans(entry_of(BOAT, BOAT), joint=True)[0] == []


def test_under_base_unknown_text_follows_the_chunk_before_it():
    assert spans(entry_of(CAT, BOAT, pooled=EMBEDDINGS[0]), regressor=None) == ([(0, 2 * T, 0)], True)
    assert spans(entry_of(BOAT, CAT, pooled=EMBEDDINGS[2]), regressor=None) == ([], True)
    assert spans(entry_of(CAT), regressor=None) == ([], True)


def test_under_strict_unknown_text_is_erased_as_the_concept_with_the_highest_score():
    found, unknown = spans(entry_of(BOAT, CAT, pooled=EMBEDDINGS[2]), regressor=None, unknown="strict")
    assert (found, unknown) == ([(T, 2 * T, 1)], True)


def test_strict_needs_concept_embeddings():
    with pytest.raises(HypernetFileError, match="Choose 'base', or train one"):
        PromptDeltas(small_eraser(), unknown="strict")


def test_the_gate_may_be_off():
    assert spans(entry_of(BOAT), gate=False)[0] == [(0, T, 2)]


def test_every_row_of_a_batch_has_its_own_parts():
    entry = {"cross_attn": torch.stack([BOAT, CAT]), "pooled_output": EMBEDDINGS[[2, 0]]}
    (rows,), unknown = PromptDeltas(eraser_of()).parts([entry])
    assert [len(parts) for parts in rows] == [0, 1]
    assert not unknown

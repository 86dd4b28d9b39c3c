"""The token detector: its score by hand, and what it makes of a chunk."""

from dataclasses import replace

import pytest
import torch
from core_parts import (
    CONTEXT,
    POOLED,
    TOKENS,
    detector_of,
    detector_scoring,
    normal,
    prompt,
    random_regressor,
    small_eraser,
)

from unhype.hypernet.deltas import PromptDeltas
from unhype.hypernet.embedding import content_key, entries_of
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


def test_of_a_name_of_two_tokens_both_count():
    detector = TokenDetector((2,), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.zeros(1, 2), (2, 1))
    tokens = torch.tensor([[5.0, 0.0], [0.0, 7.0], [0.0, 3.0], [0.0, 0.0]])
    root = 2**0.5
    expected = torch.tensor([[root, 0.0], [2.0, root], [root, root], [-torch.inf, -torch.inf]])
    torch.testing.assert_close(detector.token_scores(tokens), expected)


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


def test_a_chunk_names_its_own_concepts(entry):
    detector = named(entry["cross_attn"][0], TOKENS + 3)
    eraser = small_eraser(regressor=random_regressor(), concept_embeddings=C, token_detector=detector)
    assert [chunk.named for chunk in eraser.chunks(entry)[0]] == [(), (1,)]
    without = replace(eraser, token_detector=None).chunks(entry)[0]
    assert [chunk.named for chunk in without] == [(), ()]


def test_text_that_is_scored_by_its_tokens_alone_is_known(entry):
    eraser = small_eraser(concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    assert not any(chunk.unknown for chunk in eraser.chunks({**entry, "pooled_output": None})[0])
    wider = {**entry, "cross_attn": normal(1, TOKENS, CONTEXT + 1), "pooled_output": None}
    assert all(chunk.unknown for chunk in eraser.chunks(wider)[0])


def test_the_embedding_of_what_is_named_drives_the_hypernet(entry):
    """The pooled embedding is below the threshold, the concept's own is above it."""
    detector = detector_of([C[1]], [entry["pooled_output"][0]])
    eraser = small_eraser(detector=detector, concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    deltas = PromptDeltas(eraser)
    (((part,),),), unknown = deltas.parts([entry])
    assert part.key == content_key(C[1])
    assert not unknown
    (((),),), _ = PromptDeltas(replace(eraser, token_detector=None)).parts([entry])


def both_named(tokens):
    """A token detector that scores token 2 for concept 0 and token 5 for concept 1."""
    own = tokens[[2, 5]] / tokens[[2, 5]].square().mean(1, keepdim=True).sqrt()
    detector = TokenDetector((CONTEXT,), 2 * own / own.square().sum(1, keepdim=True), torch.zeros(1, 2))
    assert detector.named(tokens) == (0, 1)
    return detector


@pytest.mark.parametrize("joint", [False, True])
def test_two_named_concepts_get_both_deltas(entry, joint):
    entry = {**entry, "cross_attn": entry["cross_attn"][:, :TOKENS]}
    detector = detector_of([*C], [entry["pooled_output"][0]])
    eraser = small_eraser(detector=detector, concept_embeddings=C, token_detector=both_named(entry["cross_attn"][0]))
    ((parts,),), _ = PromptDeltas(eraser, joint=joint).parts([entry])
    assert [part.key for part in parts] == [content_key(C[0]), content_key(C[1])]
    assert {part.span for part in parts} == {(0, TOKENS, TOKENS)}


def test_a_named_concept_in_neighbouring_chunks_is_one_part(entry):
    one = entry["cross_attn"][:, :TOKENS]
    entry = {**entry, "cross_attn": torch.cat([one, one], 1), "pooled_output": None}
    eraser = small_eraser(
        detector=detector_of([*C], []), concept_embeddings=C, token_detector=both_named(one[0]), regressor=None
    )
    eraser = replace(
        eraser, record=replace(eraser.record, text_encoder=replace(eraser.record.text_encoder, chunk=TOKENS))
    )
    ((parts,),), _ = PromptDeltas(eraser).parts([entry])
    assert [part.span for part in parts] == [(0, 2 * TOKENS, 2 * TOKENS)] * 2


@pytest.mark.parametrize("joint", [False, True])
def test_what_c_is_detected_for_is_not_added_again(entry, joint):
    """A synonym that only c shows, beside a name that only a token shows: neither may stay."""
    entry = {**entry, "cross_attn": entry["cross_attn"][:, :TOKENS]}
    pooled = entry["pooled_output"][0]
    tokens = named(entry["cross_attn"][0], 3)

    def keys(*scores):
        given = torch.tensor([[2.0, 0.0], [0.0, 2.0], scores])
        detector = detector_scoring(torch.stack([C[0], C[1], pooled]), given)
        eraser = small_eraser(detector=detector, concept_embeddings=C, token_detector=tokens)
        ((parts,),), _ = PromptDeltas(eraser, joint=joint).parts([entry])
        return [part.key for part in parts]

    assert keys(1.5, 0.0) == [content_key(pooled), content_key(C[1])]
    assert keys(0.0, 1.5) == [content_key(pooled)]
    assert keys(1.5, 1.2) == [content_key(pooled)]
    assert keys(0.5, 0.5) == [content_key(C[1])]


def test_a_named_concept_is_erased_whatever_c_says_of_it(entry):
    """A file whose own embedding of a concept scores below 1."""
    detector = detector_of([], [C[1], entry["pooled_output"][0]])
    eraser = small_eraser(detector=detector, concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    ((parts,),), _ = PromptDeltas(eraser).parts([entry])
    assert [part.key for part in parts] == [content_key(C[1])]


def test_without_the_gate_a_named_concept_of_c_is_not_added_again(entry):
    pooled = entry["pooled_output"][0]
    detector = detector_scoring(torch.stack([C[0], C[1], pooled]), torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.8]]))
    eraser = small_eraser(detector=detector, concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    ((parts,),), _ = PromptDeltas(eraser, gate=False).parts([entry])
    assert [part.key for part in parts] == [content_key(pooled)]


def test_joint_parts_outlive_the_cache(entry):
    entry = {**entry, "cross_attn": entry["cross_attn"][:, :TOKENS]}
    deltas = PromptDeltas(small_eraser(detector=detector_of([*C], []), concept_embeddings=C), gate=False, joint=True)
    ((parts,),), _ = deltas.parts([entry])
    deltas.cache.clear()
    assert [part.key for part in deltas.merged([*parts, *parts])] == [parts[0].key]


def test_a_file_brings_it_back(tmp_path, entry):
    one = named(entry["cross_attn"][0], 3).half().float()
    detector = TokenDetector(one.widths, one.weight, one.bias, (2, 1))
    save(small_eraser(concept_embeddings=C, token_detector=detector), tmp_path / "own.safetensors")
    found = load(tmp_path / "own.safetensors")
    assert found.record.text_encoder.token_widths == [CONTEXT]
    assert found.token_detector.spans == (2, 1)
    assert torch.equal(found.token_detector(entry["cross_attn"][0]), detector(entry["cross_attn"][0]))


def test_a_file_without_embeddings_for_it_is_refused(tmp_path, entry):
    """Without them it would detect and nothing would happen."""
    eraser = small_eraser(concept_embeddings=C, token_detector=named(entry["cross_attn"][0], 3))
    encoder = replace(eraser.record.text_encoder, chunk=0)
    record = replace(eraser.record, text_encoder=encoder)
    save(replace(eraser, record=record, concept_embeddings=None), tmp_path / "own.safetensors")
    with pytest.raises(HypernetFileError, match="damaged"):
        load(tmp_path / "own.safetensors")


def test_of_each_token_the_top_concept_is_named():
    detector = TokenDetector((2,), torch.tensor([[3.0, 0.0], [1.5, 0.0], [0.0, 3.0]]), torch.zeros(1, 3))
    assert detector.named(torch.tensor([[5.0, 0.0]])) == (0,), "1.5 is above the threshold as well, but not the top"
    assert detector.named(torch.tensor([[5.0, 0.0], [-1.0, -1.0], [0.0, 2.0]])) == (0, 2)
    assert detector.named(torch.tensor([[0.0, 0.0], [-1.0, 0.0]])) == ()

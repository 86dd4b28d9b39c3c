"""Merged erasers: which part answers what, bit for bit as it would alone, and their files."""

import json
from dataclasses import replace

import pytest
import torch
from core_parts import (
    CONTEXT,
    POOLED,
    TOKENS,
    detector_scoring,
    full_eraser,
    normal,
    random_regressor,
    same_tensors,
    small_eraser,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unhype.hypernet.files import load, metadata_of, same_eraser, save, tensors_of
from unhype.hypernet.merged import MergedEraser
from unhype.hypernet.merged_deltas import deltas_of, joined
from unhype.hypernet.merging import merge
from unhype.hypernet.record import FORMAT, HypernetFileError, TrainingRun
from unhype.hypernet.rows import RowTable
from unhype.hypernet.token_detector import TokenDetector, unit_states

NAMES = ("cat", "dog", "boat")
TEXTS = {name: normal(TOKENS, CONTEXT, seed=30 + number) for number, name in enumerate((*NAMES, "house"))}


def part(name, scores=None, sees=True, seed=0, rank=2):
    """An eraser of one concept. scores: of its detector for the texts, by default 2 for its own.

    sees: whether it has a token detector, which scores the first token of its text 2.
    """
    regressor = random_regressor(rank=POOLED, seed=50 + seed)
    c = torch.stack([regressor.candidates(tokens)[0] for tokens in TEXTS.values()])
    scores = {name: 2.0, **(scores or {})}
    wanted = torch.tensor([[scores.get(text, 0.0)] for text in TEXTS])
    first = unit_states(TEXTS[name][:1])
    tokens = TokenDetector((CONTEXT,), (2 * first / first.square().sum()).half().float(), torch.zeros(1, 1))
    made = small_eraser(
        ((name, "tree"),),
        detector_scoring(c, wanted).half().float(),
        regressor,
        c[[list(TEXTS).index(name)]].half().float(),
        tokens if sees else None,
        seed=seed,
        rank=rank,
    )
    return replace(made, name=name)


CAT, DOG, BOAT = (part(name, seed=number) for number, name in enumerate(NAMES))


def entry_of(*names):
    return {"cross_attn": torch.cat([TEXTS[name] for name in names]).unsqueeze(0), "pooled_output": None}


def found(eraser, *names, **options):
    """The parts of a prompt of these texts, a chunk each."""
    ((parts,),), _ = deltas_of(eraser, **options).parts([entry_of(*names)])
    return parts


def same(merged, alone):
    """Whether two lists of parts hold the same deltas on the same tokens, bit for bit."""
    return len(merged) == len(alone) and all(
        one.span == other.span
        and one.key.endswith(other.key)
        and all(
            torch.equal(a.A, b.A) and torch.equal(a.B, b.B) for a, b in zip(one.factors, other.factors, strict=True)
        )
        for one, other in zip(merged, alone, strict=True)
    )


@pytest.mark.parametrize("own", [CAT, DOG, BOAT], ids=NAMES)
@pytest.mark.parametrize("options", [{}, {"joint": True}, {"strength": 1.5}, {"strength": 0.5}])
def test_a_prompt_of_one_concept_is_answered_by_its_part_as_it_would_be_alone(own, options):
    merged = merge([CAT, DOG, BOAT], "all")
    assert same(found(merged, own.name, **options), found(own, own.name, **options))
    assert same(found(merged, "house", own.name, "house", **options), found(own, "house", own.name, "house", **options))
    assert found(merged, "house", "house", **options) == ()


def test_of_several_concepts_each_is_answered_by_its_own_part():
    parts = found(merge([CAT, DOG, BOAT], "all"), "cat", "house", "dog")
    alone = [*found(CAT, "cat", "house", "dog"), *found(DOG, "cat", "house", "dog")]
    assert same(parts, alone)
    spans = [(part.span.start, part.span.stop) for part in parts]
    assert spans == [(0, TOKENS), (2 * TOKENS, 3 * TOKENS)]


def test_two_concepts_in_one_chunk_are_both_answered():
    tokens = torch.cat([TEXTS["cat"][:1], TEXTS["dog"][:1], TEXTS["house"][2:]])
    entry = {"cross_attn": tokens.unsqueeze(0), "pooled_output": None}
    ((parts,),), _ = deltas_of(merge([CAT, DOG], "all")).parts([entry])
    alone = [deltas_of(own).parts([entry])[0][0][0] for own in (CAT, DOG)]
    assert all(len(own) == 1 for own in alone)
    assert same(parts, [*alone[0], *alone[1]])
    table = RowTable()
    batch = table.stacked((table.number(parts),), torch.device("cpu"))
    assert batch.rows.tolist() == [0, 0]


def test_where_the_words_are_there_what_another_part_detects_in_c_counts_for_nothing():
    alarmed = part("dog", {"cat": 5.0}, seed=1)
    assert found(alarmed, "cat")
    assert same(found(merge([alarmed, CAT], "all"), "cat"), found(CAT, "cat"))


def test_without_a_name_the_part_of_the_top_concept_answers():
    weak, strong = part("cat", {"boat": 2.0}), part("dog", {"boat": 3.0}, seed=1)
    assert same(found(merge([weak, strong], "all"), "boat"), found(strong, "boat"))


def test_a_part_without_a_token_detector_answers_whatever_it_detects():
    blind = part("dog", {"cat": 1.5}, sees=False, seed=1)
    parts = found(merge([CAT, blind], "all"), "cat")
    assert same(parts, [*found(CAT, "cat"), *found(blind, "cat")])


def test_a_part_whose_token_detector_lacks_a_name_answers_whatever_it_detects():
    blind = part("dog", {"cat": 1.5}, seed=1)
    nameless = TokenDetector((CONTEXT,), torch.zeros(1, CONTEXT), torch.full((1, 1), -1.0))
    blind = replace(blind, token_detector=nameless)
    assert same(found(merge([CAT, blind], "all"), "cat"), [*found(CAT, "cat"), *found(blind, "cat")])


def test_parts_of_different_ranks_stand_in_one_batch():
    wide = part("dog", seed=1, rank=3)
    parts = found(merge([CAT, wide], "all"), "cat", "dog")
    table = RowTable()
    batch = table.stacked((table.number(parts),), torch.device("cpu"))
    x = normal(1, 2 * TOKENS, 6)
    for layer, factors in enumerate(batch.layers):
        stacked = factors.B @ factors.A
        for n, own in enumerate(parts):
            torch.testing.assert_close(stacked[n], (own.factors[layer].B @ own.factors[layer].A)[0])
        assert (stacked @ x.mT).isfinite().all()


def test_text_that_cant_be_read_is_left_alone_or_erased_as_the_top_concept():
    blind = [replace(own, regressor=None, token_detector=None) for own in (CAT, part("dog", {"dog": 4.0}, seed=1))]
    merged = merge(blind, "all")
    base, strict = deltas_of(merged), deltas_of(merged, unknown="strict")
    assert base.parts([entry_of("cat")]) == ([[()]], True)
    assert "run" in base.unknown_message()
    ((parts,),), unknown = strict.parts([entry_of("cat")])
    alone = deltas_of(blind[1], unknown="strict")
    assert unknown
    assert same(parts, alone.parts([entry_of("cat")])[0][0][0])
    assert same(strict.unreadable(), alone.unreadable())
    assert base.unreadable() == ()


def test_a_second_prompt_and_a_cleared_cache_change_nothing():
    deltas = deltas_of(merge([CAT, DOG], "all"))
    ((first,),), _ = deltas.parts([entry_of("cat")])
    deltas.parts([entry_of("dog"), entry_of("house")])
    deltas.clear()
    ((second,),), _ = deltas.parts([entry_of("cat")])
    assert same(first, second)


def test_joining_two_is_merging_their_parts_and_keeps_the_stricter_values():
    both = joined(deltas_of(CAT, 0.5), deltas_of(merge([DOG, CAT], "more"), 1.0))
    assert [own.eraser.name for own in both.own] == ["cat", "dog"]
    assert [own.strength for own in both.own] == [1.0, 1.0]
    ((parts,),), _ = both.parts([entry_of("cat", "dog")])
    assert same(parts, found(merge([CAT, DOG], "all"), "cat", "dog"))


def test_the_part_that_answers_an_embedding_is_the_top_concepts():
    merged = merge([CAT, DOG], "all")
    (c,) = DOG.regressor.candidates(TEXTS["dog"])
    scores = torch.stack([own.score(c[None]) for own in (CAT, DOG)])
    assert merged.answering(c[None]) is (CAT, DOG)[int(scores.argmax())]
    assert torch.equal(merged.score(c[None]), scores.amax(0))


# Merging


def test_merged_ones_merge_again_and_a_part_counts_once():
    again = merge([merge([CAT, DOG], "two"), DOG, BOAT], "three")
    assert [own.name for own in again.parts] == ["cat", "dog", "boat"]
    assert again.record.concepts == (("cat", "tree"), ("dog", "tree"), ("boat", "tree"))
    assert again.record.summary() == "cat -> tree\ndog -> tree\nboat -> tree"


def test_the_preserve_lists_are_joined_without_what_is_erased():
    lists = [replace(own.record, training=TrainingRun(preserve=["Dog", own.name, "fox"])) for own in (CAT, DOG)]
    merged = merge([replace(own, record=record) for own, record in zip((CAT, DOG), lists, strict=True)], "both")
    assert merged.record.training.preserve == ["fox"]


def _changed(field, **values):
    record = DOG.record
    return replace(DOG, record=replace(record, **{field: replace(getattr(record, field), **values)}))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(DOG, record=replace(DOG.record, family="sdxl")), "the second on Stable Diffusion XL"),
        (_changed("base", weight_std=[0.6] * 3), "their weights differ"),
        (_changed("base", loras="abc"), "they carry different LoRAs"),
        (_changed("text_encoder", chunk=2 * TOKENS), "their text encoders differ"),
        (_changed("text_encoder", token_widths=[CONTEXT, 1]), "their text encoders differ"),
        (replace(DOG, hypernet=small_eraser(layers=full_eraser().config.layers[:2]).hypernet), "number or size"),
    ],
)
def test_erasers_of_different_bases_are_refused_by_name(other, words):
    with pytest.raises(HypernetFileError, match=f"'cat' and 'dog' can't be merged, .*{words}"):
        merge([CAT, other], "both")


def test_imported_ones_have_no_detector_and_are_refused():
    with pytest.raises(HypernetFileError, match="'small' was imported from the paper's authors"):
        merge([CAT, small_eraser()], "both")


# Files


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "merged.safetensors"
    save(merge([CAT, DOG, part("boat", sees=False, seed=2, rank=3)], "any"), path)
    return path


def test_a_merged_file_comes_back_as_it_was(written):
    merged = load(written)
    assert isinstance(merged, MergedEraser)
    assert merged.name == "merged"
    assert [own.name for own in merged.parts] == ["cat", "dog", "boat"]
    assert same_eraser(merged.parts[0], CAT)
    assert merged.record.concepts == (("cat", "tree"), ("dog", "tree"), ("boat", "tree"))
    assert same(found(merged, "dog"), found(DOG, "dog"))
    again = written.with_name("again.safetensors")
    save(merged, again)
    assert same_tensors(tensors_of(load(again)), tensors_of(merged))
    assert same_eraser(load(again), merged)
    assert not same_eraser(merged, CAT)


def test_a_merged_file_shows_its_concepts_and_its_format(written):
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    assert metadata["unhype.format"] == "5"
    assert metadata["modelspec.title"] == "UnHype: cat, dog, boat"
    assert "unhype.config" not in metadata
    assert metadata_of(CAT)["unhype.format"] == FORMAT, "files of one part have none of their own"


def _without_detector(tensors, metadata):
    del tensors["1.detector.weight"]


def _no_parts(tensors, metadata):
    metadata["unhype.parts"] = "[]"


def _no_names(tensors, metadata):
    metadata["unhype.parts"] = "[{}]"


def _other_base(tensors, metadata):
    parts = json.loads(metadata["unhype.parts"])
    record = json.loads(parts[1]["unhype.record"])
    record["base"]["weight_std"] = [1.0] * 3
    metadata["unhype.parts"] = json.dumps([parts[0], {**parts[1], "unhype.record": json.dumps(record)}, parts[2]])


def _not_a_list(tensors, metadata):
    metadata["unhype.parts"] = '{"a": 1}'


@pytest.mark.parametrize("damage", [_without_detector, _no_parts, _no_names, _other_base, _not_a_list])
def test_a_damaged_merged_file_is_refused(written, damage):
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(written)
    damage(tensors, metadata)
    save_file(tensors, written, metadata)
    with pytest.raises(HypernetFileError):
        load(written)

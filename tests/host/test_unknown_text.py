"""Text without a candidate embedding, under both policies of unknown_prompts."""

import logging
from dataclasses import replace

import pytest
import torch
from chunks import NEGATIVE, check, concat, embedding_of, is_base, run, text, with_another_prompt, without_regressor
from tiny import POOLED, TOKENS, sample

from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError, TextEncoder

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture
def pooled_only(texts):
    return without_regressor(texts.eraser)


FOREIGN = [[text(50)[0][0], {"pooled_output": torch.ones(1, POOLED + 8)}]]


@pytest.mark.parametrize(
    "values",
    [FOREIGN[0][1], {}, {"pooled_output": None}, {"pooled_output": torch.zeros(1, POOLED)}],
    ids=["another encoder's", "missing", "none", "zeroed"],
)
def test_base_leaves_unknown_text_alone_and_warns_once(model, pooled_only, caplog, values):
    positive = [[FOREIGN[0][0], values]]
    with caplog.at_level(logging.INFO):
        assert is_base(model, pooled_only, positive + positive)
    assert caplog.text.count("carries no embedding that fits hypernet 'tiny'; it runs the model unchanged") == 1


def test_unknown_text_that_a_node_encodes_in_every_step_warns_once(model, texts, pooled_only, caplog):
    with caplog.at_level(logging.INFO):
        sample(with_another_prompt(apply_erasure(model, pooled_only), FOREIGN), texts.boat, NEGATIVE, steps=3)
    assert caplog.text.count("it runs the model unchanged") == 1


def test_strict_erases_unknown_text_as_the_concept_with_the_highest_score(model, texts, pooled_only, caplog):
    with caplog.at_level(logging.INFO):
        calls = run(model, pooled_only, FOREIGN, unknown="strict")
    dog = texts.eraser.concept_embeddings[1]
    check(model, pooled_only, calls, (FOREIGN, [(0, TOKENS, dog)]))
    assert caplog.text.count("it is treated as erased (unknown_prompts: strict)") == 1


def test_strict_changes_nothing_for_known_text(model, texts):
    assert is_base(model, texts.eraser, texts.boat, unknown="strict")
    assert is_base(model, texts.eraser, concat(texts.boat, texts.lamp), unknown="strict")


def test_without_a_regressor_later_chunks_follow_the_first_or_are_erased(model, texts, pooled_only):
    positive = concat(texts.dog, texts.boat)
    spans = [(0, 2 * TOKENS, embedding_of(texts.dog))]
    check(model, pooled_only, run(model, pooled_only, positive), (positive, spans))
    positive = concat(texts.boat, texts.cat)
    assert is_base(model, pooled_only, positive)
    spans = [(TOKENS, 2 * TOKENS, texts.eraser.concept_embeddings[1])]
    check(model, pooled_only, run(model, pooled_only, positive, unknown="strict"), (positive, spans))


def test_strict_needs_a_file_with_concept_embeddings(model, texts):
    old = replace(texts.eraser, regressor=None, concept_embeddings=None)
    with pytest.raises(HypernetFileError, match=r"was imported.*Choose 'base', or train one"):
        apply_erasure(model, old, unknown="strict")


def test_a_file_that_knows_no_text_encoder_takes_the_whole_prompt_as_one_chunk(model, texts):
    record = replace(texts.eraser.record, text_encoder=TextEncoder())
    imported = replace(texts.eraser, regressor=None, concept_embeddings=None, record=record)
    positive = concat(texts.cat, texts.boat)
    spans = [(0, 2 * TOKENS, embedding_of(texts.cat))]
    check(model, imported, run(model, imported, positive), (positive, spans))
    assert is_base(model, imported, concat(texts.boat, texts.cat))

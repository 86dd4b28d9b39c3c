"""Every way a prompt reaches the sampler: each chunk is detected by itself, and its tokens alone get its delta."""

import logging
from dataclasses import replace

import pytest
import torch
from chunks import (
    NEGATIVE,
    check,
    concat,
    embedding_of,
    estimate,
    is_base,
    random_regressor,
    run,
    whole,
    with_another_prompt,
    without_regressor,
)
from model_parts import MODEL_PARTS
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, POOLED, TOKENS, detector_of, noted_calls, sample, seeded, tiny_eraser, tiny_model

import nodes
from unhype.hypernet.deltas import PromptDeltas
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import TextEncoder
from unhype.hypernet.rows import SpanMasks

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


# Plain prompts


def test_a_plain_prompt_gets_the_delta_of_its_pooled_embedding(model, texts):
    published = without_regressor(texts.eraser)
    for prompt in (texts.cat, texts.boat):
        ours, theirs = run(model, texts.eraser, prompt), run(model, published, prompt)
        assert all(torch.equal(a.output, b.output) for a, b in zip(ours, theirs, strict=True))
    check(model, texts.eraser, run(model, texts.eraser, texts.cat), whole(texts.cat))


def test_a_plain_prompt_needs_no_mask(model, texts, monkeypatch):
    def refuse(*_):
        raise AssertionError("no mask is needed")

    monkeypatch.setattr(SpanMasks, "__init__", refuse)
    run(model, texts.eraser, texts.cat)
    with pytest.raises(AssertionError):
        run(model, texts.eraser, concat(texts.boat, texts.cat))


# Chunks


@pytest.mark.parametrize("order", ["boat cat", "cat boat", "boat lamp cat", "boat cat lamp"])
def test_one_detected_chunk_is_enough_and_gets_the_delta_alone(model, texts, order):
    chunks = [getattr(texts, name) for name in order.split()]
    positive = concat(*chunks)
    start = order.split().index("cat") * TOKENS
    spans = [(start, start + TOKENS, embedding_of(texts.cat))]
    check(model, texts.eraser, run(model, texts.eraser, positive), (positive, spans))


def test_two_detected_chunks_each_get_their_own(model, texts):
    positive = concat(texts.cat, texts.boat, texts.dog)
    spans = [
        (0, TOKENS, embedding_of(texts.cat)),
        (2 * TOKENS, 3 * TOKENS, embedding_of(texts.dog)),
    ]
    check(model, texts.eraser, run(model, texts.eraser, positive), (positive, spans))


def test_prompts_of_several_lengths_in_one_batch_keep_their_chunks(model, texts):
    """The host repeats tokens until all prompts of a batch are of one length: here 16, 8 and 24 make 48."""
    two, three = concat(texts.boat, texts.cat), concat(texts.dog, texts.boat, texts.lamp)
    calls = run(model, texts.eraser, two + texts.cat + three)
    assert {call.context.shape[1] for call in calls} == {6 * TOKENS}
    check(
        model,
        texts.eraser,
        calls,
        (two, [(TOKENS, 2 * TOKENS, embedding_of(texts.cat))]),
        whole(texts.cat),
        (three, [(0, TOKENS, embedding_of(texts.dog))]),
    )


@pytest.mark.parametrize("above", [True, False])
def test_tokens_appended_by_other_models_are_a_short_chunk(model, texts, above):
    def detected(tokens):
        return bool(texts.eraser.score(estimate(tokens[0]).unsqueeze(0)) >= 1)

    drawn = (torch.randn(1, 3, CONTEXT, generator=seeded(seed)) for seed in range(60, 90))
    appended = next(tokens for tokens in drawn if detected(tokens) == above)
    positive = [[torch.cat([part, appended], 1), values] for part, values in texts.boat]
    spans = [(positive, [(TOKENS, TOKENS + 3, estimate(appended[0]))])] if above else []
    check(model, texts.eraser, run(model, texts.eraser, positive), *spans)


def test_chunks_survive_tiling_and_batches(model, texts):
    long = concat(texts.boat, texts.cat)
    with noted_calls(MODEL_PARTS["tiles"](apply_erasure(model, texts.eraser))) as (clone, calls):
        sample(clone, long + texts.dog, NEGATIVE, pictures=3, steps=2)
    assert {len(call.x) for call in calls} == {18}
    spans = [(TOKENS, 2 * TOKENS, embedding_of(texts.cat))]
    check(model, texts.eraser, calls, (long, spans), whole(texts.dog))


# What nodes do to conditionings


def test_combined_regional_and_timed_prompts_keep_their_chunks(model, texts):
    long = concat(texts.boat, texts.cat)
    spans = [(TOKENS, 2 * TOKENS, embedding_of(texts.cat))]
    (area,) = nodes.ConditioningSetArea().append(long, 32, 64, 0, 0, 1.0)
    (masked,) = nodes.ConditioningSetMask().append(long, torch.ones(1, 64, 64), "default", 1.0)
    (late,) = nodes.ConditioningSetTimestepRange().set_range(long, 0.4, 1.0)
    for positive in (nodes.ConditioningCombine().combine(texts.boat, long)[0], texts.boat + area, masked):
        check(model, texts.eraser, run(model, texts.eraser, positive), (long, spans))
    check(model, texts.eraser, run(model, texts.eraser, texts.boat + late), (long, spans))


def test_an_average_is_scored_by_its_mixed_embeddings(model, texts):
    (mixed,) = nodes.ConditioningAverage().addWeighted(texts.dog, texts.boat, 0.9)
    candidates = mixed[0][1]["pooled_output"][0], embedding_of(mixed)
    scores = texts.eraser.score(torch.stack(candidates))
    assert scores[0] >= 1
    chosen = candidates[scores[1] > 1.5 * scores[0]]
    check(model, texts.eraser, run(model, texts.eraser, mixed), (mixed, [(0, TOKENS, chosen)]))


def test_of_two_candidates_one_with_a_much_higher_score_is_chosen(model, texts):
    """As for an average whose pooled embedding became weak though its tokens still name the concept."""
    weak = embedding_of(texts.dog) * 0.3
    positive = [[texts.dog[0][0], {"pooled_output": weak.unsqueeze(0)}]]
    assert texts.eraser.score(weak.unsqueeze(0)).item() == pytest.approx(1.2, abs=0.01)
    check(model, texts.eraser, run(model, texts.eraser, positive), whole(positive))


@pytest.mark.parametrize("pooled", ["another's", "zeroed", "none", "missing", "another width", "scaled down"])
def test_tokens_are_scored_whatever_the_pooled_embedding_is(model, texts, pooled):
    tokens, values = texts.cat[0]
    changed = {
        "another's": texts.boat[0][1],
        "zeroed": {"pooled_output": torch.zeros(1, POOLED)},
        "none": {"pooled_output": None},
        "missing": {},
        "another width": {"pooled_output": torch.ones(1, POOLED + 8)},
        "scaled down": {"pooled_output": values["pooled_output"] * 0.01},
    }[pooled]
    if pooled == "scaled down":
        assert texts.eraser.score(changed["pooled_output"]) < 1
    positive = [[tokens, changed]]
    check(model, texts.eraser, run(model, texts.eraser, positive), whole(positive))


def test_a_conditioning_kept_in_a_file_is_detected(model, texts, tmp_path):
    save_file({"tokens": texts.cat[0][0].half().contiguous()}, str(tmp_path / "kept.safetensors"))
    positive = [[load_file(str(tmp_path / "kept.safetensors"))["tokens"].float(), {}]]
    check(model, texts.eraser, run(model, texts.eraser, positive), whole(positive))


def test_a_batch_of_prompts_is_scored_row_by_row(model, texts):
    """Schedules for animation give each frame its own row."""
    rows = texts.boat, texts.cat, texts.dog
    positive = [
        [
            torch.cat([row[0][0] for row in rows]),
            {"pooled_output": torch.cat([row[0][1]["pooled_output"] for row in rows])},
        ]
    ]
    calls = run(model, texts.eraser, positive, pictures=3)
    check(model, texts.eraser, calls, whole(texts.cat), whole(texts.dog))
    assert all(call.reads(row).sum() == 1 for call in calls for row in rows)


def test_either_of_two_encoders_side_by_side_is_enough():
    """SDXL's tokens hold CLIP-L's states beside CLIP-G's, and the pooled vector is G's."""
    model, widths = tiny_model("sdxl"), (12, CONTEXT - 12)
    both = random_regressor(widths)
    named, plain = (torch.randn(TOKENS, CONTEXT, generator=seeded(seed)) for seed in (100, 101))
    above, *below = (both.candidates(named)[0], both.candidates(named)[1], *both.candidates(plain))
    base = tiny_eraser(model, detector=detector_of([above], below))
    record = replace(base.record, text_encoder=TextEncoder(TOKENS, list(widths), 1, POOLED))
    eraser = replace(base, record=record, regressor=both)
    mixed = torch.cat([named[:, :12], plain[:, 12:]], 1)
    pooled = {"pooled_output": both.candidates(plain)[1].unsqueeze(0)}
    assert is_base(model, eraser, [[plain.unsqueeze(0), pooled]])
    assert not is_base(model, eraser, [[mixed.unsqueeze(0), pooled]])


def test_a_zeroed_conditioning_is_the_base_without_a_warning(model, texts, caplog):
    (nothing,) = nodes.ConditioningZeroOut().zero_out(texts.cat)
    with caplog.at_level(logging.INFO):
        assert is_base(model, texts.eraser, nothing, unknown="strict")
    assert "carries no embedding" not in caplog.text


def test_later_chunks_of_a_prompt_that_a_node_encodes_while_sampling_are_detected(model, texts):
    long = concat(texts.boat, texts.cat)
    with noted_calls(with_another_prompt(apply_erasure(model, texts.eraser), long)) as (clone, calls):
        sample(clone, texts.boat, NEGATIVE, steps=2)
    assert sum(int(call.reads(long).sum()) for call in calls) == 4
    check(model, texts.eraser, calls, (long, [(TOKENS, 2 * TOKENS, embedding_of(texts.cat))]))


def test_joint_layers_give_the_whole_prompt_the_delta_of_its_top_chunk(texts):
    def parts(conditioning):
        entry = {"cross_attn": conditioning[0][0], **conditioning[0][1]}
        ((found,),), _ = PromptDeltas(texts.eraser, joint=True).parts([entry])
        return [(*part.span, part.key) for part in found]

    key = embedding_of(texts.dog).numpy().tobytes()
    assert parts(concat(texts.boat, texts.dog, texts.lamp)) == [(0, 3 * TOKENS, 3 * TOKENS, key)]
    assert parts(concat(texts.boat, texts.lamp)) == []
    # As from two texts of which one gives the pooled vector: the tokens name the concept.
    assert parts([[texts.dog[0][0], texts.boat[0][1]]]) == [(0, TOKENS, TOKENS, key)]

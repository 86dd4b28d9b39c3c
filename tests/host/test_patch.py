"""Erasure on ComfyUI's own samplers: each row of a batch its prompt's delta, all other rows bit for bit the base."""

from dataclasses import replace

import pytest
import torch
from deltas import NEGATIVE, check, closely, lora_of, rows_of, run
from tiny import FAMILIES, detector_of, embedding, merged, prompt, replay, sample, tiny_eraser, tiny_model

import nodes
from unhype.hypernet.detector import Detector
from unhype.hypernet.patch import apply_erasure

A, B = prompt(1), prompt(2)

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def eraser():
    return tiny_eraser(tiny_model())


# One delta a prompt


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pictures", [1, 3])
def test_two_positives_and_a_negative_in_one_batch_each_get_their_own(family, pictures):
    model = tiny_model(family)
    eraser, before = tiny_eraser(model), sample(model, A + B, NEGATIVE, steps=1)
    calls = run(model, eraser, A + B, pictures=pictures, cfg=7.0)
    assert rows_of(calls, A, B, NEGATIVE) == [[pictures] * 3] * 2, "all in one call"
    check(model, calls, [(A, lora_of(eraser, A)), (B, lora_of(eraser, B))])
    assert torch.equal(sample(model, A + B, NEGATIVE, steps=1), before), "the base branch gives the same picture"


def test_the_deltas_of_two_prompts_differ(model, eraser):
    (call,) = run(model, eraser, A, steps=1)
    wrong = replay(merged(model, lora_of(eraser, B)), call)
    assert (call.output - wrong)[call.reads(A)].abs().max() > 0.1


def test_without_guidance_only_the_positive_runs(model, eraser):
    calls = run(model, eraser, A, cfg=1.0)
    assert rows_of(calls, A, NEGATIVE) == [[2, 0]] * 2
    check(model, calls, [(A, lora_of(eraser, A))])


def test_a_negative_prompt_runs_the_base_even_if_it_names_an_erased_concept(model, eraser):
    negative = [[NEGATIVE[0][0], dict(A[0][1])]]
    calls = run(model, eraser, A, negative)
    assert rows_of(calls, A, NEGATIVE) == [[2, 2]] * 2
    check(model, calls, [(A, lora_of(eraser, A))])


def test_a_zeroed_prompt_beside_another_leaves_that_one_erased(model, eraser):
    nothing = nodes.ConditioningZeroOut().zero_out(B)[0]
    calls = run(model, eraser, A + nothing)
    assert rows_of(calls, A, nothing) == [[2, 2]] * 2
    check(model, calls, [(A, lora_of(eraser, A))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_lower_precision_are_patched_alike(dtype):
    model = tiny_model(dtype=dtype)
    eraser = tiny_eraser(model)
    (call,) = run(model, eraser, A, steps=1)
    base, rows = replay(model, call), call.reads(A)
    expected = replay(merged(model, lora_of(eraser, A)), call)[rows]
    effect = (expected - base[rows]).abs().max()
    # The merged weights are rounded to the storage type, the dynamic delta is not.
    assert (call.output[rows] - expected).abs().max() < 0.05 * effect
    assert torch.equal(call.output[~rows], base[~rows])


# Strength


def test_strength_zero_is_the_model_itself(model, eraser):
    off = apply_erasure(model, eraser, 0.0)
    assert torch.equal(sample(off, A, NEGATIVE, steps=1), sample(model, A, NEGATIVE, steps=1))
    assert off is not model
    assert off.wrappers == model.wrappers
    assert off.callbacks == model.callbacks


@pytest.mark.parametrize(("strength", "step", "scale"), [(0.5, 150, 1.0), (2.0, 300, 2.0)])
def test_a_strength_is_a_step_of_the_trajectory_and_then_a_factor(model, eraser, strength, step, scale):
    calls = run(model, eraser, A, strength=strength, steps=1)
    check(model, calls, [(A, lora_of(eraser, A, scale, step))])


@pytest.mark.parametrize(("strength", "step", "scale"), [(0.25, 75, 1), (1.0, 300, 1), (1.5, 300, 1.5), (3.0, 300, 3)])
def test_the_factors_at_a_strength(eraser, strength, step, scale):
    c = torch.stack([embedding(A), embedding(B)])
    for found, expected in zip(eraser.factors(c, strength), eraser.hypernet(c, step), strict=True):
        torch.testing.assert_close(found.A, expected.A)
        torch.testing.assert_close(found.B, expected.B * scale)


def test_the_factors_are_those_of_the_steered_embedding(eraser):
    """A wording with a low score is moved half-way to the score of the concept's name; its own score stays."""
    c = embedding(A).unsqueeze(0)
    given = replace(eraser, detector=Detector(c, 2 - c.square().sum(1)), concept_embeddings=2 * c)
    assert given.score(c).item() == pytest.approx(2, abs=1e-4)
    unsteered, steered = eraser.hypernet(c, 300), eraser.hypernet(1.5 * c, 300)
    for found, other, expected in zip(given.factors(c), unsteered, steered, strict=True):
        torch.testing.assert_close(found.B, expected.B)
        assert not torch.allclose(found.B, other.B)


# The gate


@pytest.fixture(scope="module")
def gated(eraser):
    """The eraser with a detector that gives A a score above the threshold and B one below it."""
    return replace(eraser, detector=detector_of(above=[embedding(A)], below=[embedding(B)]), name="gated")


@pytest.mark.parametrize("strength", [0.3, 3.0])
def test_a_prompt_below_the_threshold_runs_the_base_model(model, gated, strength):
    erased = apply_erasure(model, gated, strength)
    assert torch.equal(sample(erased, B, NEGATIVE), sample(model, B, NEGATIVE))
    assert not torch.equal(sample(erased, A, NEGATIVE), sample(model, A, NEGATIVE))


def test_a_prompt_below_the_threshold_shares_a_batch_with_an_erased_one(model, gated):
    calls = run(model, gated, A + B)
    check(model, calls, [(A, lora_of(gated, A))])


def test_without_the_gate_every_prompt_gets_its_delta(model, gated):
    calls = run(model, gated, B, gate=False)
    check(model, calls, [(B, lora_of(gated, B))])


# Beside other nodes


def test_two_erasures_on_one_model_add_up(model, eraser):
    second = tiny_eraser(model, seed=7)
    calls = run(apply_erasure(model, eraser), second, A + B)
    for call in calls:
        base = replay(model, call)
        for conditioning in (A, B):
            rows = call.reads(conditioning)
            both = merged(merged(model, lora_of(eraser, conditioning)), lora_of(second, conditioning))
            assert closely(call.output[rows], replay(both, call)[rows], base[rows])
        assert torch.equal(call.output[call.reads(NEGATIVE)], base[call.reads(NEGATIVE)])


def test_another_nodes_override_is_called_and_kept(model, eraser):
    module = model.model.diffusion_model.get_submodule("middle_block.1.transformer_blocks.0.attn2.to_k")
    batches, original = [], module.forward

    def counting(x, *args, **kwargs):
        batches.append(len(x))
        return original(x, *args, **kwargs)

    module.forward = counting
    try:
        calls = run(model, eraser, A)
        assert batches == [4] * 2
        assert module.__dict__["forward"] is counting
    finally:
        del module.__dict__["forward"]
    check(model, calls, [(A, lora_of(eraser, A))])

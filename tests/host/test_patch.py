"""Erasure on ComfyUI's own samplers: each row of a batch its own prompt's delta, all else bit for bit the base."""

import logging
from dataclasses import replace

import comfy.model_management
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from tiny import (
    FAMILIES,
    POOLED,
    detector_of,
    embedding,
    merged,
    noted_calls,
    overridden,
    prompt,
    replay,
    sample,
    seeded,
    tiny_eraser,
    tiny_model,
)

import nodes
from unhype.hypernet.detector import Detector
from unhype.hypernet.factors import Factors
from unhype.hypernet.lora import BelowThresholdError, to_lora
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.rows import patched_layers
from unhype.hypernet.targets import TargetLayer

A, B, NEGATIVE = prompt(1), prompt(2), prompt(3)

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def models():
    """One tiny model a family, shared: no test may leave a trace on it."""
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.fixture
def model(models):
    comfy.model_management.unload_all_models()
    before = {name: weight.clone() for name, weight in models["sd15"].model.state_dict().items()}
    yield models["sd15"]
    comfy.model_management.unload_all_models()
    after = models["sd15"].model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert overridden(models["sd15"]) == []


@pytest.fixture(scope="module")
def eraser(models):
    return tiny_eraser(models["sd15"])


def lora_of(eraser, layers):
    """The LoRA of some factors, written out by hand."""
    lora = {}
    for layer, factors in zip(eraser.hypernet.config.layers, layers, strict=True):
        lora[f"diffusion_model.{layer.name}.lora_down.weight"] = factors.A[0]
        lora[f"diffusion_model.{layer.name}.lora_up.weight"] = factors.B[0]
    return lora


def full_delta(eraser, conditioning, scale=1.0, step=300):
    layers = eraser.hypernet(embedding(conditioning).unsqueeze(0), step)
    return lora_of(eraser, [factors._replace(B=factors.B * scale) for factors in layers])


def closely(found, expected, base):
    """Equal up to 1e-4 of the effect and to a rounding of the latent that the model's output is added to."""
    effect = (expected - base).abs().max()
    rounding = torch.finfo(torch.float32).eps * expected.abs().max()
    return effect > 0 and (found - expected).abs().max() <= 1e-4 * effect + rounding


def check(model, calls, loras):
    """In every call the rows of each prompt in `loras`, pairs (conditioning, LoRA), follow that LoRA as ComfyUI
    merges it, and all other rows are the base model's, bit for bit."""
    assert calls
    for call in calls:
        base = replay(model, call)
        others = torch.ones(len(base), dtype=torch.bool)
        for conditioning, lora in loras:
            rows = call.reads(conditioning)
            if not rows.any():
                continue
            others &= ~rows
            assert closely(call.output[rows], replay(merged(model, lora), call)[rows], base[rows])
        assert torch.equal(call.output[others], base[others])


def run(model, eraser, positive, negative=NEGATIVE, strength=1.0, gate=True, **options):
    """Sample with the erasure on; returns the calls of the network."""
    with noted_calls(apply_erasure(model, eraser, strength, gate)) as (clone, calls):
        sample(clone, positive, negative, **options)
    return calls


def prompts_seen(calls, *conditionings):
    return [[int(call.reads(conditioning).sum()) for conditioning in conditionings] for call in calls]


# One delta a prompt, whatever the graph does with prompts


@pytest.mark.parametrize("pictures", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_positives_and_a_negative_in_one_batch_each_get_their_own(models, family, pictures):
    model, eraser = models[family], tiny_eraser(models[family])
    calls = run(model, eraser, A + B, pictures=pictures, cfg=7.0)
    assert prompts_seen(calls, A, B, NEGATIVE) == [[pictures] * 3] * 3, "all in one call"
    check(model, calls, [(A, full_delta(eraser, A)), (B, full_delta(eraser, B))])


def test_the_deltas_of_two_prompts_differ(model, eraser):
    (call,) = run(model, eraser, A, steps=1)
    wrong = replay(merged(model, full_delta(eraser, B)), call)
    assert (call.output - wrong)[call.reads(A)].abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_branch_gives_the_same_picture_before_and_after(models, family):
    model = models[family]
    before = sample(model, A + B, NEGATIVE)
    erased = sample(apply_erasure(model, tiny_eraser(model)), A + B, NEGATIVE)
    assert not torch.equal(erased, before)
    assert torch.equal(sample(model, A + B, NEGATIVE), before)


def test_without_guidance_only_the_positive_runs(model, eraser):
    calls = run(model, eraser, A, cfg=1.0)
    assert prompts_seen(calls, A, NEGATIVE) == [[2, 0]] * 3
    check(model, calls, [(A, full_delta(eraser, A))])


def test_a_negative_prompt_runs_the_base_even_if_it_names_what_is_erased(model, eraser):
    negative = [[NEGATIVE[0][0], dict(A[0][1])]]
    calls = run(model, eraser, A, negative)
    assert prompts_seen(calls, A, NEGATIVE) == [[2, 2]] * 3
    check(model, calls, [(A, full_delta(eraser, A))])


def test_regional_prompts_get_their_own_delta_and_their_negative_copies_none(model, eraser):
    left = nodes.ConditioningSetArea().append(A, 32, 64, 0, 0, 1.0)[0]
    right = nodes.ConditioningSetArea().append(B, 32, 64, 32, 0, 1.0)[0]
    calls = run(model, eraser, left + right, steps=2)
    halves = [call for call in calls if call.x.shape[3] == 4]
    # ComfyUI copies each regional positive, its pooled embedding included, to stand for the negative there.
    assert prompts_seen(halves, A, B, NEGATIVE) == [[2, 2, 4]] * 2
    check(model, calls, [(A, full_delta(eraser, A)), (B, full_delta(eraser, B))])


def test_prompts_that_take_turns_get_their_delta_in_their_turn(model, eraser):
    early = nodes.ConditioningSetTimestepRange().set_range(A, 0.0, 0.5)[0]
    late = nodes.ConditioningSetTimestepRange().set_range(B, 0.5, 1.0)[0]
    calls = run(model, eraser, early + late, steps=6)
    seen = prompts_seen(calls, A, B)
    assert [2, 0] in seen
    assert [0, 2] in seen
    check(model, calls, [(A, full_delta(eraser, A)), (B, full_delta(eraser, B))])


def test_combined_prompts_of_several_lengths_get_their_own(model, eraser):
    long = prompt(4, tokens=24)
    calls = run(model, eraser, nodes.ConditioningCombine().combine(A, long)[0], steps=2)
    check(model, calls, [(A, full_delta(eraser, A)), (long, full_delta(eraser, long))])


def test_a_concatenated_prompt_follows_its_first_part(model, eraser):
    both = nodes.ConditioningConcat().concat(A, B)[0]
    calls = run(model, eraser, both, steps=2)
    assert prompts_seen(calls, both, NEGATIVE) == [[2, 2]] * 2
    check(model, calls, [(both, full_delta(eraser, A))])


def test_a_prompt_that_a_node_encodes_while_sampling_gets_its_delta(model, eraser):
    """As core's legacy Perp-Neg does inside its cfg function."""

    def more_guidance(args):
        hand = comfy.samplers.encode_model_conds(
            args["model"].extra_conds,
            [{"cross_attn": B[0][0], "model_conds": {}, "uuid": 0, **B[0][1]}],
            args["input"],
            args["input"].device,
            "positive",
        )
        (other,) = comfy.samplers.calc_cond_batch(
            args["model"], [hand], args["input"], args["timestep"], args["model_options"]
        )
        return args["cond"] + other

    with noted_calls(apply_erasure(model, eraser)) as (clone, calls):
        clone.set_model_sampler_cfg_function(more_guidance)
        sample(clone, A, NEGATIVE)
    assert sum(int(call.reads(B).sum()) for call in calls) == 6
    check(model, calls, [(A, full_delta(eraser, A)), (B, full_delta(eraser, B))])


def test_tiling_nodes_that_repeat_the_batch_keep_rows_and_prompts_together(model, eraser):
    def in_two_tiles(apply, arguments):
        x, t, c = arguments["input"], arguments["timestep"], dict(arguments["c"])
        repeated = {name: torch.cat([value, value]) if torch.is_tensor(value) else value for name, value in c.items()}
        top, bottom = x.chunk(2, dim=2)
        tiles = apply(torch.cat([top, bottom]), torch.cat([t, t]), **repeated)
        return torch.cat(tiles.chunk(2), dim=2)

    with noted_calls(apply_erasure(model, eraser)) as (clone, calls):
        clone.set_model_unet_function_wrapper(in_two_tiles)
        sample(clone, A + B, NEGATIVE)
    assert prompts_seen(calls, A, B, NEGATIVE) == [[4, 4, 4]] * 3
    check(model, calls, [(A, full_delta(eraser, A)), (B, full_delta(eraser, B))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_lower_precision_are_patched_alike(dtype):
    model = tiny_model(dtype=dtype)
    eraser = tiny_eraser(model)
    (call,) = run(model, eraser, A, steps=1)
    base, rows = replay(model, call), call.reads(A)
    expected = replay(merged(model, full_delta(eraser, A)), call)[rows]
    effect = (expected - base[rows]).abs().max()
    # The merged weights are rounded to the storage type, the dynamic delta is not.
    assert (call.output[rows] - expected).abs().max() < 0.05 * effect
    assert torch.equal(call.output[~rows], base[~rows])


# Prompts without an embedding


@pytest.mark.parametrize("pooled", ["zeroed", "missing", "none"])
def test_a_prompt_without_an_embedding_runs_the_base_with_a_warning(model, eraser, caplog, pooled):
    without = {
        "zeroed": [[A[0][0], {"pooled_output": torch.zeros(1, POOLED)}]],
        "missing": [[A[0][0], {}]],
        "none": [[A[0][0], {"pooled_output": None}]],
    }[pooled]
    with caplog.at_level(logging.INFO):
        found = sample(apply_erasure(model, eraser), without, NEGATIVE)
    assert torch.equal(found, sample(model, without, NEGATIVE))
    assert caplog.text.count("carries no embedding that fits hypernet 'tiny'; it runs the model unchanged") == 1


def test_a_zeroed_prompt_beside_another_leaves_that_one_erased(model, eraser):
    nothing = nodes.ConditioningZeroOut().zero_out(B)[0]
    calls = run(model, eraser, A + nothing)
    assert prompts_seen(calls, A, nothing) == [[2, 2]] * 3
    check(model, calls, [(A, full_delta(eraser, A))])


# Strength


def test_strength_zero_is_the_model_itself(model, eraser):
    off = apply_erasure(model, eraser, 0.0)
    assert torch.equal(sample(off, A, NEGATIVE), sample(model, A, NEGATIVE))
    assert off is not model
    assert off.wrappers == model.wrappers
    assert off.callbacks == model.callbacks


def test_strength_one_half_is_the_middle_of_the_trajectory(model, eraser):
    calls = run(model, eraser, A, strength=0.5)
    check(model, calls, [(A, full_delta(eraser, A, step=150))])


def test_strength_two_doubles_the_delta(model, eraser):
    calls = run(model, eraser, A, strength=2.0)
    check(model, calls, [(A, full_delta(eraser, A, scale=2.0))])


@pytest.mark.parametrize(("strength", "step", "scale"), [(0.25, 75, 1), (1.0, 300, 1), (1.5, 300, 1.5), (3.0, 300, 3)])
def test_strength_moves_along_the_trajectory_and_then_scales(eraser, strength, step, scale):
    c = torch.stack([embedding(A), embedding(B)])
    layers = eraser.factors(c, strength)
    for found, expected in zip(layers, eraser.hypernet(c, step), strict=True):
        torch.testing.assert_close(found.A, expected.A)
        torch.testing.assert_close(found.B, expected.B * scale)


def test_the_factors_are_those_of_the_steered_embedding(eraser):
    """A wording with a low score is moved half-way to the score of the concept's name; its own score stays."""
    c = embedding(A).unsqueeze(0)
    given = replace(eraser, detector=Detector(c, 2 - c.square().sum(1)), concept_embeddings=2 * c)
    assert given.score(c).item() == pytest.approx(2, abs=1e-4)
    own, steered = eraser.hypernet(c, 300), eraser.hypernet(1.5 * c, 300)
    for found, plain, expected in zip(given.factors(c), own, steered, strict=True):
        torch.testing.assert_close(found.B, expected.B)
        assert not torch.allclose(found.B, plain.B)


# The gate


@pytest.fixture(scope="module")
def gated(eraser):
    """The eraser with a detector that gives A a score above the threshold and B one below it."""
    return replace(eraser, detector=detector_of(above=[embedding(A)], below=[embedding(B)]), name="gated")


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_a_prompt_below_the_threshold_runs_the_base_model(model, gated, strength):
    erased = apply_erasure(model, gated, strength)
    assert torch.equal(sample(erased, B, NEGATIVE), sample(model, B, NEGATIVE))
    assert not torch.equal(sample(erased, A, NEGATIVE), sample(model, A, NEGATIVE))


def test_a_prompt_below_the_threshold_shares_a_batch_with_an_erased_one(model, gated):
    calls = run(model, gated, A + B)
    check(model, calls, [(A, full_delta(gated, A))])


def test_without_the_gate_every_prompt_gets_its_delta(model, gated):
    calls = run(model, gated, B, gate=False)
    check(model, calls, [(B, full_delta(gated, B))])


# Nothing stays behind


def test_nothing_stays_on_the_modules(model, eraser):
    erased = apply_erasure(model, eraser)
    assert overridden(model) == []
    sample(erased, A, NEGATIVE)
    assert overridden(model) == []


def stop_in_the_middle_block(model, action):
    """A clone that runs `action` when its middle block reads the prompt, and the list of overrides it saw then."""
    clone, seen = model.clone(), []

    def patch(n, context, value, options):
        if options["block"][0] == "middle":
            seen.append(overridden(model))
            action()
        return n, context, value

    clone.set_model_attn2_patch(patch)
    return clone, seen


LOOKS_IN_EVERY_LAYER = pytest.mark.skipif(
    not hasattr(comfy.ops, "run_every_op"), reason="this ComfyUI looks for an interrupt between steps only"
)


def fail():
    raise RuntimeError("from the middle block")


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (fail, RuntimeError),
        pytest.param(
            comfy.model_management.interrupt_current_processing,
            comfy.model_management.InterruptProcessingException,
            marks=LOOKS_IN_EVERY_LAYER,
        ),
    ],
    ids=["exception", "interrupt"],
)
def test_nothing_stays_after_the_network_was_left_in_its_middle(model, eraser, action, error):
    before = sample(model, A, NEGATIVE)
    clone, seen = stop_in_the_middle_block(apply_erasure(model, eraser), action)
    with pytest.raises(error):
        sample(clone, A, NEGATIVE)
    assert len(seen[0]) == 14, "the deltas were on when it happened"
    assert overridden(model) == []
    assert torch.equal(sample(model, A, NEGATIVE), before)


def test_no_factors_are_kept_when_a_sampling_has_ended_or_failed(model, eraser):
    erased = apply_erasure(model, eraser)
    (wrapper,) = erased.wrappers[WrappersMP.OUTER_SAMPLE]["unhype"]
    clone, _ = stop_in_the_middle_block(erased, fail)
    with pytest.raises(RuntimeError):
        sample(clone, A, NEGATIVE)
    assert len(wrapper.__self__.deltas.cache) == 0
    sample(erased, A, NEGATIVE)
    assert len(wrapper.__self__.deltas.cache) == 0


def test_the_parent_model_and_the_prompts_are_not_written_to(model, eraser):
    def parts():
        wrappers = {kind: dict(keyed) for kind, keyed in model.wrappers.items()}
        callbacks = {kind: dict(keyed) for kind, keyed in model.callbacks.items()}
        options = {key: set(value) for key, value in model.model_options.items()}
        return wrappers, callbacks, options, dict(model.patches), dict(model.object_patches), dict(model.attachments)

    before = parts()
    sample(apply_erasure(model, eraser), A + B, NEGATIVE)
    assert parts() == before
    for conditioning in (A, B, NEGATIVE):
        assert list(conditioning[0][1]) == ["pooled_output"]


def test_sampling_twice_gives_the_same_picture(model, eraser):
    erased = apply_erasure(model, eraser)
    first = sample(erased, A, NEGATIVE)
    sample(erased, B, NEGATIVE)
    assert torch.equal(sample(erased, A, NEGATIVE), first)
    assert torch.equal(sample(apply_erasure(model, eraser), A, NEGATIVE), first)


# Beside other nodes


def test_two_erasures_on_one_model_add_up(model, eraser):
    second = tiny_eraser(model, seed=7)
    twice = apply_erasure(apply_erasure(model, eraser), second)
    with noted_calls(twice) as (clone, calls):
        sample(clone, A + B, NEGATIVE)
    assert overridden(model) == []
    for call in calls:
        base = replay(model, call)
        for conditioning in (A, B):
            rows = call.reads(conditioning)
            both = merged(merged(model, full_delta(eraser, conditioning)), full_delta(second, conditioning))
            assert closely(call.output[rows], replay(both, call)[rows], base[rows])
        assert torch.equal(call.output[call.reads(NEGATIVE)], base[call.reads(NEGATIVE)])


def test_an_erasure_on_top_of_a_lora_keeps_the_lora(model, eraser):
    styled = merged(model, full_delta(tiny_eraser(model, seed=8), B))
    calls = run(styled, eraser, A)
    check(styled, calls, [(A, full_delta(eraser, A))])


def test_another_nodes_override_is_called_and_kept(model, eraser):
    module = model.model.diffusion_model.get_submodule("middle_block.1.transformer_blocks.0.attn2.to_k")
    calls, original = [], module.forward

    def counting(x, *args, **kwargs):
        calls.append(len(x))
        return original(x, *args, **kwargs)

    module.forward = counting
    try:
        with_override = run(model, eraser, A)
        assert calls == [4] * 3
        assert module.__dict__["forward"] is counting
    finally:
        del module.__dict__["forward"]
    check(model, with_override, [(A, full_delta(eraser, A))])


class OneLayer(torch.nn.Module):
    """A network of one layer, to see what a layer does when its batch is not the network's."""

    def __init__(self):
        super().__init__()
        self.layer = comfy.ops.disable_weight_init.Linear(3, 2)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)


LAYER = TargetLayer("layer", 3, 2)


def ones_on_row_one():
    return torch.tensor([1]), [Factors(torch.ones(1, 1, 3), torch.ones(1, 2, 1))]


@pytest.mark.parametrize(
    ("order", "changed"),
    [
        ([0, 1, 0, 1], [1, 3]),  # the batch repeated, as tiles are
        ([0, 0, 1, 1], [2, 3]),  # each row repeated
        ([0, 1, None], [1]),  # a row of another node's own joins
        ([1], [0]),  # one row at a time
        ([None, None, None], []),
    ],
    ids=str,
)
def test_rows_that_change_inside_the_model_are_matched_by_their_tokens(order, changed):
    network, context, (rows, layers) = OneLayer(), torch.randn(2, 5, 3, generator=seeded(3)), ones_on_row_one()
    others = torch.randn(5, 3, generator=seeded(4))
    x = torch.stack([others if row is None else context[row] for row in order])
    plain = network.layer(x)
    with patched_layers(network, [LAYER], rows, layers, batch=2, context=context):
        y = network.layer(x)
    assert [row for row in range(len(x)) if not torch.equal(y[row], plain[row])] == changed
    torch.testing.assert_close(y[changed], 2 * plain[changed])


def test_of_two_rows_with_the_same_tokens_the_one_with_a_delta_counts():
    network, context, (rows, layers) = OneLayer(), torch.ones(2, 5, 3), ones_on_row_one()
    with patched_layers(network, [LAYER], rows, layers, batch=2, context=context):
        assert network.layer(context[:1])[0, 0].tolist() == [6, 6]


def test_rows_that_join_the_batch_come_last_where_nothing_else_is_known():
    network, x = OneLayer(), torch.ones(3, 5, 3)
    rows, layers = ones_on_row_one()
    with patched_layers(network, [LAYER], rows, layers, batch=2):
        y = network.layer(x)
    assert y[:, 0, 0].tolist() == [3, 6, 3]


def test_rows_that_cannot_be_told_apart_run_the_base_with_a_warning():
    network, x = OneLayer(), torch.ones(1, 5, 3)
    rows, layers = ones_on_row_one()
    with patched_layers(network, [LAYER], rows, layers, batch=2), pytest.warns(UserWarning, match="without erasure"):
        y = network.layer(x)
    assert torch.equal(y, torch.full((1, 5, 2), 3.0))


def test_overrides_go_when_they_cannot_all_be_put_on():
    network = OneLayer()
    rows, layers = ones_on_row_one()
    with (
        pytest.raises(AttributeError),
        patched_layers(network, [LAYER, TargetLayer("no_such_layer", 3, 2)], rows, layers * 2, batch=2),
    ):
        pass
    assert "forward" not in network.layer.__dict__


# The exported LoRA


@pytest.mark.parametrize("strength", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_lora_equals_the_dynamic_path(models, family, strength):
    model, eraser = models[family], tiny_eraser(models[family])
    lora = to_lora(eraser, embedding(A), "a cat", strength)
    assert len(lora) == 3 * len(eraser.hypernet.config.layers)
    calls = run(model, eraser, A, strength=strength)
    check(model, calls, [(A, lora)])


def test_a_prompt_below_the_threshold_makes_no_lora(gated):
    with pytest.raises(BelowThresholdError, match=r"'a boat' names nothing that hypernet 'gated' erases \(cat\)"):
        to_lora(gated, embedding(B), "a boat")
    assert to_lora(gated, embedding(A), "a cat")

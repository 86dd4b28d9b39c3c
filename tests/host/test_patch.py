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
    CONTEXT,
    FAMILIES,
    POOLED,
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
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.factors import Factors, delta_norm
from unhype.hypernet.lora import BelowThresholdError, factors_of, to_lora
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError, Record
from unhype.hypernet.rows import patched_layers
from unhype.hypernet.targets import TargetLayer, UnsupportedModelError, family_by_key, recognise, target_layers

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
def trained(models):
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
    with noted_calls(apply_erasure(model, eraser, strength, dead_zone)) as (clone, calls):
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
def test_a_prompt_without_an_embedding_runs_the_base_and_says_so(model, eraser, caplog, pooled):
    silent = {
        "zeroed": [[A[0][0], {"pooled_output": torch.zeros(1, POOLED)}]],
        "missing": [[A[0][0], {}]],
        "none": [[A[0][0], {"pooled_output": None}]],
    }[pooled]
    with caplog.at_level(logging.INFO):
        found = sample(apply_erasure(model, eraser), silent, NEGATIVE)
    assert torch.equal(found, sample(model, silent, NEGATIVE))
    assert caplog.text.count("carries no embedding that hypernet 'tiny' can read; it runs the model unchanged") == 1


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
    layers, norms = factors_of(eraser, c, strength)
    for found, expected in zip(layers, eraser.hypernet(c, step), strict=True):
        torch.testing.assert_close(found.A, expected.A)
        torch.testing.assert_close(found.B, expected.B * scale)
    torch.testing.assert_close(norms, delta_norm(eraser.hypernet(c, 300)))


def test_h_answers_a_weak_wording_as_if_it_said_more(eraser):
    """And how present the concept is stays what the prompt itself says."""
    c = embedding(A).unsqueeze(0)
    given = replace(eraser, switch=Detector(c, 2 - c.square().sum(1)), concept_embeddings=2 * c)
    layers, presence = factors_of(given, c, 1.0)
    assert presence.item() == pytest.approx(2, abs=1e-4)
    weak, strong = eraser.hypernet(c, 300), eraser.hypernet(1.5 * c, 300)
    for found, plain, steer in zip(layers, weak, strong, strict=True):
        torch.testing.assert_close(found.B, steer.B)
        assert not torch.allclose(found.B, plain.B)


# The dead zone


@pytest.fixture
def choosy(eraser):
    """The hypernet with a dead zone into which the weaker of the prompts A and B falls; (it, weaker, stronger)."""
    size = {
        name: delta_norm(eraser.hypernet(embedding(conditioning).unsqueeze(0), 300)).item()
        for name, conditioning in (("A", A), ("B", B))
    }
    weaker, stronger = (A, B) if size["A"] < size["B"] else (B, A)
    record = Record("sd15", (("cat", "tree"),), sum(size.values()) / 2, eraser.record.base)
    return Eraser(eraser.hypernet, record, "choosy"), weaker, stronger


@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
def test_a_prompt_in_the_dead_zone_runs_the_base_model(model, choosy, strength):
    hypernet, weaker, stronger = choosy
    erased = apply_erasure(model, hypernet, strength)
    assert torch.equal(sample(erased, weaker, NEGATIVE), sample(model, weaker, NEGATIVE))
    assert not torch.equal(sample(erased, stronger, NEGATIVE), sample(model, stronger, NEGATIVE))


def test_a_prompt_in_the_dead_zone_shares_a_batch_with_an_erased_one(model, choosy):
    hypernet, weaker, stronger = choosy
    calls = run(model, hypernet, weaker + stronger)
    check(model, calls, [(stronger, full_delta(hypernet, stronger))])


def test_without_the_dead_zone_every_prompt_is_steered(model, choosy):
    hypernet, weaker, _ = choosy
    calls = run(model, hypernet, weaker, gate=False)
    check(model, calls, [(weaker, full_delta(hypernet, weaker))])


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
    assert len(wrapper.__self__.writer._written) == 0
    sample(erased, A, NEGATIVE)
    assert len(wrapper.__self__.writer._written) == 0


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
def test_rows_that_change_inside_the_model_are_told_by_what_they_read(order, changed):
    network, read, (rows, layers) = OneLayer(), torch.randn(2, 5, 3, generator=seeded(3)), ones_on_row_one()
    others = torch.randn(5, 3, generator=seeded(4))
    x = torch.stack([others if row is None else read[row] for row in order])
    plain = network.layer(x)
    with patched_layers(network, [LAYER], rows, layers, batch=2, read=read):
        y = network.layer(x)
    assert [row for row in range(len(x)) if not torch.equal(y[row], plain[row])] == changed
    torch.testing.assert_close(y[changed], 2 * plain[changed])


def test_of_two_rows_that_read_the_same_the_one_with_a_delta_counts():
    network, read, (rows, layers) = OneLayer(), torch.ones(2, 5, 3), ones_on_row_one()
    with patched_layers(network, [LAYER], rows, layers, batch=2, read=read):
        assert network.layer(read[:1])[0, 0].tolist() == [6, 6]


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


def test_a_prompt_in_the_dead_zone_makes_no_lora(choosy):
    hypernet, weaker, stronger = choosy
    with pytest.raises(BelowThresholdError, match=r"'a boat' means nothing that hypernet 'choosy' erases \(cat\)"):
        to_lora(hypernet, embedding(weaker), "a boat")
    assert to_lora(hypernet, embedding(stronger), "a cat")


# What does not fit is refused


def test_a_hypernet_of_another_family_is_refused(models):
    eraser = tiny_eraser(models["sdxl"])
    with pytest.raises(
        HypernetFileError, match=r"eraser for Stable Diffusion XL, but the model is Stable Diffusion 1\.x"
    ):
        apply_erasure(models["sd15"], eraser)


def test_a_hypernet_for_a_model_of_another_size_is_refused(model):
    eraser = tiny_eraser(tiny_model(context=16))
    with pytest.raises(HypernetFileError, match=r"layer 'input_blocks\.1\.1.*' is 32 to 32 in the model and 16 to 32"):
        apply_erasure(model, eraser)


def test_a_hypernet_for_layers_that_the_model_lacks_is_refused(model, eraser):
    layers = eraser.hypernet.config.layers
    strange = type(layers[0])("input_blocks.9.1.transformer_blocks.0.attn2.to_k", CONTEXT, 32)
    network = Hypernet(HypernetConfig(POOLED, (strange,), hidden=4))
    with pytest.raises(HypernetFileError, match=r"layer 'input_blocks\.9.*' is missing in the model"):
        apply_erasure(model, Eraser(network, eraser.record, "strange"))


def test_refusal_holds_at_strength_zero_too(models):
    with pytest.raises(HypernetFileError):
        apply_erasure(models["sd15"], tiny_eraser(models["sdxl"]), 0.0)


def test_a_relative_of_the_trained_model_is_taken_with_a_note(model, caplog):
    other = tiny_eraser(tiny_model(seed=9))
    with caplog.at_level(logging.INFO):
        apply_erasure(model, other)
    assert "was eraser on another Stable Diffusion 1.x model" in caplog.text


def test_the_trained_model_itself_gets_no_note_even_with_a_lora_merged_into_it(model, eraser, caplog):
    sample(merged(model, full_delta(eraser, A)), A, NEGATIVE)
    with caplog.at_level(logging.INFO):
        apply_erasure(model, eraser)
    assert "another" not in caplog.text


# Families


def test_each_family_is_told_from_its_classes(models):
    assert [recognise(models[family].model).key for family in FAMILIES] == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_targets_are_keys_and_values_of_cross_attention(models, family):
    layers = target_layers(models[family].model, recognise(models[family].model))
    assert len(layers) == 14
    assert all(layer.name.endswith((".attn2.to_k", ".attn2.to_v")) and layer.inputs == CONTEXT for layer in layers)
    assert {layer.outputs for layer in layers} == {32, 64}


def test_subclasses_of_a_family_made_by_other_packs_are_recognised(models):
    base = models["sd15"].model
    config = type("MySD15", (type(base.model_config),), {}).__new__(type(base.model_config))
    stand_in = type("Wrapped", (), {"model_config": config, "diffusion_model": base.diffusion_model})()
    assert recognise(stand_in).key == "sd15"


def test_other_models_are_refused_by_their_name():
    with pytest.raises(UnsupportedModelError, match=r"This model is a Flux9, .* Supported: Stable Diffusion 1\.x, "):
        recognise(type("Flux9", (), {})())


def test_a_family_that_this_version_does_not_know_is_named():
    with pytest.raises(UnsupportedModelError, match="'sd99' is not one that this version of UnHype knows"):
        family_by_key("sd99")


def test_a_model_without_cross_attention_is_refused(models):
    gutted = type("Gutted", (), {"diffusion_model": torch.nn.Sequential()})()
    with pytest.raises(UnsupportedModelError, match="none of the layers that UnHype steers"):
        target_layers(gutted, family_by_key("sd15"))


def test_blocks_wrapped_for_compilation_keep_their_names(models):
    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    base = models["sd15"].model
    plain = target_layers(base, family_by_key("sd15"))
    blocks = torch.nn.ModuleDict({name: Wrapped(module) for name, module in base.diffusion_model.named_children()})
    stand_in = type("Compiled", (), {"diffusion_model": blocks})()
    assert target_layers(stand_in, family_by_key("sd15")) == plain

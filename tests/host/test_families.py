"""Every family on a tiny instance of the host's own class: recognised, erased and exported."""

from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux, FluxParams
from deltas import closely
from families import INSTANCES, NAMES, embedding_of, eraser_for, instance, key_of, prompt
from tiny import detector_of, merged, noted_calls, overridden, replay, sample, seeded, tiny_model

import nodes
from unhype.evaluation.detection import detect
from unhype.hypernet.families import FAMILIES
from unhype.hypernet.lora import to_lora
from unhype.hypernet.network import Hypernet
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.targets import PREFIX, UnsupportedModelError, family_by_key, recognise, target_layers
from unhype.training import sampling
from unhype.training.sampling import Drawing, latent_noise

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(params=NAMES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def shared(name):
    """A tiny model, which has the same weights and gives the same picture when all of its tests are done."""
    a, negative = prompt(name, 1), prompt(name, 3)
    with torch.inference_mode():
        model = instance(name)
        weights = {key: weight.clone() for key, weight in model.model.state_dict().items()}
        picture = sample(model, a, negative, steps=1)
        yield model
        assert torch.equal(sample(model, a, negative, steps=1), picture)
    comfy.model_management.unload_all_models()
    assert all(torch.equal(weight, weights[key]) for key, weight in model.model.state_dict().items())


@pytest.fixture
def model(shared):
    comfy.model_management.unload_all_models()
    yield shared
    assert overridden(shared) == []


@pytest.fixture
def eraser(name, model):
    return eraser_for(name, model)


def rows_of(call, conditioning):
    """The rows of a prompt, (rows,) bool; Flux.2 pads with zeros on the left."""
    cross = conditioning[0][0][0]
    return torch.tensor([torch.equal(row[-cross.shape[0] :], cross) for row in call.context])


def with_offset_patches(model, *erasures):
    """The model under the host's own patches for slices of weights, for pairs (eraser, c)."""
    clone = model.clone()
    for eraser, c in erasures:
        for layer, factors in zip(eraser.hypernet.config.layers, eraser.hypernet(c.unsqueeze(0), 300), strict=True):
            key = (f"{PREFIX}{layer.name}.weight", (0, layer.start, layer.outputs))
            clone.add_patches({key: ("diff", (factors.B[0] @ factors.A[0],))})
    return clone


def run(erased, positive, negative, **options):
    with noted_calls(erased) as (clone, calls):
        sample(clone, positive, negative, **options)
    return calls


# The table


def test_every_family_of_the_table_is_tried_here_or_with_the_unets():
    assert {family.key for family in FAMILIES} == {key_of(name) for name in NAMES} | {"sd15", "sd20", "sdxl"}


def test_a_family_is_recognised_by_its_classes(name, model):
    assert recognise(model.model).key == key_of(name)


def test_the_targets_are_there_with_their_output_rows(name, model):
    layers = target_layers(model.model, recognise(model.model))
    assert {layer.name: (layer.start, layer.outputs, layer.features) for layer in layers} == INSTANCES[name].rows
    for layer in layers:
        weight = model.model.diffusion_model.get_submodule(layer.name).weight
        assert tuple(weight.shape) == (layer.features, layer.inputs)


@pytest.mark.parametrize("fused", ["flux", "flux2", "chroma", "sd3", "lumina2", "lumina2-z_image"])
def test_the_rows_of_fused_layers_are_their_values(fused):
    """With all values zero, attention has no effect: queries may be anything."""
    model = instance(fused)
    layers = [layer for layer in target_layers(model.model, recognise(model.model)) if layer.outputs != layer.features]
    modules = [model.model.diffusion_model.get_submodule(layer.name) for layer in layers]
    (call, *_) = run(model, prompt(fused, 1), prompt(fused, 3), steps=1)

    def other_queries_matter():
        before = replay(model, call)
        for layer, module in zip(layers, modules, strict=True):
            module.weight[: layer.inputs] = torch.randn(layer.inputs, layer.inputs, generator=seeded(9))
        return not torch.equal(replay(model, call), before)

    assert other_queries_matter()
    for layer, module in zip(layers, modules, strict=True):
        module.weight[layer.rows] = 0
        if module.bias is not None:
            module.bias[layer.rows] = 0
    assert not other_queries_matter()


def test_flux_1_has_the_papers_95_layers():
    sizes = dict(hidden_size=3072, num_heads=24, axes_dim=[16, 56, 56], depth=19, depth_single_blocks=38)
    sizes = {**INSTANCES["flux"].network, **sizes}
    sizes = {name: value for name, value in sizes.items() if name in FluxParams.__dataclass_fields__}
    with torch.device("meta"):
        network = Flux(**sizes, device="meta", operations=comfy.ops.disable_weight_init)
    layers = target_layers(SimpleNamespace(diffusion_model=network), family_by_key("flux"))
    assert len(layers) == 95
    assert {(layer.inputs, layer.outputs) for layer in layers} == {(3072, 3072)}
    fused = {(layer.rows.start, layer.rows.stop, layer.features) for layer in layers if layer.start}
    assert fused == {(6144, 9216, 9216), (6144, 9216, 21504)}


def test_models_of_other_kinds_are_refused_with_a_list_of_the_supported_ones():
    strange = type("LTXV9", (), {})()
    with pytest.raises(UnsupportedModelError) as refusal:
        recognise(strange)
    assert all(family.title in str(refusal.value) for family in FAMILIES)


# Erasing


def test_rows_follow_the_hosts_own_patch_and_unconditional_rows_are_the_base(name, model, eraser):
    a, b, negative = (prompt(name, seed) for seed in (1, 2, 3))
    calls = run(apply_erasure(model, eraser), a + b, negative, steps=2)
    assert calls
    for call in calls:
        base = replay(model, call)
        for conditioning in (a, b):
            rows = rows_of(call, conditioning)
            assert rows.sum() == 2
            patched = with_offset_patches(model, (eraser, embedding_of(name, conditioning)))
            assert closely(call.output[rows], replay(patched, call)[rows], base[rows])
        rows = rows_of(call, negative)
        assert rows.sum() == 2
        assert torch.equal(call.output[rows], base[rows])


def test_without_guidance_the_delta_is_on_for_the_whole_sampling(name, model, eraser):
    a, negative = prompt(name, 1), prompt(name, 3)
    calls = run(apply_erasure(model, eraser), a, negative, cfg=1.0, pictures=1, steps=2)
    assert [rows_of(call, a).tolist() for call in calls] == [[True]] * 2
    patched = with_offset_patches(model, (eraser, embedding_of(name, a)))
    for call in calls:
        assert closely(call.output, replay(patched, call), replay(model, call))


def test_the_exported_lora_loads_and_does_the_same(name, model, eraser):
    a, negative = prompt(name, 1), prompt(name, 3)
    lora = to_lora(eraser, embedding_of(name, a), "a cat")
    (call,) = run(apply_erasure(model, eraser), a, negative, steps=1)
    rows, base = rows_of(call, a), replay(model, call)
    with_lora = merged(model, lora)
    assert len(with_lora.patches) == len(eraser.hypernet.config.layers), "core's loader knows every key"
    assert closely(call.output[rows], replay(with_lora, call)[rows], base[rows])


@pytest.mark.parametrize("kind", ["flux", "flux2"])
def test_a_network_without_the_guidance_input_is_drawn_with_cfg_and_its_negatives_are_the_base(kind, monkeypatch):
    """As finetunes of Flux.1 that undo the distillation, and the base models of Flux.2 Klein."""
    own = INSTANCES[kind]
    monkeypatch.setitem(INSTANCES, kind, own._replace(network={**own.network, "guidance_embed": False}))
    model = instance(kind)
    positive, negative = prompt(kind, 1), prompt(kind, 3)
    noise = latent_noise(model.model.latent_format, 1, 64, 64, seeded(5))
    drawing = Drawing(steps=2, cfg=4.0)
    with noted_calls(apply_erasure(model, eraser_for(kind, model))) as (erased, calls):
        sampling.sample(erased, positive, negative, noise, drawing)
    for call in calls:
        rows = rows_of(call, negative)
        assert rows.tolist().count(True) == 1 == rows.tolist().count(False)
        base = replay(model, call)
        assert torch.equal(call.output[rows], base[rows])
        assert not torch.equal(call.output[~rows], base[~rows])
    assert not torch.equal(
        sampling.sample(model, positive, negative, noise, drawing),
        sampling.sample(model, positive, negative, noise, Drawing(2, 1.0)),
    )


@pytest.mark.parametrize("name", ["flux", "lumina2", "wan"], indirect=True)
@pytest.mark.parametrize("second", ["another", "the same", "the same file loaded again"])
def test_several_erasers_add_up_and_the_same_one_counts_once(name, model, eraser, second):
    a, negative = prompt(name, 1), prompt(name, 3)
    other = eraser if second == "the same" else eraser_for(name, model, seed=7 * (second == "another"))
    (call,) = run(apply_erasure(apply_erasure(model, eraser), other), a, negative, steps=1)
    rows, base, c = rows_of(call, a), replay(model, call), embedding_of(name, a)
    both = with_offset_patches(model, (eraser, c), (other, c))
    once = with_offset_patches(model, (eraser, c))
    assert closely(call.output[rows], replay(both, call)[rows], base[rows]) == (second == "another")
    assert closely(call.output[rows], replay(once, call)[rows], base[rows]) == (second != "another")


@pytest.mark.parametrize(("family", "dtype"), [("flux", torch.bfloat16), ("chroma", torch.float16)], ids=str)
def test_a_base_of_lower_precision_is_patched_alike(family, dtype):
    model = instance(family, dtype=dtype)
    eraser, a, negative = eraser_for(family, model), prompt(family, 1), prompt(family, 3)
    (call,) = run(apply_erasure(model, eraser), a, negative, steps=1)
    rows, base = rows_of(call, a), replay(model, call)
    patched = replay(with_offset_patches(model, (eraser, embedding_of(family, a))), call)
    effect = (patched - base)[rows].abs().max()
    # The merged weights are rounded to the storage type, the dynamic delta is not.
    assert (call.output - patched)[rows].abs().max() < 0.1 * effect
    assert torch.equal(call.output[~rows], base[~rows])


def test_a_hypernet_of_another_family_is_refused_by_name():
    flux, sd = instance("flux"), tiny_model("sd15")
    message = r"trained for Flux\.1, but the model is Stable Diffusion 1\.x. Connect a Flux\.1 model"
    with pytest.raises(HypernetFileError, match=message):
        apply_erasure(sd, eraser_for("flux", flux))
    with pytest.raises(HypernetFileError, match=r"trained for Flux\.1, but the model is Chroma"):
        apply_erasure(instance("chroma"), eraser_for("flux", flux))


def test_a_hypernet_for_other_rows_of_a_layer_is_refused():
    flux = instance("flux")
    eraser = eraser_for("flux", flux)
    layers = eraser.hypernet.config.layers
    keys = tuple(replace(layer, start=32) if "qkv" in layer.name else layer for layer in layers)
    network = Hypernet(replace(eraser.hypernet.config, layers=keys))
    message = r"is 32 to 32 \(rows 64 to 96 of 96\) in the model and 32 to 32 \(rows 32 to 64 of 96\) in the hypernet"
    with pytest.raises(HypernetFileError, match=message):
        apply_erasure(flux, replace(eraser, hypernet=network))


# The embedding that drives H


def test_a_prompt_without_its_embedding_runs_the_base(name, model, eraser):
    a, negative = prompt(name, 1), prompt(name, 3)
    zeroed = nodes.ConditioningZeroOut().zero_out(a)[0]
    erased = sample(apply_erasure(model, eraser), zeroed, negative, steps=1)
    assert torch.equal(erased, sample(model, zeroed, negative, steps=1))


def test_detector_and_hypernet_get_the_same_embedding(name, model, eraser):
    a, b, negative = (prompt(name, seed) for seed in (1, 2, 3))
    detector = detector_of([embedding_of(name, a)], [embedding_of(name, b)], score=3.0)
    gated = replace(eraser, detector=detector)
    above, below = detect(gated, a + b)
    assert (above.erased, below.erased) == (True, False)
    assert above.score == pytest.approx(3.0, abs=1e-3)
    (call,) = run(apply_erasure(model, gated), a + b, negative, steps=1)
    changed = (call.output != replay(model, call)).flatten(1).any(1)
    assert torch.equal(changed, rows_of(call, a))

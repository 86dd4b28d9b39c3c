"""Every family on a tiny instance of the host's own class: recognised, erased, eraser, saved, loaded, exported."""

import hashlib
import math
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.ldm.flux.model import Flux, FluxParams
from families import INSTANCES, NAMES, instance, key_of, prompt
from tiny import (
    CONTEXT,
    TRAINING,
    detector_of,
    merged,
    noted_calls,
    overridden,
    replay,
    sample,
    seeded,
    tiny_eraser,
    tiny_model,
)

import nodes
from unhype.evaluation.decoding import decoder
from unhype.evaluation.detection import detect
from unhype.hypernet.embedding import driving_embeddings, mean_of_tokens
from unhype.hypernet.families import FAMILIES, POOLED, TOKENS
from unhype.hypernet.files import load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.network import Hypernet
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.targets import PREFIX, UnsupportedModelError, family_by_key, recognise, target_layers
from unhype.training import blocks
from unhype.training.encode import MissingEmbeddingError, encode
from unhype.training.frozen import FrozenModel, differentiable
from unhype.training.memory import memory_of
from unhype.training.plan import Request
from unhype.training.run import train_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    """A tiny model that no test may leave a trace on."""
    comfy.model_management.unload_all_models()
    model = instance(name)
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    yield model
    comfy.model_management.unload_all_models()
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    assert overridden(model) == []


@pytest.fixture
def eraser(name, model):
    return hypernet(name, model)


def hypernet(name, model, **options):
    return tiny_eraser(model, width=INSTANCES[name].pooled or CONTEXT, **options)


def driven_by(name, conditioning):
    """The vector that drives H for a made-up prompt, worked out by hand."""
    ((cross, entry),) = conditioning
    if INSTANCES[name].pooled:
        return entry["pooled_output"][0]
    return (cross[0] / cross[0].square().mean(1, keepdim=True).sqrt()).mean(0)


def reads(call, conditioning):
    """Which rows read a prompt, (rows,) bool; Flux.2 fills up with zeros on the left."""
    cross = conditioning[0][0][0]
    return torch.tensor([torch.equal(row[-cross.shape[0] :], cross) for row in call.context])


def with_offset_patches(model, eraser, *conditionings_of):
    """The model under the host's own patches for slices of weights, with what H writes for a prompt."""
    clone = model.clone()
    for hypernet, c in conditionings_of or ((eraser, None),):
        for layer, factors in zip(hypernet.hypernet.config.layers, hypernet.hypernet(c.unsqueeze(0), 300), strict=True):
            key = (f"{PREFIX}{layer.name}.weight", (0, layer.start, layer.outputs))
            clone.add_patches({key: ("diff", (factors.B[0] @ factors.A[0],))})
    return clone


def closely(found, expected, base):
    effect = (expected - base).abs().max()
    rounding = torch.finfo(torch.float32).eps * expected.abs().max()
    return effect > 0 and (found - expected).abs().max() <= 1e-4 * effect + rounding


def run(model, erased, positive, negative, **options):
    with noted_calls(erased) as (clone, calls):
        sample(clone, positive, negative, **options)
    return calls


# The table


def test_every_family_of_the_table_is_tried_here_or_with_the_unets():
    assert {family.key for family in FAMILIES} == {key_of(name) for name in NAMES} | {"sd15", "sd20", "sdxl"}


def test_a_family_is_told_from_its_classes(name, model):
    assert recognise(model.model).key == key_of(name)


def test_the_targets_are_there_with_their_output_rows(name, model):
    layers = target_layers(model.model, recognise(model.model))
    assert {layer.name: (layer.start, layer.outputs, layer.features) for layer in layers} == INSTANCES[name].rows
    for layer in layers:
        weight = model.model.diffusion_model.get_submodule(layer.name).weight
        assert tuple(weight.shape) == (layer.features, layer.inputs)


@pytest.mark.parametrize("name", ["flux", "flux2", "chroma", "sd3", "lumina2", "lumina2-z_image"])
def test_the_rows_of_fused_layers_are_their_values(name):
    """With all values zero, what attends to what shows no more: queries may be anything."""
    model = instance(name)
    fused = [layer for layer in target_layers(model.model, recognise(model.model)) if layer.outputs != layer.features]
    modules = [model.model.diffusion_model.get_submodule(layer.name) for layer in fused]
    (call, *_) = run(model, model, prompt(name, 1), prompt(name, 3), steps=1)

    def other_queries_matter():
        before = replay(model, call)
        for layer, module in zip(fused, modules, strict=True):
            module.weight[: layer.inputs] = torch.randn(layer.inputs, layer.inputs, generator=seeded(9))
        return not torch.equal(replay(model, call), before)

    assert other_queries_matter()
    for layer, module in zip(fused, modules, strict=True):
        module.weight[layer.rows] = 0
        if module.bias is not None:
            module.bias[layer.rows] = 0
    assert not other_queries_matter()


def test_flux_1_has_the_papers_95_layers():
    sizes = _known_sizes(hidden_size=3072, num_heads=24, axes_dim=[16, 56, 56], depth=19, depth_single_blocks=38)
    with torch.device("meta"):
        network = Flux(**sizes, device="meta", operations=comfy.ops.disable_weight_init)
    layers = target_layers(SimpleNamespace(diffusion_model=network), family_by_key("flux"))
    assert len(layers) == 95
    assert {(layer.inputs, layer.outputs) for layer in layers} == {(3072, 3072)}
    fused = {(layer.rows.start, layer.rows.stop, layer.features) for layer in layers if layer.start}
    assert fused == {(6144, 9216, 9216), (6144, 9216, 21504)}


def _known_sizes(**changes):
    sizes = {**INSTANCES["flux"].network, **changes}
    return {name: value for name, value in sizes.items() if name in FluxParams.__dataclass_fields__}


def test_models_of_other_kinds_are_refused_with_a_list_of_what_is_supported():
    strange = type("LTXV9", (), {})()
    with pytest.raises(UnsupportedModelError) as refusal:
        recognise(strange)
    assert all(family.title in str(refusal.value) for family in FAMILIES)


# Erasing


@pytest.mark.parametrize("pictures", [1, 2])
def test_rows_follow_the_hosts_own_patch_and_unconditional_rows_are_the_base(name, model, eraser, pictures):
    a, b, negative = (prompt(name, seed) for seed in (1, 2, 3))
    before = sample(model, a + b, negative)
    calls = run(model, apply_erasure(model, eraser), a + b, negative, pictures=pictures)
    assert calls
    for call in calls:
        base = replay(model, call)
        for conditioning in (a, b):
            rows = reads(call, conditioning)
            assert rows.sum() == pictures
            patched = with_offset_patches(model, None, (eraser, driven_by(name, conditioning)))
            assert closely(call.output[rows], replay(patched, call)[rows], base[rows])
        rows = reads(call, negative)
        assert rows.sum() == pictures
        assert torch.equal(call.output[rows], base[rows])
    assert torch.equal(sample(model, a + b, negative), before)


def test_without_guidance_the_delta_is_on_for_the_whole_sampling(name, model, eraser):
    a, negative = prompt(name, 1), prompt(name, 3)
    calls = run(model, apply_erasure(model, eraser), a, negative, cfg=1.0, steps=2)
    assert [reads(call, a).tolist() for call in calls] == [[True, True]] * 2
    patched = with_offset_patches(model, None, (eraser, driven_by(name, a)))
    for call in calls:
        assert closely(call.output, replay(patched, call), replay(model, call))


def test_the_exported_lora_loads_and_does_the_same(name, model, eraser):
    a, negative = prompt(name, 1), prompt(name, 3)
    lora = to_lora(eraser, driven_by(name, a), "a cat")
    (call,) = run(model, apply_erasure(model, eraser), a, negative, steps=1)
    rows, base = reads(call, a), replay(model, call)
    with_lora = merged(model, lora)
    assert len(with_lora.patches) == len(eraser.hypernet.config.layers), "core's loader knows every key"
    assert closely(call.output[rows], replay(with_lora, call)[rows], base[rows])


@pytest.mark.parametrize("name", ["flux", "lumina2"], indirect=True)
@pytest.mark.parametrize("second", ["another", "the same"])
def test_several_hypernets_add_up(name, model, eraser, second):
    a, negative = prompt(name, 1), prompt(name, 3)
    other = hypernet(name, model, seed=7) if second == "another" else eraser
    (call,) = run(model, apply_erasure(apply_erasure(model, eraser), other), a, negative, steps=1)
    rows, base, c = reads(call, a), replay(model, call), driven_by(name, a)
    both = with_offset_patches(model, None, (eraser, c), (other, c))
    assert closely(call.output[rows], replay(both, call)[rows], base[rows])
    once = with_offset_patches(model, None, (eraser, c))
    assert not closely(call.output[rows], replay(once, call)[rows], base[rows])


@pytest.mark.parametrize("name", ["flux", "chroma"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_of_lower_precision_is_patched_alike(name, dtype):
    model = instance(name, dtype=dtype)
    eraser, a, negative = hypernet(name, model), prompt(name, 1), prompt(name, 3)
    (call,) = run(model, apply_erasure(model, eraser), a, negative, steps=1)
    rows, base = reads(call, a), replay(model, call)
    patched = with_offset_patches(model, None, (eraser, driven_by(name, a)))
    effect = (replay(patched, call) - base)[rows].abs().max()
    # The merged weights are rounded to the storage type, the dynamic delta is not.
    assert (call.output - replay(patched, call))[rows].abs().max() < 0.1 * effect
    assert torch.equal(call.output[~rows], base[~rows])


def test_a_hypernet_of_another_family_is_refused_by_name():
    flux, sd = instance("flux"), tiny_model("sd15")
    message = r"trained for Flux\.1, but the model is Stable Diffusion 1\.x. Connect a Flux\.1 model"
    with pytest.raises(HypernetFileError, match=message):
        apply_erasure(sd, hypernet("flux", flux))
    with pytest.raises(HypernetFileError, match=r"trained for Flux\.1, but the model is Chroma"):
        apply_erasure(instance("chroma"), hypernet("flux", flux))


def test_a_hypernet_for_other_rows_of_a_layer_is_refused(tmp_path):
    flux = instance("flux")
    eraser = hypernet("flux", flux)
    layers = eraser.hypernet.config.layers
    keys = tuple(replace(layer, start=32) if "qkv" in layer.name else layer for layer in layers)
    network = Hypernet(replace(eraser.hypernet.config, layers=keys))
    message = r"is 32 to 32 \(rows 64 to 96 of 96\) in the model and 32 to 32 \(rows 32 to 64 of 96\) in the hypernet"
    with pytest.raises(HypernetFileError, match=message):
        apply_erasure(flux, replace(eraser, hypernet=network))


# What drives H


def test_a_prompt_without_its_embedding_runs_the_base(name, model, eraser):
    a, negative = prompt(name, 1), prompt(name, 3)
    zeroed = nodes.ConditioningZeroOut().zero_out(a)[0]
    assert torch.equal(sample(apply_erasure(model, eraser), zeroed, negative), sample(model, zeroed, negative))


def tokens(states, attention_mask=None):
    return mean_of_tokens(states, attention_mask)


def test_the_mean_is_over_valid_tokens():
    states = torch.randn(1, 6, CONTEXT, generator=seeded(1))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(tokens(states, attention_mask=mask), tokens(states[:, :4]))
    filled_up = torch.cat([states, torch.zeros(1, 500, CONTEXT)], dim=1)
    torch.testing.assert_close(tokens(filled_up), tokens(states))
    assert not torch.equal(tokens(states), tokens(states[:, :4]))


def test_a_token_a_thousand_times_as_large_does_not_hide_the_others():
    states = torch.randn(1, 6, CONTEXT, generator=seeded(1))
    large = states.clone()
    large[0, 0] *= 1000
    torch.testing.assert_close(tokens(large), tokens(states))
    torch.testing.assert_close(tokens(states * 0.01), tokens(states))


def test_joined_prompts_count_with_all_their_tokens():
    states = torch.randn(1, 6, CONTEXT, generator=seeded(1))
    more = torch.randn(1, 6, CONTEXT, generator=seeded(2))
    first = [[states, {"pooled_output": None, "attention_mask": torch.ones(1, 6)}]]
    ((both, entry),) = nodes.ConditioningConcat().concat(first, [[more, {}]])[0]
    torch.testing.assert_close(tokens(both, entry["attention_mask"]), tokens(both))


def test_a_prompt_of_zeros_has_no_embedding():
    assert driving_embeddings({"cross_attn": torch.zeros(1, 6, CONTEXT)}, TOKENS) == [None]


def test_the_detector_scores_the_embedding_that_drives_h(name, model, eraser):
    a, b = prompt(name, 1), prompt(name, 2)
    gated = replace(eraser, detector=detector_of([driven_by(name, a)], [driven_by(name, b)]))
    (one,), (other,) = detect(gated, a), detect(gated, b)
    assert (one.erased, round(one.score, 3)) == (True, 2.0)
    assert not other.erased


# Training


class FamilyClip:
    """A CLIP without an encoder: each text has its own random conditioning, language models' of several lengths."""

    def __init__(self, name):
        self.name = name

    def clone(self):
        return self

    def clip_layer(self, layer):
        """As in encoders that have no such choice."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return prompt(self.name, seed, tokens=8 if INSTANCES[self.name].pooled else 6 + seed % 3)


SMALL = replace(TRAINING, steps=1, batch=4, guidance=3.5)


def request(folder, **changes):
    settings = replace(SMALL, **changes)
    return Request(
        "cat -> tree", "", folder / "models", "eraser", folder / "ck", settings, checkpoint_every=0, preview_every=1
    )


def test_a_family_is_trained_saved_loaded_applied_and_exported(name, model, tmp_path):
    pictures = []

    def report(stage, done, total, picture=None, history=None, note=None):
        pictures.extend([] if picture is None else [picture])

    wish = replace(request(tmp_path), decode=decoder(model, None))
    outcome = train_erasure(model, FamilyClip(name), wish, report)
    assert len(outcome.losses) == 1
    assert len(pictures) == 1
    loaded = load(outcome.path)
    assert loaded.record.family == key_of(name)
    assert loaded.record.embedding == (POOLED if INSTANCES[name].pooled else TOKENS)
    assert loaded.hypernet.config.layers == target_layers(model.model, recognise(model.model))
    assert any(bool(weight.any()) for weight in loaded.hypernet.right.parameters()), "a step was made"
    cat, negative = FamilyClip(name).encode_from_tokens_scheduled("cat"), prompt(name, 3)
    erased = sample(apply_erasure(model, loaded, gate=False), cat, negative)
    assert not torch.equal(erased, sample(model, cat, negative))
    ungated = replace(loaded, detector=None)
    c = encode(FamilyClip(name), "cat", loaded.record.embedding).c
    assert len(merged(model, to_lora(ungated, c, "cat")).patches) == len(loaded.hypernet.config.layers)


@pytest.mark.parametrize("name", ["flux", "wan"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_base_of_lower_precision_is_trained_on(name, dtype, tmp_path):
    outcome = train_erasure(instance(name, dtype=dtype), FamilyClip(name), request(tmp_path), lambda *_, **__: None)
    assert all(math.isfinite(loss) for loss in outcome.losses)
    assert any(bool(weight.any()) for weight in outcome.eraser.hypernet.right.parameters())


@pytest.mark.parametrize("name", ["flux", "qwen_image"], indirect=True)
def test_training_lowers_the_loss(name, model, tmp_path):
    longer = {"steps": 30, "batch": 8, "hidden": 32, "learning_rate": 3e-3, "retain_weight": 0.1, "sampler_steps": 1}
    wish = request(tmp_path, **longer, kept_steps=1, watch_every=30)
    losses = train_erasure(model, FamilyClip(name), replace(wish, preview_every=0), lambda *_, **__: None).losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def draw(frozen, name, texts):
    """Noisy latents and conds for some texts: (z, sigma, c, conds)."""
    prompts = [encode(FamilyClip(name), text, frozen.family.embedding) for text in texts]
    z = frozen.noise(len(texts), 128, 128, seeded(1))
    sigma = torch.linspace(0.9, 0.4, len(texts))
    return z, sigma, torch.stack([each.c for each in prompts]), [frozen.model_conds(each, z, 3.5) for each in prompts]


def gradients(model, name, eraser, checkpointing):
    """Gradients of the mean squared prediction on H's parameters, and the times that the last block ran."""
    network = Hypernet(eraser.hypernet.config)
    network.load_state_dict({key: weight.clone() for key, weight in eraser.hypernet.state_dict().items()})
    frozen = FrozenModel(model, checkpointing)
    frozen.load()
    z, sigma, c, conds = draw(frozen, name, ["cat", "tree", "a dog"])
    ran = []
    block = frozen.blocks[-1]  # of those before the first target layer no gradient is wanted
    block_type = type(block)
    original = block_type.forward
    hook = next(m for m in block.modules() if hasattr(m, "in_features")).register_forward_pre_hook(
        lambda *_: ran.append(1)
    )
    with differentiable():
        prediction = frozen.predict(z, sigma, conds, network(c, 150))
        found = torch.autograd.grad(prediction.square().mean(), list(network.parameters()))
    hook.remove()
    assert block_type.forward is original
    assert overridden(frozen.patcher) == []
    return found, len(ran)


def test_checkpointed_gradients_equal_plain_ones(name, model, eraser):
    with torch.inference_mode(False), torch.enable_grad():
        plain, once = gradients(model, name, eraser, False)
        rerun, twice = gradients(model, name, eraser, True)
    assert twice == 2 * once, "with checkpointing a block runs again for backward"
    assert max(gradient.abs().max() for gradient in plain) > 1e-4
    for one, other in zip(plain, rerun, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["flux"], indirect=True)
def test_gradients_are_those_of_small_steps(name, model, eraser):
    """Against differences, which know nothing of saved tensors that were overwritten."""
    with torch.inference_mode(False), torch.enable_grad():
        frozen = FrozenModel(model, True)
        frozen.load()
        z, sigma, c, conds = draw(frozen, name, ["cat", "tree"])
        network = Hypernet(eraser.hypernet.config)
        network.load_state_dict({key: weight.clone() for key, weight in eraser.hypernet.state_dict().items()})
        fixed = [factors._replace(B=factors.B.detach()) for factors in network(c, 300)]

        def loss(change):
            layers = [f._replace(A=f.A.detach(), B=f.B + d) for f, d in zip(fixed, change, strict=True)]
            return frozen.predict(z, sigma, conds, layers).square().mean()

        change = torch.zeros(len(fixed), *fixed[0].B.shape, requires_grad=True)
        with differentiable():
            (gradient,) = torch.autograd.grad(loss(change), [change])
            along = gradient / gradient.norm()
            with torch.no_grad():
                difference = (loss(along * 0.01) - loss(along * -0.01)) / 0.02
    torch.testing.assert_close(difference, gradient.norm(), rtol=0.01, atol=0)


@pytest.mark.parametrize("missing", ["_norms_that_copy", "_on_copies"])
def test_both_kinds_of_copies_are_needed(missing, monkeypatch):
    """Proof that the comparison above can fail: without either copy it raises, or the gradients are others."""
    model = instance("flux")
    eraser = hypernet("flux", model)
    with torch.inference_mode(False), torch.enable_grad():
        right, _ = gradients(model, "flux", eraser, True)
        without = {"_norms_that_copy": lambda blocks: [], "_on_copies": lambda forward, *a, **k: forward(*a, **k)}
        monkeypatch.setattr(blocks, missing, without[missing])
        try:
            wrong, _ = gradients(model, "flux", eraser, True)
        except RuntimeError as error:
            assert "inplace operation" in str(error)
            return
    assert not all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(right, wrong, strict=True))


def test_a_prediction_is_the_velocity_that_the_network_gives(name, model):
    frozen = FrozenModel(model)
    frozen.load()
    z, sigma, _, conds = draw(frozen, name, ["cat"])
    found = frozen.predict(z, sigma, conds)
    given = {key: cond.cond for key, cond in conds[0].items()}
    t = model.get_model_object("model_sampling").timestep(sigma).float()
    velocity = frozen.network(z, t, context=given.pop("c_crossattn"), transformer_options={}, **given)
    torch.testing.assert_close(found, velocity, rtol=1e-3, atol=1e-3)


def test_prompts_of_other_lengths_are_predicted_as_if_alone(name, model, eraser):
    frozen = FrozenModel(model)
    frozen.load()
    texts = ["cat", "tree", "a dog", "a house", "rain"]
    z, sigma, c, conds = draw(frozen, name, texts)
    layers = eraser.hypernet(c, 300)
    together = frozen.predict(z, sigma, conds, layers)
    for row in range(len(texts)):
        own = [type(factors)(factors.A[row : row + 1], factors.B[row : row + 1]) for factors in layers]
        alone = frozen.predict(z[row : row + 1], sigma[row : row + 1], [conds[row]], own)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["flux", "sd3"], indirect=True)
def test_distilled_guidance_goes_into_the_network_and_not_into_cfg(name, model, monkeypatch):
    frozen = FrozenModel(model)
    cat, empty = (encode(FamilyClip(name), text) for text in ("cat", ""))
    seen = []
    set_cfg = comfy.samplers.CFGGuider.set_cfg
    monkeypatch.setattr(comfy.samplers.CFGGuider, "set_cfg", lambda self, cfg: (seen.append(cfg), set_cfg(self, cfg)))
    frozen.rollout(cat, empty, frozen.noise(1, 64, 64, seeded(0)), 2, 5.5, {1})
    conds = frozen.model_conds(cat, frozen.noise(1, 64, 64, seeded(0)), 5.5)
    if name == "flux":
        assert seen == [1.0]
        assert conds["guidance"].cond.tolist() == [5.5]
    else:
        assert seen == [5.5]
        assert "guidance" not in conds


def test_latents_have_the_familys_shape(name, model):
    latent = model.model.latent_format
    noise = FrozenModel(model).noise(2, 128, 64, seeded(0))
    ratio = 16 if name == "flux2" else 8
    frames = (1,) if latent.latent_dimensions == 3 else ()
    assert noise.shape == (2, latent.latent_channels, *frames, 128 // ratio, 64 // ratio)


@pytest.mark.parametrize("name", ["flux"], indirect=True)
def test_an_encoder_without_a_pooled_vector_is_refused_for_a_family_that_has_one(name, model, tmp_path):
    with pytest.raises(MissingEmbeddingError, match=r"for Flux\.1 and Stable Diffusion 3 it must include CLIP-L"):
        train_erasure(model, FamilyClip("chroma"), request(tmp_path), lambda *_, **__: None)


@pytest.mark.parametrize("name", ["flux"], indirect=True)
def test_the_memory_is_announced_before_training(name, model, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train_erasure(model, FamilyClip(name), request(tmp_path), lambda *_, **__: None)
    assert "Training takes roughly" in caplog.text
    frozen, plain = (FrozenModel(model, checkpointing=keep) for keep in (True, False))
    network = Hypernet(hypernet(name, model).hypernet.config)
    weights = sum(value.numel() * value.element_size() for value in model.model.state_dict().values())
    sparing, whole = (
        memory_of(kind, network, replace(SMALL, objective="direct", checkpointing=kind.checkpointing), 8)
        for kind in (frozen, plain)
    )
    assert sparing[0] == weights
    assert sparing[1] == 16 * sum(parameter.numel() for parameter in network.parameters())
    assert sparing[2] <= whole[2]

"""Training on a tiny instance of every family: a whole run, the frozen model's predictions and its gradients."""

import math
from dataclasses import replace

import comfy.samplers
import pytest
import torch
from families import INSTANCES, NAMES, FamilyClip, eraser_for, instance, key_of, prompt
from runs import Reports
from tiny import TRAINING, merged, overridden, sample, seeded

from unhype.hypernet.factors import select
from unhype.hypernet.families import POOLED, TOKENS
from unhype.hypernet.files import load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.network import Hypernet
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.targets import projection_layers, recognise, target_layers
from unhype.training import blocks
from unhype.training.encode import MissingEmbeddingError, encode
from unhype.training.frozen import FrozenModel, differentiable
from unhype.training.memory import memory_line, memory_of
from unhype.training.plan import Request
from unhype.training.run import train_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

SMALL = replace(TRAINING, steps=1, batch=4, guidance=3.5)


@pytest.fixture(params=NAMES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def shared(name):
    """A tiny model, which has the same weights when all of its tests are done."""
    with torch.inference_mode():
        model = instance(name)
        weights = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    yield model
    assert all(torch.equal(weight, weights[key]) for key, weight in model.model.state_dict().items())


@pytest.fixture
def model(shared):
    yield shared
    assert overridden(shared) == []


@pytest.fixture
def eraser(name, model):
    return eraser_for(name, model)


def request(folder, **changes):
    settings = replace(SMALL, **changes)
    return Request("cat -> tree", "", folder / "models", "eraser", folder / "ck", settings, checkpoint_every=0)


# Whole runs


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_a_family_is_trained_previewed_saved_loaded_applied_and_exported(name, model, objective, tmp_path):
    latents, reports = [], Reports()

    def decode(z):
        latents.append(z)
        return torch.zeros(8, 8, 3)

    wish = replace(request(tmp_path, objective=objective), decode=decode, preview_every=1)
    outcome = train_erasure(model, FamilyClip(name), wish, reports)
    assert (len(outcome.losses), len(reports.pictures)) == (1, 1)
    assert any(note.startswith("Memory: about ") for note in reports.notes)
    assert not torch.equal(latents[0], latents[2]), "the preview of the erased prompt, before and after"
    loaded = load(outcome.path)
    assert loaded.record.family == key_of(name)
    assert loaded.record.embedding == (POOLED if INSTANCES[name].pooled else TOKENS)
    layers_of = projection_layers if objective == "attention" else target_layers
    assert loaded.hypernet.config.layers == layers_of(model.model, recognise(model.model))
    assert any(bool(weight.any()) for weight in loaded.hypernet.right.parameters()), "a step was made"
    cat, negative = FamilyClip(name).encode_from_tokens_scheduled("cat"), prompt(name, 3)
    erased = sample(apply_erasure(model, loaded, gate=False), cat, negative, steps=1)
    assert not torch.equal(erased, sample(model, cat, negative, steps=1))
    c = encode(FamilyClip(name), "cat", loaded.record.embedding).c
    lora = to_lora(replace(loaded, detector=None), c, "cat")
    assert len(merged(model, lora).patches) == len(loaded.hypernet.config.layers)


@pytest.mark.parametrize(("family", "dtype"), [("flux", torch.bfloat16), ("wan", torch.float8_e4m3fn)], ids=str)
def test_a_base_of_lower_precision_is_trained_on(family, dtype, tmp_path):
    outcome = train_erasure(instance(family, dtype=dtype), FamilyClip(family), request(tmp_path), Reports())
    assert all(math.isfinite(loss) for loss in outcome.losses)
    assert any(bool(weight.any()) for weight in outcome.eraser.hypernet.right.parameters())


@pytest.mark.parametrize("name", ["flux", "qwen_image"], indirect=True)
def test_training_lowers_the_loss(name, model, tmp_path):
    longer = {"steps": 30, "batch": 8, "hidden": 32, "learning_rate": 3e-3, "retain_weight": 0.1, "sampler_steps": 1}
    wish = request(tmp_path, **longer, kept_steps=1, watch_every=30, objective="direct")
    losses = train_erasure(model, FamilyClip(name), wish, Reports()).losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("name", ["flux"], indirect=True)
def test_an_encoder_without_a_pooled_embedding_is_refused_for_a_family_that_has_one(name, model, tmp_path):
    with pytest.raises(MissingEmbeddingError, match=r"for Flux\.1 and Stable Diffusion 3 it must include CLIP-L"):
        train_erasure(model, FamilyClip("chroma"), request(tmp_path), Reports())


@pytest.mark.parametrize("name", ["flux"], indirect=True)
def test_the_memory_line_counts_weights_parameters_and_a_step(name, model, eraser, caplog):
    def memory(checkpointing):
        frozen, network = FrozenModel(model, checkpointing), Hypernet(eraser.hypernet.config)
        with caplog.at_level("INFO"):
            settings = replace(SMALL, objective="direct", checkpointing=checkpointing)
            line = memory_line(memory_of(frozen, network, settings, 8), settings)
        record = caplog.records[-1]
        assert "Training takes roughly" in record.getMessage()
        total, *parts, samples = record.args
        assert (samples, line.startswith(f"Memory: about {total:.1f} GB")) == ("4 pictures", True)
        assert total == pytest.approx(sum(parts))
        return [part * 1e9 for part in parts], network

    (weights, trained, step), network = memory(True)
    assert weights == pytest.approx(sum(v.numel() * v.element_size() for v in model.model.state_dict().values()))
    assert trained == pytest.approx(16 * sum(parameter.numel() for parameter in network.parameters()))
    assert 0 < step <= memory(False)[0][2]


# The frozen model's predictions


def loaded(model, checkpointing=False):
    frozen = FrozenModel(model, checkpointing)
    frozen.load()
    return frozen


def inputs(frozen, name, texts):
    """Noisy latents and conds for some texts: (z, sigma, c, conds)."""
    prompts = [encode(FamilyClip(name), text, frozen.family.embedding) for text in texts]
    z = frozen.noise(len(texts), 64, 64, seeded(1))
    sigma = torch.linspace(0.9, 0.4, len(texts))
    return z, sigma, torch.stack([each.c for each in prompts]), [frozen.model_conds(each, z, 3.5) for each in prompts]


def trainable(eraser):
    """A copy of an eraser's network whose parameters take gradients."""
    network = Hypernet(eraser.hypernet.config)
    network.load_state_dict({key: weight.clone() for key, weight in eraser.hypernet.state_dict().items()})
    return network


def gradients(model, name, eraser, checkpointing):
    """Gradients of the mean squared prediction on H's parameters, and how often the last block ran."""
    network, frozen, ran = trainable(eraser), loaded(model, checkpointing), []
    z, sigma, c, conds = inputs(frozen, name, ["cat", "tree", "a dog"])
    block = frozen.blocks[-1]  # those before the first target layer need no gradients
    layer = next(module for module in block.modules() if hasattr(module, "in_features"))
    hook = layer.register_forward_pre_hook(lambda *_: ran.append(1))
    with differentiable():
        prediction = frozen.predict(z, sigma, conds, network(c, 150))
        found = torch.autograd.grad(prediction.square().mean(), list(network.parameters()))
    hook.remove()
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
    """Against differences, which don't depend on saved tensors that a block may overwrite."""
    with torch.inference_mode(False), torch.enable_grad():
        frozen = loaded(model, True)
        z, sigma, c, conds = inputs(frozen, name, ["cat", "tree"])
        with torch.no_grad():
            generated = trainable(eraser)(c, 300)

        def loss(change):
            layers = [f._replace(B=f.B + d) for f, d in zip(generated, change, strict=True)]
            return frozen.predict(z, sigma, conds, layers).square().mean()

        change = torch.zeros(len(generated), *generated[0].B.shape, requires_grad=True)
        with differentiable():
            (gradient,) = torch.autograd.grad(loss(change), [change])
            along = gradient / gradient.norm()
            with torch.no_grad():
                difference = (loss(along * 0.01) - loss(along * -0.01)) / 0.02
    torch.testing.assert_close(difference, gradient.norm(), rtol=0.01, atol=0)


@pytest.mark.parametrize("missing", ["_norms_that_copy", "_on_copies"])
@pytest.mark.parametrize("name", ["flux"], indirect=True)
def test_both_kinds_of_copies_are_needed(name, model, eraser, missing, monkeypatch):
    """Proof that the comparison above can fail: without either copy it raises, or the gradients are others."""
    with torch.inference_mode(False), torch.enable_grad():
        right, _ = gradients(model, name, eraser, True)
        without = {"_norms_that_copy": lambda blocks: [], "_on_copies": lambda forward, *a, **k: forward(*a, **k)}
        monkeypatch.setattr(blocks, missing, without[missing])
        try:
            wrong, _ = gradients(model, name, eraser, True)
        except RuntimeError as error:
            assert "inplace operation" in str(error)
            return
    assert not all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(right, wrong, strict=True))


def test_a_prediction_is_the_velocity_of_the_network(name, model):
    frozen = loaded(model)
    z, sigma, _, conds = inputs(frozen, name, ["cat"])
    found = frozen.predict(z, sigma, conds)
    given = {key: cond.cond for key, cond in conds[0].items()}
    t = model.get_model_object("model_sampling").timestep(sigma).float()
    velocity = frozen.network(z, t, context=given.pop("c_crossattn"), transformer_options={}, **given)
    torch.testing.assert_close(found, velocity, rtol=1e-3, atol=1e-3)


def test_prompts_of_other_lengths_are_predicted_as_if_alone(name, model, eraser):
    frozen = loaded(model)
    texts = ["cat", "tree", "a dog", "a house", "rain"]
    z, sigma, c, conds = inputs(frozen, name, texts)
    layers = eraser.hypernet(c, 300)
    together = frozen.predict(z, sigma, conds, layers)
    for row in range(len(texts)):
        only = slice(row, row + 1)
        alone = frozen.predict(z[only], sigma[only], conds[only], select(layers, only))
        torch.testing.assert_close(together[only], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["flux", "flux-schnell", "sd3"], indirect=True)
def test_distilled_guidance_goes_into_the_network_and_not_into_cfg(name, model, monkeypatch):
    frozen = FrozenModel(model)
    cat, empty = (encode(FamilyClip(name), text) for text in ("cat", ""))
    scales = []
    set_cfg = comfy.samplers.CFGGuider.set_cfg
    monkeypatch.setattr(comfy.samplers.CFGGuider, "set_cfg", lambda self, cfg: (scales.append(cfg), set_cfg(self, cfg)))
    frozen.rollout(cat, empty, frozen.noise(1, 64, 64, seeded(0)), 2, 5.5, {1})
    conds = frozen.model_conds(cat, frozen.noise(1, 64, 64, seeded(0)), 5.5)
    if name == "flux":
        assert scales == [1.0]
        assert conds["guidance"].cond.tolist() == [5.5]
    else:
        assert scales == [5.5]
        assert "guidance" not in conds or conds["guidance"].cond.tolist() != [5.5]


def test_latents_have_the_familys_shape(name, model):
    latent = model.model.latent_format
    noise = FrozenModel(model).noise(2, 128, 64, seeded(0))
    ratio = 16 if name == "flux2" else 8
    frames = (1,) if latent.latent_dimensions == 3 else ()
    assert noise.shape == (2, latent.latent_channels, *frames, 128 // ratio, 64 // ratio)

"""Whole runs on ComfyUI's models: what H learns, and what decides a run."""

import json

import pytest
import torch
from core_parts import TinyClip, WordClip, embedding, prompt
from runs import go, out_of_memory, request_in, same_weights
from safetensors import safe_open
from tiny import FAMILIES, sample, tiny_model

from unhype.hypernet.files import load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.patch import apply_erasure
from unhype.training import run
from unhype.training.frozen import FrozenModel
from unhype.training.retention import Retention
from unhype.training.settings import OBJECTIVES
from unhype.training.tasks.samples import diffusion_samples

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

# Enough to learn by heart the few latents of the samples, all of one noise level.
LEARNING = {
    "steps": 40,
    "batch": 8,
    "attention_batch": 16,
    "hidden": 32,
    "learning_rate": 1e-2,
    "retain_weight": 0.1,
    "watch_every": 40,
    "rollouts": 4,
    "sampler_steps": 1,
    "kept_steps": 1,
    "checkpointing": False,
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls(model, ask, objective):
    losses = go(model, ask(objective=objective, **LEARNING), clip=WordClip()).losses
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_prediction_for_an_erased_prompt_becomes_that_for_its_mapping(model, ask, monkeypatch):
    made = []

    def noting(frozen, phrases, c, encoded, *others):
        made.append((diffusion_samples(frozen, phrases, c, encoded, *others), phrases, encoded))
        return made[0][0]

    monkeypatch.setattr(run, "diffusion_samples", noting)
    eraser = go(model, ask(objective="direct", **LEARNING)).eraser
    ((samples, phrases, encoded),) = made
    assert len(samples.phrase) == 8
    frozen = FrozenModel(model)
    frozen.load()
    c = torch.stack([encoded[phrases[int(n)].prompt].c for n in samples.phrase])
    conds = [samples.conds[int(n)] for n in samples.phrase]
    erased = frozen.predict(samples.z, samples.sigma, conds, eraser.hypernet(c, 300))
    assert (erased - samples.e_m).square().mean() < 0.5 * (samples.e_p - samples.e_m).square().mean()


@pytest.mark.parametrize("objective", ["attention", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_unet_is_trained_saved_applied_and_exported(ask, family, objective):
    model = tiny_model(family)
    outcome = go(model, ask(steps=1, objective=objective))
    loaded = load(outcome.path)
    assert loaded.record.family == family
    assert same_weights(loaded, outcome.eraser)
    assert loaded.record.training.settings["objective"] == objective
    cat = TinyClip().encode_from_tokens_scheduled("cat")
    erased = apply_erasure(model, loaded, gate=False)
    assert not torch.equal(sample(erased, cat, prompt(3)), sample(model, cat, prompt(3)))
    exported = to_lora(loaded, embedding(cat), "cat")
    assert {weight.dtype for weight in exported.values()} == {torch.float32}


@pytest.mark.parametrize("objective", ["attention", "direct"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_of_lower_precision_is_trained_on(ask, dtype, objective):
    outcome = go(tiny_model(dtype=dtype), ask(steps=2, objective=objective))
    assert all(loss < 100 for loss in outcome.losses)
    assert {weight.dtype for weight in outcome.eraser.hypernet.parameters()} == {torch.float32}


def test_the_attention_objective_never_runs_the_model(model, ask, monkeypatch):
    """But for previews: no pictures, no diffusion steps."""
    for name in ("predict", "rollout", "model_conds"):
        monkeypatch.setattr(FrozenModel, name, out_of_memory)
    assert go(model, ask()).reason == "finished"


# What decides a run


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_a_seed_decides_every_number_of_the_file(model, tmp_path, objective):
    def made(name, model, **changes):
        return go(model, request_in(tmp_path / name, objective=objective, **changes))

    def content(outcome):
        """Tensors and metadata, less the time of day and how long it took."""
        with safe_open(outcome.path, framework="pt") as file:
            metadata = {key: value for key, value in file.metadata().items() if key != "modelspec.date"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        record = json.loads(metadata.pop("unhype.record"))
        del record["training"]["seconds"]
        return tensors, metadata, record

    torch.manual_seed(1)
    first = made("first", model)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    tensors, *described = content(made("again", tiny_model()))
    assert torch.equal(torch.get_rng_state(), before), "the global generator has no part in it and is left alone"
    expected, *own = content(first)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert described == own
    assert not same_weights(made("other", model, seed=1).eraser, first.eraser)


def test_length_and_watching_do_not_change_the_steps_themselves(model, ask):
    short = go(model, ask(name="short"))
    long = go(model, ask(name="long", steps=8, watch_every=2, resume=False))
    assert long.losses[:6] == short.losses


def test_an_early_stop_is_recorded(model, ask, monkeypatch):
    errors = iter([0.2, *[0.5] * 9])
    monkeypatch.setattr(Retention, "error", lambda *_: next(errors))
    outcome = go(model, ask(watch_every=1))
    training = outcome.eraser.record.training
    assert outcome.reason == training.stopped == "early"
    assert training.steps == 4
    assert outcome.path.is_file()

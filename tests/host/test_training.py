"""Whole training runs: every objective learns, and the seed decides every weight."""

import json

import pytest
import torch
from runs import go, out_of_memory, request_in, same_weights
from safetensors import safe_open
from tiny import FAMILIES, TinyClip, WordClip, embedding, prompt, sample, tiny_model

from unhype.hypernet.files import load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.patch import apply_erasure
from unhype.training import run
from unhype.training.frozen import FrozenModel
from unhype.training.settings import OBJECTIVES
from unhype.training.tasks.samples import diffusion_samples

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

# Enough to learn by heart the few latents of the samples, all of one noise level.
LEARNING = {
    "steps": 30,
    "batch": 4,
    "attention_batch": 16,
    "hidden": 32,
    "learning_rate": 1e-2,
    "retain_weight": 0.1,
    "watch_every": 30,
    "sampler_steps": 1,
    "kept_steps": 1,
    "checkpointing": False,
}


# Learning


@pytest.fixture(scope="module", params=OBJECTIVES)
def learned(request, tmp_path_factory):
    """The model, the outcome of a run, and the `DiffusionSamples` that it made, if it did."""
    model, made = tiny_model(), []

    def noted(*given):
        made.append(diffusion_samples(*given))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "diffusion_samples", noted)
        wish = request_in(tmp_path_factory.mktemp("learned"), objective=request.param, **LEARNING)
        return model, go(model, wish, clip=WordClip()), *made


def test_the_loss_of_every_objective_falls(learned):
    losses = learned[1].losses
    assert len(losses) == LEARNING["steps"]
    if learned[1].eraser.record.training.settings["objective"] == "attention":
        # In closed form it is low from the first step on; where nothing changes it would be 2/3.
        assert max(losses) < 0.2
    else:
        assert sum(losses[-8:]) < 0.6 * sum(losses[:8])


@pytest.mark.parametrize("learned", ["direct"], indirect=True)
def test_the_erased_prompt_gets_the_prediction_of_its_mapping(learned):
    model, outcome, samples = learned
    hypernet, frozen = outcome.eraser.hypernet, FrozenModel(model)
    frozen.load()
    layers = hypernet(samples.c[samples.phrase], hypernet.config.trajectory)
    erased = frozen.predict(samples.z, samples.sigma, [samples.conds[n] for n in samples.phrase.tolist()], layers)
    assert (erased - samples.e_m).square().mean() < 0.5 * (samples.e_p - samples.e_m).square().mean()


def test_the_attention_objective_never_calls_the_network(model, ask, monkeypatch):
    for name in ("predict", "rollout", "noise", "model_conds"):
        monkeypatch.setattr(FrozenModel, name, out_of_memory)
    assert go(model, ask()).reason == "finished"


@pytest.mark.parametrize("objective", ["attention", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_trained_saved_applied_and_exported(ask, family, objective):
    model = tiny_model(family)
    outcome = go(model, ask(steps=1, objective=objective))
    loaded = load(outcome.path)
    assert loaded.record.family == family
    assert same_weights(loaded, outcome.eraser)
    cat = TinyClip().encode_from_tokens_scheduled("cat")
    erased = apply_erasure(model, loaded, gate=False)
    assert not torch.equal(sample(erased, cat, prompt(3)), sample(model, cat, prompt(3)))
    exported = to_lora(loaded, embedding(TinyClip().encode_from_tokens_scheduled("a photo of a cat")), "cat")
    assert {weight.dtype for weight in exported.values()} == {torch.float32}


@pytest.mark.parametrize(("dtype", "objective"), [(torch.float16, "attention"), (torch.bfloat16, "direct")], ids=str)
def test_a_model_of_lower_precision_is_trained_on(ask, dtype, objective):
    outcome = go(tiny_model(dtype=dtype), ask(steps=2, objective=objective))
    assert all(loss < 100 for loss in outcome.losses)
    assert {weight.dtype for weight in outcome.eraser.hypernet.parameters()} == {torch.float32}


# What decides a run


@pytest.fixture(scope="module", params=["attention", "direct"])
def first(request, tmp_path_factory):
    """The outcome of a run after one global seed."""
    torch.manual_seed(1)
    return go(tiny_model(), request_in(tmp_path_factory.mktemp("first"), objective=request.param))


def content(outcome):
    """Tensors, metadata and record of a file, less the time of day and how long training took."""
    with safe_open(outcome.path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "modelspec.date"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
    record = json.loads(metadata.pop("unhype.record"))
    del record["training"]["seconds"]
    return tensors, metadata, record


def test_the_same_base_and_seed_give_the_same_file_whatever_the_global_seed_is(model, ask, first):
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = go(model, ask(objective=first.eraser.record.training.settings["objective"]))
    assert torch.equal(torch.get_rng_state(), before)
    (tensors, *texts), (expected, *expected_texts) = content(again), content(first)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert texts == expected_texts


def test_another_seed_draws_other_batches(model, ask, first):
    objective = first.eraser.record.training.settings["objective"]
    assert go(model, ask(objective=objective, seed=1, steps=1)).losses != first.losses[:1]


def test_length_and_watching_do_not_change_the_steps_themselves(model, ask):
    short, long = (go(model, ask(name=f"{steps}", steps=steps, watch_every=steps // 3)) for steps in (6, 9))
    assert long.losses[:6] == short.losses


def test_an_early_end_is_recorded(model, ask, monkeypatch):
    errors = iter([0.2, 0.5, 0.5, 0.5])
    monkeypatch.setattr("unhype.training.retention.Retention.error", lambda *_: next(errors, 0.5))
    outcome = go(model, ask(watch_every=1))
    training = load(outcome.path).record.training
    assert outcome.reason == training.stopped == "early"
    assert training.steps == 4
    assert training.retention_curve == [[1, 0.2], [2, 0.5], [3, 0.5], [4, 0.5]]

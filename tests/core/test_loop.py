"""The training loop: it learns, a seed decides it, and it stops before H leaks."""

import json
from dataclasses import replace

import pytest
import torch
from runs import TINY, go, out_of_memory, same_weights, small_state
from safetensors import safe_open
from tiny import FAMILIES, TinyClip, WordClip, embedding, prompt, sample, seeded, tiny_model

from unhype.hypernet.files import load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.patch import apply_erasure
from unhype.training import loop, material
from unhype.training.frozen import FrozenModel
from unhype.training.loop import Material, learning_rate, stops_early, train, train_step
from unhype.training.settings import OBJECTIVES, Settings
from unhype.training.tasks.samples import build_cache

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

# Enough to learn by heart the few latents that the cache holds, all of one noise level.
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
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls(model, ask, objective):
    losses = go(model, ask(objective=objective, checkpointing=False, **LEARNING), clip=WordClip()).losses
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_erased_prompt_gives_what_its_mapping_gives(model, ask, monkeypatch):
    made = []

    def build_and_note(frozen, phrases, encoded, conds, *others):
        made.append((build_cache(frozen, phrases, encoded, conds, *others), phrases, encoded, conds))
        return made[0][0]

    monkeypatch.setattr(material, "build_cache", build_and_note)
    eraser = go(model, ask(objective="direct", gamma=0.0, checkpointing=False, **LEARNING)).trained
    ((cache, phrases, encoded, conds),) = made
    assert len(cache) == 8
    frozen = FrozenModel(model)
    frozen.load()
    prompts = [phrases[int(index)].prompt for index in cache.phrase]
    layers = eraser.hypernet(torch.stack([encoded[text].c for text in prompts]), 300)
    erased = frozen.predict(cache.z, cache.sigma, [conds[text] for text in prompts], layers)
    assert (erased - cache.e_m).square().mean() < 0.5 * (cache.e_p - cache.e_m).square().mean()


@pytest.mark.parametrize("objective", ["attention", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_trained_saved_applied_and_exported(ask, family, objective):
    model = tiny_model(family)
    outcome = go(model, ask(steps=1, objective=objective))
    loaded = load(outcome.path)
    assert loaded.record.family == family
    assert same_weights(loaded, outcome.eraser)
    assert loaded.record.training["settings"]["objective"] == objective
    cat = TinyClip().encode_from_tokens_scheduled("cat")
    erased = apply_erasure(model, loaded, gate=False)
    assert not torch.equal(sample(erased, cat, prompt(3)), sample(model, cat, prompt(3)))
    exported = to_lora(replace(loaded, record=replace(loaded.record, dead_zone=0.0)), embedding(cat), "cat")
    assert {weight.dtype for weight in exported.values()} == {torch.float32}


@pytest.mark.parametrize("objective", ["attention", "direct"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_of_lower_precision_is_trained_on(ask, dtype, objective):
    outcome = go(tiny_model(dtype=dtype), ask(steps=2, objective=objective))
    assert all(loss < 100 for loss in outcome.losses)
    assert {weight.dtype for weight in outcome.eraser.hypernet.parameters()} == {torch.float32}


def test_the_attention_objective_runs_the_model_not_once(model, ask, monkeypatch):
    """But for previews: no pictures, no diffusion steps."""
    for name in ("predict", "rollout", "sample", "model_conds"):
        monkeypatch.setattr(FrozenModel, name, out_of_memory)
    assert go(model, ask()).reason == "finished"


# What decides a run


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_a_seed_decides_every_weight(model, ask, objective):
    first = go(model, ask(name="first", objective=objective)).trained
    again = go(tiny_model(), ask(name="again", objective=objective, resume=False)).trained
    assert same_weights(again, first)
    assert torch.equal(again.switch.weight, first.switch.weight)
    assert not same_weights(go(model, ask(name="other", objective=objective, seed=1)).eraser, first)


def test_two_people_with_the_same_base_and_seed_get_the_same_file(model, ask):
    def content(outcome):
        """Tensors and metadata, less the time of day and how long it took."""
        with safe_open(outcome.path, framework="pt") as file:
            metadata = {key: value for key, value in file.metadata().items() if key != "modelspec.date"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dict
        record = json.loads(metadata.pop("unhype.record"))
        del record["training"]["seconds"]
        return tensors, metadata, record

    first = content(go(model, replace(ask(), folder=ask().folder / "mine")))
    again = content(go(tiny_model(), replace(ask(), folder=ask().folder / "theirs")))
    assert again[0].keys() == first[0].keys()
    assert all(torch.equal(again[0][name], tensor) for name, tensor in first[0].items())
    assert again[1:] == first[1:]


def test_length_and_watching_do_not_change_the_steps_themselves(model, ask):
    short = go(model, ask(name="short"))
    long = go(model, ask(name="long", steps=8, watch_every=2))
    assert long.losses[:6] == short.losses


def test_a_global_seed_has_no_say_and_is_left_alone(model, ask):
    torch.manual_seed(1)
    first = go(model, ask(name="first")).trained
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same_weights(go(model, ask(name="again")).eraser, first)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loop_draws_the_same_batches_whatever_the_model_predicts(monkeypatch):
    """Only the generator of the run decides, so a resumed run sees what the first one would have seen."""
    seen = []
    state = small_state()
    state.step = 0

    def step(state, *_):
        seen.append(torch.rand(1, generator=state.generator).item())
        state.step += 1

    monkeypatch.setattr("unhype.training.loop.train_step", step)
    monkeypatch.setattr("unhype.training.loop.measure_drift", lambda *_: 0.0)
    nothing = Material(None, None, [], None, None)
    assert train(state, nothing, None, replace(TINY, steps=3), "cpu", lambda state: None) == "finished"
    assert seen == torch.rand(3, generator=seeded(0)).tolist()


# The learning rate


@pytest.mark.parametrize(("step", "share"), [(0, 1 / 20), (9, 1 / 2), (19, 1), (59, 1), (239, 1 / 2), (5999, 1 / 10)])
def test_the_learning_rate_warms_up_and_falls_the_same_however_long_a_run_is(step, share):
    for steps in (1, 200, 10_000):
        settings = Settings(learning_rate=0.5, steps=steps)
        assert learning_rate(settings, step) == pytest.approx(0.5 * share)


def test_each_step_is_made_at_its_own_learning_rate(monkeypatch):
    state = small_state()
    state.step = 4
    monkeypatch.setattr(loop, "_losses", lambda state, *_: (state.hypernet.left.bias.sum(), torch.tensor(0.0)))
    with torch.inference_mode(False), torch.enable_grad():
        train_step(state, None, None, TINY, "cpu")
    assert {group["lr"] for group in state.optimiser.param_groups} == {learning_rate(TINY, 4)}
    assert state.step == 5


# Leaks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], False),
        ([0.5, 0.9, 0.9], False),
        ([0.2, 0.4, 0.4, 0.4], True),
        ([0.2, 0.4, 0.25, 0.4], False),
        ([0.4, 0.2, 0.4, 0.4, 0.4], True),
        ([0.01, 0.09, 0.09, 0.09], False),
        ([0.4, 0.4, 0.4, 0.4, 0.4], False),
    ],
)
def test_leaking_is_a_lasting_rise_of_what_unseen_prompts_get(values, expected):
    assert stops_early(list(enumerate(values))) is expected


def test_a_leak_ends_the_run_and_is_recorded(model, ask, monkeypatch):
    drift = iter([0.2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr("unhype.training.loop.measure_drift", lambda *_: next(drift))
    outcome = go(model, ask(watch_every=1))
    assert outcome.reason == outcome.eraser.record.training["stopped"] == "leak"
    assert outcome.eraser.record.training["steps"] == 4
    assert outcome.path.is_file()

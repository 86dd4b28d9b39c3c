"""A whole training on tiny models, under inference mode as nodes run: it learns, stops, resumes and keeps its files."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.ops
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import (
    FAMILIES,
    POOLED,
    TOKENS,
    TRAINING,
    Call,
    TinyClip,
    WordClip,
    embedding,
    merged,
    overridden,
    prompt,
    replay,
    sample,
    seeded,
    tiny_hypernet,
    tiny_model,
)

from benchmarks.environment import ROOT
from unhype.hypernet.deadzone import is_silent
from unhype.hypernet.files import HypernetFileError, load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.patch import apply_erasure
from unhype.training import attention, checkpoint, loop, material, run
from unhype.training.cache import build_cache
from unhype.training.checkpoint import load_checkpoint, save_checkpoint
from unhype.training.frozen import EncodedPrompt, FrozenModel, MissingEmbeddingError, encode
from unhype.training.loop import Material, TrainingError, leaking, learning_rate, new_state, train, train_step
from unhype.training.preview import to_image
from unhype.training.prompts import TEMPLATES, PromptError, fill, retain_split, sentences
from unhype.training.run import Request, train_erasure
from unhype.training.settings import OBJECTIVES, Settings

TINY = replace(TRAINING, steps=6, basis=4, batch=3, attention_batch=6, sentences=8)
# With diffusion steps, and so with sampler runs beforehand.
DIFFUSION = replace(TINY, objective="direct")


@pytest.fixture(autouse=True)
def _as_a_node_runs():
    with torch.inference_mode():
        yield


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def ask(tmp_path):
    """Makes a request; words that are settings go into the settings."""

    def make(concepts="cat -> tree", preserve="", name="eraser", **changes):
        settings = {key: changes.pop(key) for key in list(changes) if key in Settings.__dataclass_fields__}
        return Request(
            concepts,
            preserve,
            tmp_path / "models",
            name,
            tmp_path / "checkpoints",
            **{"checkpoint_every": 0, "preview_every": 0, "settings": replace(TINY, **settings), **changes},
        )

    return make


class Reports:
    """What training reports; `at` is a step at which it raises `error`, as an interrupt does."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.at, self.error = at, error
        self.stages, self.steps, self.pictures, self.histories, self.notes = [], [], [], [], []

    def __call__(self, stage, done, total, picture=None, history=None, note=None):
        self.stages.append(stage)
        assert 0 <= done <= total
        if picture is not None:
            self.pictures.append(picture)
        if history is not None:
            self.histories.append(([*history[0]], [*history[1]]))
        if note is not None:
            self.notes.append(note)
        if stage == "training":
            self.steps.append(done)
            if done == self.at:
                raise self.error


def go(model, request, report=None, clip=None):
    return train_erasure(model, clip or TinyClip(), request, report or Reports())


def same_weights(one, other):
    one, other = one.network.state_dict(), other.network.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(request):
    return list(request.checkpoints.glob("*"))


# Learning


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
    trained = go(model, ask(objective="direct", gamma=0.0, checkpointing=False, **LEARNING)).trained
    ((cache, phrases, encoded, conds),) = made
    assert len(cache) == 8
    frozen = FrozenModel(model)
    frozen.load()
    prompts = [phrases[int(index)].prompt for index in cache.phrase]
    layers = trained.network(torch.stack([encoded[text].c for text in prompts]), 300)
    erased = frozen.predict(cache.z, cache.sigma, [conds[text] for text in prompts], layers)
    assert (erased - cache.e_m).square().mean() < 0.5 * (cache.e_p - cache.e_m).square().mean()


@pytest.mark.parametrize("objective", ["attention", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_trained_saved_applied_and_exported(ask, family, objective):
    model = tiny_model(family)
    outcome = go(model, ask(steps=1, objective=objective))
    loaded = load(outcome.path)
    assert loaded.record.family == family
    assert same_weights(loaded, outcome.trained)
    assert loaded.record.training["settings"]["objective"] == objective
    cat = TinyClip().encode_from_tokens_scheduled("cat")
    erased = apply_erasure(model, loaded, dead_zone=False)
    assert not torch.equal(sample(erased, cat, prompt(3)), sample(model, cat, prompt(3)))
    exported = to_lora(replace(loaded, record=replace(loaded.record, dead_zone=0.0)), embedding(cat), "cat")
    assert {weight.dtype for weight in exported.values()} == {torch.float32}


@pytest.mark.parametrize("objective", ["attention", "direct"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_of_lower_precision_is_trained_on(ask, dtype, objective):
    outcome = go(tiny_model(dtype=dtype), ask(steps=2, objective=objective))
    assert all(loss < 100 for loss in outcome.losses)
    assert {weight.dtype for weight in outcome.trained.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_a_seed_decides_every_weight(model, ask, objective):
    first = go(model, ask(name="first", objective=objective)).trained
    again = go(tiny_model(), ask(name="again", objective=objective, resume=False)).trained
    assert same_weights(again, first)
    assert torch.equal(again.switch.weight, first.switch.weight)
    assert not same_weights(go(model, ask(name="other", objective=objective, seed=1)).trained, first)


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
    assert same_weights(go(model, ask(name="again")).trained, first)
    assert torch.equal(torch.get_rng_state(), before)


# What is given stays as it is


def test_the_users_model_is_not_touched(model, ask):
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    picture = sample(model, prompt(1), prompt(2))
    go(model, ask(preview_every=3))
    after = model.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(weight.is_inference() for weight in after.values()), "these are the user's tensors, not copies"
    assert not any(weight.requires_grad for weight in model.model.parameters())
    assert overridden(model) == []
    assert model.wrappers == {}
    assert torch.equal(sample(model, prompt(1), prompt(2)), picture)


def test_a_model_that_is_in_use_is_trained_alike(model, ask):
    fresh = go(model, ask(name="fresh")).trained
    sample(model, prompt(1), prompt(2))
    assert same_weights(go(model, ask(name="used")).trained, fresh)


@pytest.fixture
def styled(model):
    """The model with a LoRA loaded."""
    return merged(model, to_lora(tiny_hypernet(model, seed=5), embedding(prompt(9)), "style"))


def test_the_users_loras_are_trained_on(model, styled):
    z, sigma = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.full((2,), 2.0)
    call = Call(z, sigma, prompt(1)[0][0].expand(2, -1, -1), {}, None)
    frozen = FrozenModel(styled)
    frozen.load()
    given = EncodedPrompt("", embedding(prompt(1)), prompt(1))
    found = frozen.predict(z, sigma, [frozen.model_conds(given, z)] * 2)
    with_lora, without = ((z - replay(one, call)) / 2 for one in (styled, model))
    torch.testing.assert_close(found, with_lora, rtol=1e-4, atol=1e-4)
    assert (found - without).abs().max() > 0.01


def test_a_model_with_another_lora_is_another_training(model, styled, ask):
    plain = go(model, ask())
    first = go(styled, ask())
    assert first.reason == "finished"
    assert first.path != plain.path
    assert not same_weights(first.trained, plain.trained)
    assert go(styled, ask()).reason == "already trained"


def test_a_lora_merged_by_another_branch_changes_nothing(model, styled, ask):
    alone = go(model, ask())
    sample(styled, prompt(1), prompt(2))
    assert go(model, ask()).reason == "already trained"
    sample(styled, prompt(1), prompt(2))
    assert same_weights(go(model, ask(name="beside")).trained, alone.trained)


# The frozen model


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_gradients_equal_plain_ones(family):
    model = tiny_model(family)
    trained = tiny_hypernet(model)
    with torch.inference_mode(False), torch.enable_grad():
        network = Hypernet(trained.network.config)
        network.load_state_dict({name: weight.clone() for name, weight in trained.network.state_dict().items()})
        z, sigma = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.tensor([3.0, 0.5])
        c = torch.stack([embedding(prompt(seed)).clone() for seed in (1, 2)])
        gradients, calls = [], []
        for checkpointing in (False, True):
            frozen = FrozenModel(model, checkpointing)
            frozen.load()
            given = [EncodedPrompt("", c[row], [[torch.ones(1, TOKENS, 32), prompt(row + 1)[0][1]]]) for row in (0, 1)]
            conds = [frozen.model_conds(each, z) for each in given]
            counted = []
            hook = frozen.network.middle_block[1].norm.register_forward_pre_hook(lambda *_, n=counted: n.append(1))
            prediction = frozen.predict(z, sigma, conds, network(c, 150))
            parameters = list(network.parameters())
            gradients.append(torch.autograd.grad(prediction.square().mean(), parameters))
            hook.remove()
            calls.append(len(counted))
            assert overridden(frozen.patcher) == []
    assert calls == [1, 2], "with checkpointing the block runs again for backward"
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-4
    for plain, rerun in zip(*gradients, strict=True):
        torch.testing.assert_close(rerun, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prediction_is_the_noise_as_the_sampler_sees_it(family):
    model = tiny_model(family)
    frozen = FrozenModel(model)
    frozen.load()
    z, sigma = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.tensor([3.0, 0.5])
    conds = [frozen.model_conds(EncodedPrompt("", embedding(prompt(seed)), prompt(seed)), z) for seed in (1, 2)]
    found = frozen.predict(z, sigma, conds)
    for row in (0, 1):
        others = {"y": conds[row]["y"].cond} if family == "sdxl" else {}
        call = Call(z[row : row + 1], sigma[row : row + 1], prompt(row + 1)[0][0], others, None)
        expected = (call.x - replay(model, call)) / sigma[row]
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-4)


def test_rollouts_note_the_latents_of_the_chosen_steps(model):
    frozen = FrozenModel(model)
    noise = frozen.noise(2, 64, 64, seeded(0))
    cat, empty = (encode(TinyClip(), text) for text in ("cat", ""))
    noted = frozen.rollout(cat, empty, noise, 5, 3.0, {0, 2, 4})
    assert [z.shape for z, _ in noted] == [noise.shape] * 3
    sigmas = [sigma for _, sigma in noted]
    assert sigmas == sorted(sigmas, reverse=True)
    for z, sigma in noted[:1]:
        torch.testing.assert_close(z, noise * (1 + sigma**2) ** 0.5, rtol=1e-3, atol=1e-3)


# Interrupts, crashes and resuming


@pytest.mark.parametrize(("objective", "every"), [("attention", 0), ("attention", 3), ("direct", 0), ("direct", 2)])
@pytest.mark.parametrize("error", [KeyboardInterrupt, comfy.model_management.InterruptProcessingException])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(model, ask, error, objective, every):
    whole = go(model, ask(name="whole", objective=objective))
    broken = ask(name="broken", objective=objective, checkpoint_every=every)
    with pytest.raises(error):
        go(model, broken, Reports(at=4, error=error))
    assert len(checkpoints(broken)) == 1
    report = Reports()
    resumed = go(model, broken, report)
    assert report.steps == [5, 6]
    assert resumed.losses == whole.losses
    assert same_weights(resumed.trained, whole.trained)
    assert torch.equal(resumed.trained.switch.weight, whole.trained.switch.weight)
    assert checkpoints(broken) == []


@pytest.mark.skipif(
    not hasattr(comfy.ops, "run_every_op"), reason="this ComfyUI looks for an interrupt between steps only"
)
def test_an_interrupt_in_the_middle_of_a_step_loses_that_step_only(model, ask, monkeypatch):
    whole = go(model, ask(name="whole", objective="direct"))
    predict, calls = FrozenModel.predict, []

    def stopped(self, z, sigma, conds, factors=None):
        calls.append(factors is not None)
        if sum(calls) == 4:
            comfy.model_management.interrupt_current_processing()
        return predict(self, z, sigma, conds, factors)

    monkeypatch.setattr(FrozenModel, "predict", stopped)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        go(model, ask(name="broken", objective="direct"))
    monkeypatch.undo()
    report = Reports()
    resumed = go(model, ask(name="broken", objective="direct"), report)
    assert report.steps == [4, 5, 6]
    assert same_weights(resumed.trained, whole.trained)


def test_an_interrupt_before_the_first_step_leaves_nothing(model, ask):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(model, ask(), stop)
    assert checkpoints(ask()) == []
    assert not ask().folder.exists()


def test_without_resume_a_run_starts_anew(model, ask):
    with pytest.raises(KeyboardInterrupt):
        go(model, ask(), Reports(at=4))
    report = Reports()
    go(model, ask(resume=False), report)
    assert report.steps == [1, 2, 3, 4, 5, 6]


def test_a_longer_run_goes_on_from_the_checkpoint_of_a_shorter_one(model, ask):
    with pytest.raises(KeyboardInterrupt):
        go(model, ask(), Reports(at=4))
    report = Reports()
    go(model, ask(steps=8), report)
    assert report.steps == [5, 6, 7, 8]


@pytest.mark.parametrize("change", [{"seed": 1}, {"concepts": "cat -> house"}, {"gamma": 2.0}, {"preserve": "tiger"}])
def test_another_request_takes_nothing_from_a_checkpoint(model, ask, change):
    with pytest.raises(KeyboardInterrupt):
        go(model, ask(), Reports(at=4))
    report = Reports()
    go(model, ask(**change), report)
    assert report.steps == [1, 2, 3, 4, 5, 6]


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from benchmarks.pack import load_pack
load_pack()
import torch
import test_training
from pathlib import Path
torch.set_num_threads({threads})
def report(stage, done, total, picture=None, history=None, note=None):
    if stage == "training" and done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
request = test_training.Request(
    "cat -> tree", "", Path({folder!r}) / "models", "killed", Path({folder!r}) / "checkpoints",
    test_training.TINY, checkpoint_every=3, preview_every=0)
with torch.inference_mode():
    test_training.train_erasure(test_training.tiny_model(), test_training.TinyClip(), request, report)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_run_goes_on_from_its_last_checkpoint(model, ask, tmp_path):
    whole = go(model, ask(name="whole"))
    script = KILLED.format(
        root=str(ROOT), tests=str(Path(__file__).parent), folder=str(tmp_path), threads=torch.get_num_threads()
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    report = Reports()
    resumed = go(model, ask(name="killed", checkpoint_every=3), report)
    assert report.steps == [4, 5, 6]
    assert same_weights(resumed.trained, whole.trained)


def small_state(seed=0):
    """A training state after one step, without a diffusion model."""
    from unhype.hypernet.targets import TargetLayer

    with torch.inference_mode(False), torch.enable_grad():
        hypernet = Hypernet(HypernetConfig(3, (TargetLayer("a", 2, 2),), rank=1, hidden=2), seeded(seed))
        state = new_state(hypernet, TINY, seeded(seed))
        sum((factors.B @ factors.A).sum() for factors in hypernet(torch.ones(1, 3), 300)).backward()
        state.optimiser.step()
    state.step, state.losses, state.drift = 1, [0.5], [(1, 0.25)]
    state.random = state.generator.get_state()
    return state


def test_a_checkpoint_brings_everything_back(tmp_path):
    before, after = small_state(0), small_state(1)
    torch.rand(7, generator=before.generator)
    before.random = before.generator.get_state()
    save_checkpoint(before, tmp_path / "c.safetensors", "recipe")
    assert load_checkpoint(after, tmp_path / "c.safetensors", "recipe")
    assert (after.step, after.losses, [tuple(pair) for pair in after.drift]) == (1, [0.5], [(1, 0.25)])
    assert torch.equal(torch.rand(5, generator=after.generator), torch.rand(5, generator=before.generator))
    for one, other in zip(before.hypernet.parameters(), after.hypernet.parameters(), strict=True):
        assert torch.equal(one, other)
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(before.optimiser.state[one][moment], after.optimiser.state[other][moment])


def damage_checkpoint(path, kind):
    with safe_open(str(path), framework="pt") as file:
        words = file.metadata()
    weights = load_file(path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-9])
        return
    if kind == "no step":
        del words["unhype.step"]
    if kind == "step in words":
        words["unhype.step"] = "many"
    if kind == "history without losses":
        words["unhype.history"] = '{"drift": []}'
    if kind == "history of another kind":
        words["unhype.history"] = "[1]"
    if kind == "nan":
        weights["weights.trunk.bias"][0] = float("nan")
    if kind == "missing moments":
        del weights["exp_avg.trunk.bias"]
    if kind == "broken random state":
        weights["random"][:] = 255
    save_file(weights, str(path), metadata=words)


@pytest.mark.parametrize(
    "kind",
    [
        "cut",
        "no step",
        "step in words",
        "history without losses",
        "history of another kind",
        "nan",
        "missing moments",
        "broken random state",
    ],
)
def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path, kind):
    path = tmp_path / "c.safetensors"
    save_checkpoint(small_state(0), path, "recipe")
    damage_checkpoint(path, kind)
    state, untouched = small_state(1), small_state(1)
    assert not load_checkpoint(state, path, "recipe")
    assert state.step == 1
    assert torch.equal(state.generator.get_state(), untouched.generator.get_state())
    for one, other in zip(state.hypernet.parameters(), untouched.hypernet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_recipe_or_none_is_not_taken(tmp_path):
    save_checkpoint(small_state(), tmp_path / "c.safetensors", "recipe")
    assert not load_checkpoint(small_state(), tmp_path / "c.safetensors", "other")
    assert not load_checkpoint(small_state(), tmp_path / "gone.safetensors", "recipe")


# What goes wrong is said in words


def test_a_loss_that_is_no_number_names_the_learning_rate(model, ask):
    with pytest.raises(
        TrainingError, match=r"no longer a number at step \d+\. Lower the learning rate \(it is 1e\+30\)"
    ):
        go(model, ask(learning_rate=1e30))


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


@pytest.mark.parametrize("when", ["preparing", "training"])
def test_running_out_of_memory_says_what_to_lower(model, ask, monkeypatch, when):
    predict = FrozenModel.predict

    def full(self, z, sigma, conds, factors=None):
        if when == "preparing" or factors is not None:
            out_of_memory()
        return predict(self, z, sigma, conds, factors)

    monkeypatch.setattr(FrozenModel, "predict", full)
    with pytest.raises(TrainingError, match=r"ran out of memory\. Lower 'batch'.*'checkpointing'"):
        go(model, ask(objective="direct"))


def test_running_out_of_memory_between_the_layers_is_said_alike(model, ask, monkeypatch):
    monkeypatch.setattr(attention, "changes_of", out_of_memory)
    with pytest.raises(TrainingError, match=r"ran out of memory\. Set 'preview_every' to 0"):
        go(model, ask())


def test_a_full_disk_costs_the_checkpoint_not_the_run(model, ask, monkeypatch, caplog):
    whole = go(model, ask(name="whole")).trained

    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_aside", full)
    outcome = go(model, ask(name="full", checkpoint_every=2))
    assert outcome.reason == "finished"
    assert same_weights(outcome.trained, whole)
    assert "could not write the checkpoint" in caplog.text
    assert "No space left on device" in caplog.text


def test_when_the_file_cannot_be_written_the_next_try_does_not_train_again(model, ask, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "save", full)
    with pytest.raises(OSError, match="No space left"):
        go(model, ask(checkpoint_every=3))
    monkeypatch.undo()
    report = Reports()
    assert go(model, ask(checkpoint_every=3), report).path.is_file()
    assert report.steps == []


def test_a_missing_clip_is_named(model, ask):
    with pytest.raises(TrainingError, match="no CLIP is connected"):
        train_erasure(model, None, ask(), Reports())


def test_a_clip_without_a_pooled_embedding_is_named(model, ask):
    class Clip(TinyClip):
        def encode_from_tokens_scheduled(self, tokens):
            return [[torch.ones(1, TOKENS, 32), {"pooled_output": None}]]

    with pytest.raises(MissingEmbeddingError, match="gives no pooled prompt embedding"):
        go(model, ask(), clip=Clip())


@pytest.mark.parametrize(("concepts", "preserve"), [("", ""), ("cat -> cat", ""), ("cat", "cat")])
def test_lists_that_cannot_be_used_are_refused_before_anything_is_encoded(model, ask, concepts, preserve):
    with pytest.raises(PromptError):
        train_erasure(model, object(), ask(concepts, preserve), Reports())


# Files


def test_the_file_holds_the_run(model, ask):
    outcome = go(model, ask(file_metadata={"workflow": "{}"}))
    assert outcome.path == ask().folder / "eraser.safetensors"
    with safe_open(str(outcome.path), framework="pt") as file:
        assert file.metadata()["workflow"] == "{}"
    loaded = load(outcome.path)
    assert loaded.record == outcome.trained.record
    assert loaded.record.concepts == (("cat", "tree"),)
    training = loaded.record.training
    assert training["steps"] == 6
    assert training["settings"]["learning_rate"] == TINY.learning_rate
    assert training["losses"] == [round(loss, 6) for loss in outcome.losses]
    assert training["stopped"] == outcome.reason == "finished"


def test_every_wording_of_what_is_erased_is_outside_the_dead_zone(model, ask):
    trained = go(model, ask(), clip=WordClip()).trained
    wordings = [template.replace("{a}", "a cat").replace("{}", "cat") for template in TEMPLATES["object"]]
    c = torch.stack([encode(WordClip(), wording).c for wording in wordings])
    assert trained.record.dead_zone == 1
    assert not is_silent(trained.presence(c, trained.network(c, 300)), trained.record.dead_zone).any()


def test_prompts_that_mean_something_else_are_inside_the_dead_zone(model, ask):
    trained = go(model, ask(), clip=WordClip()).trained
    held_out = retain_split("", (("cat", "tree"),)).held_out
    c = torch.stack([encode(WordClip(), text).c for text in held_out])
    silent = is_silent(trained.presence(c, trained.network(c, 300)), 1.0).float().mean().item()
    assert silent > 0.9
    assert trained.record.training["held_out_silent"] <= round(silent, 4), "all that speaks for a prompt counts there"


class KinClip(WordClip):
    """Where a tiger is also a little of a cat."""

    def encode_from_tokens_scheduled(self, tokens):
        ((cross, entry),) = super().encode_from_tokens_scheduled(tokens)
        cat, tiger = (self.tokenize(word)["spoken"][0] for word in ("cat", "tiger"))
        share = tokens["spoken"].count(tiger) / max(1, len(tokens["spoken"]))
        kin = 0.25 * share * torch.randn(self.WIDTH, generator=seeded(cat))
        return [[cross, {"pooled_output": entry["pooled_output"] + kin}]]


def test_a_relative_to_preserve_is_drawn_bit_for_bit_and_the_concept_is_erased(model, ask):
    clip = KinClip()
    learning = {"steps": 100, "hidden": 32, "attention_batch": 32, "learning_rate": 8e-3}
    without, preserving = (
        go(model, ask(preserve=text, name=f"p{text}", **learning), clip=clip).trained for text in ("", "tiger")
    )

    def drawn(patcher, name):
        prompts = [encode(clip, fill(template, name)).conditioning for template in TEMPLATES["object"][:8]]
        return torch.stack([sample(patcher, each, prompt(2), pictures=1) for each in prompts])

    tigers, cats, trees = (drawn(model, name) for name in ("tiger", "cat", "tree"))
    assert not torch.equal(drawn(apply_erasure(model, without), "tiger"), tigers)
    erased = apply_erasure(model, preserving)
    assert torch.equal(drawn(erased, "tiger"), tigers)
    assert (drawn(erased, "cat") - trees).norm() < 0.5 * (cats - trees).norm()


def test_the_same_request_is_not_trained_twice(model, ask):
    class NoClip(TinyClip):
        def tokenize(self, text):
            raise AssertionError("nothing has to be encoded")

    first = go(model, ask())
    again = go(model, ask(), clip=NoClip())
    assert again.reason == "already trained"
    assert again.path == first.path
    assert same_weights(again.trained, first.trained)
    assert again.losses == [round(loss, 6) for loss in first.losses]


def test_another_request_of_the_same_name_gets_a_number(model, ask):
    first = go(model, ask())
    second = go(model, ask(seed=1))
    third = go(model, ask(steps=7))
    assert [one.path.name for one in (first, second, third)] == [
        "eraser.safetensors",
        "eraser_2.safetensors",
        "eraser_3.safetensors",
    ]
    assert go(model, ask(seed=1)).path == second.path
    assert load(first.path).record == first.trained.record


@pytest.mark.parametrize("content", [b"somebody's own", b""])
def test_a_foreign_file_of_that_name_is_left_alone(model, ask, content):
    ask().folder.mkdir()
    foreign = ask().folder / "eraser.safetensors"
    foreign.write_bytes(content)
    outcome = go(model, ask())
    assert outcome.path.name == "eraser_2.safetensors"
    assert foreign.read_bytes() == content


# Prompts


class NotingClip(TinyClip):
    def __init__(self):
        self.texts = []

    def encode_from_tokens_scheduled(self, tokens):
        self.texts.append(tokens)
        return super().encode_from_tokens_scheduled(tokens)


def test_retained_prompts_that_name_what_is_erased_are_left_out(model, ask):
    clip = NotingClip()
    go(model, ask("elephant -> tree", steps=1), clip=clip)
    wordings = {template.replace("{a}", "an elephant").replace("{}", "elephant") for template in TEMPLATES["object"]}
    erased = (("elephant", "tree"),)
    named = sentences(erased, "object", retain_split("", erased).partners, TINY.sentences)
    expected = wordings | {phrase.prompt for phrase in named}
    assert {text for text in clip.texts if "elephant" in text.lower()} == expected
    assert len(clip.texts) > 500


def test_every_text_is_encoded_once(model, ask):
    clip = NotingClip()
    go(model, ask("cat -> tree\ndog -> tree", steps=1), clip=clip)
    clip.texts.remove("")  # the empty one also shows how long a chunk is, and that there is no other layer to read
    clip.texts.remove("")
    clip.texts.remove("")
    assert len(set(clip.texts)) == len(clip.texts)


# Going on from an existing hypernet


def test_going_on_joins_the_concepts_and_starts_from_the_weights(model, ask):
    first = go(model, ask("cat -> tree\ndog -> house")).trained
    kept = {name: weight.clone() for name, weight in first.network.state_dict().items()}
    start = load(ask().folder / "eraser.safetensors")
    second = go(model, ask("DOG -> lamp\nbird", name="more", start_from=start, steps=1, learning_rate=1e-12)).trained
    assert second.record.concepts == (("cat", "tree"), ("DOG", "lamp"), ("bird", ""))
    for name, weight in second.network.state_dict().items():
        torch.testing.assert_close(weight, kept[name], rtol=0, atol=1e-9)
    assert all(torch.equal(weight, kept[name]) for name, weight in start.network.state_dict().items())


def test_going_on_keeps_the_size_of_the_network(model, ask):
    start = go(model, ask(rank=1, basis=3, hidden=5)).trained
    grown = go(model, ask("dog", name="more", start_from=start, rank=4, steps=1)).trained
    assert grown.network.config == start.network.config


def test_going_on_from_another_hypernet_is_another_run(model, ask):
    start, other = (go(model, ask(name=f"start{seed}", seed=seed)).trained for seed in (0, 1))
    first = go(model, ask("dog", name="more", start_from=start))
    assert go(model, ask("dog", name="more", start_from=start)).reason == "already trained"
    assert go(model, ask("dog", name="more", start_from=other)).path != first.path


def test_going_on_with_another_clip_is_refused(model, ask):
    start = tiny_hypernet(model, width=POOLED + 1)
    with pytest.raises(TrainingError, match="was trained with another CLIP"):
        go(model, ask("dog", start_from=start))


def test_going_on_with_another_family_is_refused(model, ask):
    start = tiny_hypernet(tiny_model("sdxl"))
    with pytest.raises(HypernetFileError, match=r"was trained for Stable Diffusion XL, but the model is"):
        go(model, ask("dog", start_from=start))


# Watching


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_progress_is_reported_from_the_start_and_step_by_step(model, ask, objective):
    report = Reports()
    outcome = go(model, ask(objective=objective, watch_every=2), report)
    assert list(dict.fromkeys(report.stages)) == ["reading prompts", "preparing", "training"]
    assert report.steps == [1, 2, 3, 4, 5, 6]
    assert [len(losses) for losses, _ in report.histories] == report.steps
    losses, drift = report.histories[-1]
    assert losses == outcome.losses
    assert [step for step, _ in drift] == [2, 4, 6]
    assert outcome.trained.record.training["drift_curve"] == [[step, round(value, 4)] for step, value in drift]


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_what_training_takes_in_memory_is_said_once_and_before_it(model, ask, objective):
    report = Reports()

    def first_note(stage, *place, note=None, **more):
        report(stage, *place, note=note, **more)
        if note is not None:
            assert "training" not in report.stages

    go(model, ask(objective=objective), first_note)
    (note,) = report.notes
    assert note.startswith("Training takes roughly ")


def test_the_memory_of_an_attention_step_is_what_backward_keeps(model, ask, monkeypatch):
    """Of two values an output one is for backward, and so half of them are found among what autograd saves."""
    estimates, kept = [], {}
    estimate, loss = FrozenModel.attention_memory, attention.AttentionTask.loss

    def noted(self, batch, tokens):
        estimates.append(estimate(self, batch, tokens))
        return estimates[-1]

    def counted(self, *args):
        def note(tensor):
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return loss(self, *args)

    monkeypatch.setattr(FrozenModel, "attention_memory", noted)
    monkeypatch.setattr(attention.AttentionTask, "loss", counted)
    go(model, ask(steps=1, attention_batch=256))
    assert 0.5 * estimates[0] < sum(kept.values()) < estimates[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_are_drawn_and_change_nothing(ask, family):
    model, report = tiny_model(family), Reports()
    without = go(model, ask(name="without")).trained
    outcome = go(model, ask(name="with", preview_every=3), report)
    assert [(picture.mode, picture.size) for picture in report.pictures] == [("RGB", (328, 356))] * 2
    assert report.pictures[0].tobytes() != report.pictures[1].tobytes()
    assert same_weights(outcome.trained, without)


def test_a_latent_format_without_a_recipe_makes_no_preview(model):
    latent_format = type("Format", (), {"latent_rgb_factors": None})()
    assert to_image(torch.zeros(4, 8, 8), latent_format) is None
    assert to_image(torch.zeros(4, 8, 8), model.model.latent_format).size == (160, 160)


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
    assert leaking(list(enumerate(values))) is expected


def test_a_leak_ends_the_run_and_is_recorded(model, ask, monkeypatch):
    drift = iter([0.2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    monkeypatch.setattr("unhype.training.loop.measure_drift", lambda *_: next(drift))
    outcome = go(model, ask(watch_every=1))
    assert outcome.reason == outcome.trained.record.training["stopped"] == "leak"
    assert outcome.trained.record.training["steps"] == 4
    assert outcome.path.is_file()


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


# Settings


def test_the_attention_objective_runs_the_model_not_once(model, ask, monkeypatch):
    """But for previews: no pictures, no diffusion steps."""
    for name in ("predict", "rollout", "sample", "model_conds"):
        monkeypatch.setattr(FrozenModel, name, out_of_memory)
    assert go(model, ask()).reason == "finished"


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


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_every_setting_that_shapes_a_step_is_in_the_recipe(name):
    changed = {"kind": "style", "objective": "paper", "checkpointing": False}.get(name, 77)
    same = TINY.recipe("x") == replace(TINY, **{name: changed}).recipe("x")
    assert same == (name in ("steps", "watch_every", "checkpointing"))


def test_a_recipe_depends_on_the_words_too_and_is_a_file_name():
    assert TINY.recipe("cat") != TINY.recipe("dog")
    assert TINY.recipe("cat", []).isalnum()
    json.dumps(TINY.recipe("cat"))


def test_logs_say_where_a_run_goes_on(model, ask, caplog):
    with caplog.at_level(logging.INFO):
        with pytest.raises(KeyboardInterrupt):
            go(model, ask(), Reports(at=2))
        assert "stopped at step 2; queue the same settings again" in caplog.text
        go(model, ask())
        assert "going on from the checkpoint at step 2" in caplog.text

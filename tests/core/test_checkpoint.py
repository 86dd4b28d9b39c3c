"""Checkpoint files: everything comes back, and nothing from a damaged or another run's one."""

import json
from dataclasses import replace

import pytest
import torch
from runs import TINY, small_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unhype.training.checkpoint import load_checkpoint, save_checkpoint
from unhype.training.settings import Settings

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


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


# The recipe, by which a run knows its checkpoint


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_every_setting_that_shapes_a_step_is_in_the_recipe(name):
    changed = {"kind": "style", "objective": "paper", "checkpointing": False}.get(name, 77)
    same = TINY.recipe("x") == replace(TINY, **{name: changed}).recipe("x")
    assert same == (name in ("steps", "watch_every", "checkpointing"))


def test_a_recipe_depends_on_the_words_too_and_is_a_file_name():
    assert TINY.recipe("cat") != TINY.recipe("dog")
    assert TINY.recipe("cat", []).isalnum()
    json.dumps(TINY.recipe("cat"))

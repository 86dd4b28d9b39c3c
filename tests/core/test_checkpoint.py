"""Checkpoints: everything comes back, and nothing from one that is damaged or of another run."""

from dataclasses import replace

import pytest
import torch
from core_parts import TINY, small_state

from unhype.training.checkpoint import load_checkpoint, save_checkpoint
from unhype.training.settings import Settings


@pytest.fixture(autouse=True)
def inference():
    """ComfyUI runs nodes under inference mode."""
    with torch.inference_mode():
        yield


def test_a_checkpoint_brings_everything_back(tmp_path):
    before, after = small_state(0), small_state(1)
    torch.rand(7, generator=before.generator)
    before.random = before.generator.get_state()
    save_checkpoint(before, tmp_path / "c.pt", "recipe")
    after.step, after.losses, after.retention = 0, [], []
    assert load_checkpoint(after, tmp_path / "c.pt", "recipe")
    assert (after.step, after.losses, after.retention) == (1, [0.5], [(1, 0.25)])
    assert torch.equal(after.random, before.random)
    assert torch.equal(torch.rand(5, generator=after.generator), torch.rand(5, generator=before.generator))
    for one, other in zip(before.hypernet.parameters(), after.hypernet.parameters(), strict=True):
        assert torch.equal(one, other)
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(before.optimiser.state[one][moment], after.optimiser.state[other][moment])


def test_a_step_under_way_is_drawn_again(tmp_path):
    """What an interrupt broke off has drawn numbers already; the checkpoint holds the state before them."""
    before, after = small_state(0), small_state(1)
    torch.rand(3, generator=before.generator)
    save_checkpoint(before, tmp_path / "c.pt", "recipe")
    load_checkpoint(after, tmp_path / "c.pt", "recipe")
    assert torch.equal(after.generator.get_state(), small_state(0).generator.get_state())


DAMAGES = {
    "no step": lambda content: content.pop("step"),
    "step in words": lambda content: content.update(step="many"),
    "step with a point": lambda content: content.update(step=1.0),
    "curve in words": lambda content: content.update(retention=[("one", "low")]),
    "negative step": lambda content: content.update(step=-1, losses=[]),
    "another number of losses": lambda content: content.update(losses=[0.5, 0.4]),
    "no losses": lambda content: content.pop("losses"),
    "nan in a weight": lambda content: content["hypernet"]["trunk.bias"].fill_(float("nan")),
    "infinite moment": lambda content: content["optimiser"][0]["exp_avg"].fill_(float("inf")),
    "weights of another shape": lambda content: content["hypernet"].update({"trunk.bias": torch.zeros(9)}),
    "moments of another shape": lambda content: content["optimiser"][0].update(exp_avg=torch.zeros(9)),
    "missing weight": lambda content: content["hypernet"].pop("trunk.bias"),
    "missing moments": lambda content: content["optimiser"].pop(1),
    "broken random state": lambda content: content["random"].fill_(255),
}


def unchanged(state, other):
    """Whether a state has the weights and the generator of another."""
    pairs = zip(state.hypernet.parameters(), other.hypernet.parameters(), strict=True)
    same = torch.equal(state.generator.get_state(), other.generator.get_state())
    return same and state.step == other.step and all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path, damage):
    path = tmp_path / "c.pt"
    save_checkpoint(small_state(0), path, "recipe")
    content = torch.load(path, weights_only=True)
    DAMAGES[damage](content)
    torch.save(content, path)
    state = small_state(1)
    assert not load_checkpoint(state, path, "recipe")
    assert unchanged(state, small_state(1))


@pytest.mark.parametrize("content", [b"", b"a diary", None], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_checkpoint_is_none(tmp_path, content):
    path = tmp_path / "c.pt"
    save_checkpoint(small_state(0), path, "recipe")
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    state = small_state(1)
    assert not load_checkpoint(state, path, "recipe")
    assert unchanged(state, small_state(1))


class Program:
    """What a harmful file would hold: an object whose loading runs something."""

    def __reduce__(self):
        return (open, ("ran.txt", "w"))


def test_a_checkpoint_with_a_program_in_it_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"recipe": Program()}, tmp_path / "c.pt")
    assert not load_checkpoint(small_state(), tmp_path / "c.pt", "recipe")
    assert not (tmp_path / "ran.txt").exists()


def test_a_checkpoint_of_another_recipe_or_none_is_not_taken(tmp_path):
    save_checkpoint(small_state(), tmp_path / "c.pt", "recipe")
    assert not load_checkpoint(small_state(), tmp_path / "c.pt", "other")
    assert not load_checkpoint(small_state(), tmp_path / "gone.pt", "recipe")


# The recipe, by which a run knows its checkpoint


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_every_setting_that_shapes_a_step_is_in_the_recipe(name):
    changed = {"kind": "style", "objective": "paper", "checkpointing": False}.get(name, 77)
    same = TINY.recipe("x") == replace(TINY, **{name: changed}).recipe("x")
    assert same == (name in ("steps", "watch_every", "checkpointing"))


def test_a_recipe_depends_on_the_words_too_and_is_a_file_name():
    assert TINY.recipe("cat") != TINY.recipe("dog")
    assert TINY.recipe("cat", []).isalnum()

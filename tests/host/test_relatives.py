"""The kept example of a run: a near relative of the concept, or the first line of the user's list."""

import pytest
import torch
from runs import go
from tiny import WordClip

from unhype.evaluation.compare import own_prompts
from unhype.training import run as run_module

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture
def shown(monkeypatch):
    """The prompts that the previews of a run show."""
    seen = []

    def note(frozen, prompts, *_):
        seen.extend(prompt.text for prompt in prompts)

    monkeypatch.setattr(run_module, "Previewer", note)
    return seen


def test_relatives_are_short_retained_prompts_about_different_things(model, ask):
    record = go(model, ask(steps=1), clip=WordClip()).eraser.record
    relatives = record.training.relatives
    assert 1 <= len(relatives) <= 3
    assert all(len(text.split()) <= 6 and "cat" not in text.split() for text in relatives)
    assert own_prompts(record)["Close relatives"] == relatives


OWN = "a stone bridge over a quiet river"


@pytest.mark.parametrize(("preserve", "kept"), [(f"{OWN}\ntiger", OWN), ("", None)])
def test_previews_show_the_first_line_of_the_users_list_or_the_nearest_relative(
    model, ask, shown, monkeypatch, preserve, kept
):
    near = []
    monkeypatch.setattr(run_module, "near_relatives", lambda plan, _: near.append(plan.retain.held_out[7]) or near)
    go(model, ask(steps=1, preserve=preserve, decode=torch.clone, preview_every=0), clip=WordClip())
    assert shown == ["a cat", kept or near[0]]

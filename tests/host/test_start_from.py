"""Going on from an existing hypernet: its concepts and weights are kept, and it has to fit."""

import pytest
import torch
from runs import go
from tiny import POOLED, tiny_eraser, tiny_model

from unhype.hypernet.files import load
from unhype.hypernet.record import HypernetFileError
from unhype.training.loop import TrainingError

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


def test_going_on_joins_the_concepts_and_starts_from_the_weights(model, ask):
    first = go(model, ask("cat -> tree\ndog -> house")).eraser
    kept = {name: weight.clone() for name, weight in first.hypernet.state_dict().items()}
    start = load(ask().folder / "eraser.safetensors")
    second = go(model, ask("DOG -> lamp\nbird", name="more", start_from=start, steps=1, learning_rate=1e-12)).eraser
    assert second.record.concepts == (("cat", "tree"), ("DOG", "lamp"), ("bird", ""))
    for name, weight in second.hypernet.state_dict().items():
        torch.testing.assert_close(weight, kept[name], rtol=0, atol=1e-9)
    assert all(torch.equal(weight, kept[name]) for name, weight in start.hypernet.state_dict().items())


def test_going_on_keeps_the_size_of_the_network(model, ask):
    start = go(model, ask(rank=1, basis=3, hidden=5)).eraser
    grown = go(model, ask("dog", name="more", start_from=start, rank=4, steps=1)).eraser
    assert grown.hypernet.config == start.hypernet.config


def test_going_on_from_another_hypernet_is_another_run(model, ask):
    start, other = (go(model, ask(name=f"start{seed}", seed=seed)).eraser for seed in (0, 1))
    first = go(model, ask("dog", name="more", start_from=start))
    assert go(model, ask("dog", name="more", start_from=start)).reason == "already trained"
    assert go(model, ask("dog", name="more", start_from=other)).path != first.path


def test_going_on_with_another_clip_is_refused(model, ask):
    start = tiny_eraser(model, width=POOLED + 1)
    with pytest.raises(TrainingError, match="was trained with another CLIP"):
        go(model, ask("dog", start_from=start))


def test_going_on_with_another_family_is_refused(model, ask):
    start = tiny_eraser(tiny_model("sdxl"))
    with pytest.raises(HypernetFileError, match=r"was trained for Stable Diffusion XL, but the model is"):
        go(model, ask("dog", start_from=start))

"""Training from an existing eraser: its concepts and weights are kept, and it has to fit."""

import pytest
import torch
from runs import go, request_in
from tiny import POOLED, tiny_eraser, tiny_model

from unhype.hypernet.files import load
from unhype.hypernet.record import HypernetFileError
from unhype.training.loop import TrainingError
from unhype.training.plan import make_plan

TWO = "cat -> tree\ndog -> house"

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A trained eraser of two concepts, of another size than the requests ask for."""
    options = {"rank": 1, "basis": 3, "hidden": 5, "objective": "direct"}
    return load(go(tiny_model(), request_in(tmp_path_factory.mktemp("start"), TWO, **options)).path)


def test_concepts_join_and_weights_are_the_start_of_the_new_ones(model, ask, start):
    kept = {name: weight.clone() for name, weight in start.hypernet.state_dict().items()}
    options = {"steps": 1, "rank": 4, "learning_rate": 1e-12, "objective": "direct"}
    wish = ask("DOG -> lamp\nbird", start_from=start, **options)
    grown = go(model, wish).eraser
    assert grown.record.concepts == (("cat", "tree"), ("DOG", "lamp"), ("bird", ""))
    assert grown.hypernet.config == start.hypernet.config
    for name, weight in grown.hypernet.state_dict().items():
        torch.testing.assert_close(weight, kept[name], rtol=0, atol=1e-9)
    assert all(torch.equal(weight, kept[name]) for name, weight in start.hypernet.state_dict().items())
    assert not any(weight.requires_grad for weight in start.hypernet.parameters())
    assert go(model, wish).reason == "already trained"


def test_in_closed_form_the_concepts_of_the_start_are_erased_anew(model, ask, tmp_path):
    first = load(go(model, request_in(tmp_path, TWO)).path)
    grown = go(model, ask("bird", start_from=first)).eraser
    alone = go(model, ask(f"{TWO}\nbird")).eraser
    assert grown.record.concepts == (("cat", "tree"), ("dog", "house"), ("bird", ""))
    assert grown.hypernet.config == alone.hypernet.config
    for name, weight in grown.hypernet.state_dict().items():
        torch.testing.assert_close(weight, alone.hypernet.state_dict()[name])


def test_another_start_is_another_run(model, ask, start):
    recipes = [make_plan(model, ask("dog", start_from=one)).recipe for one in (start, tiny_eraser(model), None)]
    assert len(set(recipes)) == 3


def test_a_start_from_another_clip_is_refused(model, ask):
    with pytest.raises(TrainingError, match="was trained with another CLIP"):
        go(model, ask("dog", start_from=tiny_eraser(model, width=POOLED + 1)))


def test_a_start_of_another_family_is_refused(model, ask):
    with pytest.raises(HypernetFileError, match=r"was trained for Stable Diffusion XL, but the model is"):
        go(model, ask("dog", start_from=tiny_eraser(tiny_model("sdxl"))))

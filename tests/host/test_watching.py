"""What users see while training runs: progress, memory, previews."""

import re

import pytest
import torch
from runs import Reports, go, request_in, same_weights
from tiny import FAMILIES, tiny_model

from unhype.evaluation.decoding import decoder
from unhype.training.frozen import FrozenModel
from unhype.training.memory import memory_of
from unhype.training.tasks.attention import AttentionTask

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module", params=["attention", "direct"])
def run(request, tmp_path_factory):
    """The outcome of a run and its reports."""
    report = Reports()
    wish = request_in(tmp_path_factory.mktemp("run"), objective=request.param, watch_every=2)
    return go(tiny_model(), wish, report), report


def test_progress_is_reported_from_the_start_and_step_by_step(run):
    outcome, report = run
    assert list(dict.fromkeys(report.stages)) == ["encoding prompts", "preparing", "training", "finishing"]
    assert report.steps == [1, 2, 3, 4, 5, 6]
    assert [len(losses) for losses, _ in report.histories] == report.steps
    losses, retention = report.histories[-1]
    assert losses == outcome.losses
    assert [step for step, _ in retention] == [2, 4, 6]
    expected = [[step, round(error, 4)] for step, error in retention]
    assert outcome.eraser.record.training.retention_curve == expected


def test_the_memory_of_training_is_estimated_once_and_before_it(run):
    _, report = run
    assert report.noted_in == ["preparing"]
    (note,) = report.notes
    assert re.fullmatch(r"Memory: about [\d.]+ GB \(model [\d.]+, hypernet [\d.]+, step [\d.]+\)", note)


def test_the_memory_of_an_attention_step_is_what_backward_keeps(model, ask, monkeypatch):
    """Of two values an output one is for backward, and so half of them are found among what autograd saves."""
    saved, given, loss = {}, [], AttentionTask.loss

    def counted(self, hypernet, generator):
        def note(tensor):
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        given.append((hypernet, self.layers[0].pairs.erased.shape[1]))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return loss(self, hypernet, generator)

    monkeypatch.setattr(AttentionTask, "loss", counted)
    wish = ask(steps=1, attention_batch=256)
    go(model, wish)
    (hypernet, tokens) = given[0]
    _, _, estimate = memory_of(FrozenModel(model), hypernet, wish.settings, tokens)
    assert 0.5 * estimate < sum(saved.values()) < estimate


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_are_drawn_and_change_nothing(ask, family):
    model, report = tiny_model(family), Reports()
    without = go(model, ask(name="without")).eraser
    outcome = go(model, ask(name="with", preview_every=3, decode=decoder(model, None)), report)
    assert [(picture.mode, picture.size) for picture in report.pictures] == [("RGB", (640, 700))] * 2
    assert report.pictures[0].tobytes() != report.pictures[1].tobytes()
    assert same_weights(outcome.eraser, without)


def test_a_preview_compares_with_the_unchanged_model(model, ask):
    """Its left column stays, while the right one follows the weights."""
    report = Reports()
    go(model, ask(steps=2, preview_every=1, decode=decoder(model, None)), report)
    first, second = report.pictures
    left = (0, 0, first.width // 2, first.height)
    assert first.crop(left).tobytes() == second.crop(left).tobytes()


def test_without_a_vae_pictures_are_comfyuis_rough_ones(model, monkeypatch):
    decode = decoder(model, None)
    picture = decode(torch.zeros(1, 4, 8, 8))
    assert picture.shape == (8, 8, 3)
    assert 0 <= picture.min() <= picture.max() <= 1
    monkeypatch.setattr(model.model.latent_format, "latent_rgb_factors", None)
    assert decoder(model, None) is None


def test_a_vae_is_used_where_one_is_connected(model):
    class Vae:
        def decode(self, latents):
            return torch.full((1, 1, 16, 16, 3), 0.5) if latents.ndim == 5 else torch.full((1, 16, 16, 3), 0.25)

    decode = decoder(model, Vae())
    assert torch.equal(decode(torch.zeros(1, 4, 2, 2)), torch.full((16, 16, 3), 0.25))
    assert torch.equal(decode(torch.zeros(1, 4, 1, 2, 2)), torch.full((16, 16, 3), 0.5))

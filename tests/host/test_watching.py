"""Reports while training runs: progress, memory, previews."""

import re
from types import SimpleNamespace

import pytest
import torch
from runs import Reports, go, same_weights
from tiny import FAMILIES, tiny_model

from unhype.evaluation.decoding import decoder
from unhype.training import memory, run
from unhype.training.tasks import attention

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_progress_is_reported_from_the_start_and_step_by_step(model, ask, objective):
    report = Reports()
    outcome = go(model, ask(objective=objective, watch_every=2), report)
    assert list(dict.fromkeys(report.stages)) == ["encoding prompts", "preparing", "training", "finishing"]
    assert report.steps == [1, 2, 3, 4, 5, 6]
    assert [len(losses) for losses, _ in report.histories] == report.steps
    losses, retention = report.histories[-1]
    assert losses == outcome.losses
    assert [step for step, _ in retention] == [2, 4, 6]
    assert outcome.eraser.record.training.retention_curve == [[step, round(value, 4)] for step, value in retention]


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_the_memory_of_training_is_announced_once_and_before_it(model, ask, objective):
    report = Reports()

    def first_note(stage, *place, note=None, **more):
        report(stage, *place, note=note, **more)
        if note is not None:
            assert "training" not in report.stages

    go(model, ask(objective=objective), first_note)
    (note,) = report.notes
    assert re.fullmatch(r"Memory: about [\d.]+ GB \(model [\d.]+, hypernet [\d.]+, step [\d.]+\)", note)


def test_the_memory_of_an_attention_step_is_that_of_its_saved_tensors(model, ask, monkeypatch):
    """Of two values an output one is for backward, and so half of them are found among what autograd saves."""
    estimates, kept = [], {}
    estimate, loss = memory.memory_of, attention.AttentionTask.loss

    def noted(*args):
        estimates.append(estimate(*args))
        return estimates[-1]

    def counted(self, *args):
        def note(tensor):
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return loss(self, *args)

    monkeypatch.setattr(run, "memory_of", noted)
    monkeypatch.setattr(attention.AttentionTask, "loss", counted)
    go(model, ask(steps=1, attention_batch=256))
    assert 0.5 * estimates[0][2] < sum(kept.values()) < estimates[0][2]


@pytest.mark.parametrize("family", FAMILIES)
def test_previews_are_drawn_and_change_nothing(ask, family):
    model, report = tiny_model(family), Reports()
    without = go(model, ask(name="without")).eraser
    outcome = go(model, ask(name="with", preview_every=3, decode=decoder(model, None)), report)
    assert [(picture.mode, picture.size) for picture in report.pictures] == [("RGB", (328, 356))] * 2
    assert report.pictures[0].tobytes() != report.pictures[1].tobytes()
    assert same_weights(outcome.eraser, without)


def test_a_latent_format_without_a_recipe_makes_no_preview(model):
    latent_format = type("Format", (), {"latent_rgb_factors": None})()
    assert decoder(SimpleNamespace(model=SimpleNamespace(latent_format=latent_format)), None) is None
    assert decoder(model, None)(torch.zeros(1, 4, 8, 8)).shape == (8, 8, 3)

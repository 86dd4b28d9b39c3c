"""Interrupted, crashed and killed runs resume at their last step and end in the same weights."""

import logging
import os
import signal
import subprocess
import sys

import comfy.model_management
import comfy.ops
import pytest
import torch
from runs import Reports, checkpoints, go, request_in, same_weights
from tiny import tiny_model

from benchmarks.environment import ROOT
from unhype.training.frozen import FrozenModel
from unhype.training.plan import make_plan

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

InterruptProcessing = comfy.model_management.InterruptProcessingException


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of the attention run without an interrupt."""
    return go(tiny_model(), request_in(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def whole_direct(tmp_path_factory):
    """The same of the direct objective."""
    return go(tiny_model(), request_in(tmp_path_factory.mktemp("direct"), objective="direct"))


def interrupted(model, wish, at=4, error=KeyboardInterrupt):
    """Run until a step and no further; returns the request."""
    with pytest.raises(error):
        go(model, wish, Reports(at=at, error=error))
    return wish


def resumed(model, wish, expected):
    """Run again: the steps that it takes. The weights and the detector are those of the outcome `expected`."""
    report = Reports()
    outcome = go(model, wish, report)
    assert outcome.losses == expected.losses
    assert same_weights(outcome.eraser, expected.eraser)
    assert torch.equal(outcome.eraser.detector.weight, expected.eraser.detector.weight)
    assert checkpoints(wish) == []
    return report.steps


@pytest.mark.parametrize(("error", "every"), [(KeyboardInterrupt, 0), (InterruptProcessing, 3)])
def test_an_interrupted_run_resumes_where_it_stopped(model, ask, whole, caplog, error, every):
    with caplog.at_level(logging.INFO, "unhype"):
        wish = interrupted(model, ask(checkpoint_every=every), error=error)
        assert len(checkpoints(wish)) == 1
        assert resumed(model, wish, whole) == [5, 6]
    assert "stopped at step 4; queue the same settings again" in caplog.text
    assert "going on from the checkpoint at step 4" in caplog.text


def test_an_interrupted_run_of_a_diffusion_objective_makes_the_same_samples_again(model, ask, whole_direct):
    wish = interrupted(model, ask(objective="direct"))
    assert resumed(model, wish, whole_direct) == [5, 6]


@pytest.mark.skipif(
    not hasattr(comfy.ops, "run_every_op"), reason="this ComfyUI looks for an interrupt between steps only"
)
def test_an_interrupt_in_the_middle_of_a_step_loses_that_step_only(model, ask, whole_direct, monkeypatch):
    predict, calls = FrozenModel.predict, []

    def interrupted_predict(self, z, sigma, conds, factors=None):
        calls.append(factors is not None)
        if sum(calls) == 4:
            comfy.model_management.interrupt_current_processing()
        return predict(self, z, sigma, conds, factors)

    monkeypatch.setattr(FrozenModel, "predict", interrupted_predict)
    wish = ask(objective="direct")
    with pytest.raises(InterruptProcessing):
        go(model, wish)
    monkeypatch.undo()
    assert resumed(model, wish, whole_direct) == [4, 5, 6]


def interrupt_at(stage):
    def report(now, *_, **__):
        if stage in (now, None):
            raise KeyboardInterrupt

    return report


def test_an_interrupt_after_the_last_step_loses_none(model, ask, whole):
    with pytest.raises(KeyboardInterrupt):
        go(model, ask(), interrupt_at("finishing"))
    assert len(checkpoints(ask())) == 1
    assert resumed(model, ask(), whole) == []


def test_an_interrupt_after_an_early_end_does_not_train_on(model, ask, monkeypatch):
    errors = iter([0.2, 0.5, 0.5, 0.5])
    monkeypatch.setattr("unhype.training.retention.Retention.error", lambda *_: next(errors, 0.5))
    wish = ask(watch_every=1)
    with pytest.raises(KeyboardInterrupt):
        go(model, wish, interrupt_at("finishing"))
    report = Reports()
    assert go(model, wish, report).reason == "early"
    assert report.steps == []


def test_an_interrupt_before_the_first_step_leaves_nothing(model, ask):
    with pytest.raises(KeyboardInterrupt):
        go(model, ask(), interrupt_at(None))
    assert checkpoints(ask()) == []
    assert not ask().folder.exists()


@pytest.mark.parametrize(("change", "steps"), [({"resume": False}, [1, 2, 3, 4, 5, 6]), ({"steps": 8}, [5, 6, 7, 8])])
def test_a_checkpoint_is_for_a_longer_run_too_unless_resume_is_off(model, ask, change, steps):
    interrupted(model, ask())
    report = Reports()
    go(model, ask(**change), report)
    assert report.steps == steps


@pytest.mark.parametrize("change", [{"seed": 1}, {"concepts": "cat -> house"}, {"gamma": 2.0}, {"preserve": "tiger"}])
def test_another_request_has_another_checkpoint(model, ask, change):
    assert make_plan(model, ask(**change)).checkpoint != make_plan(model, ask()).checkpoint


def test_another_base_model_has_another_checkpoint(model, ask):
    assert make_plan(tiny_model(seed=1), ask()).checkpoint != make_plan(model, ask()).checkpoint


def test_a_damaged_checkpoint_is_named_and_the_run_starts_anew(model, ask, whole, caplog):
    wish = interrupted(model, ask())
    (path,) = checkpoints(wish)
    path.write_bytes(path.read_bytes()[:-100])
    assert resumed(model, wish, whole) == [1, 2, 3, 4, 5, 6]
    assert f"the checkpoint '{path.name}' can't be used" in caplog.text


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from benchmarks.pack import load_pack
load_pack()
import torch
from runs import go, request_in
from tiny import tiny_model
torch.set_num_threads({threads})
def report(stage, done, total, picture=None, history=None, note=None):
    if stage == "training" and done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
go(tiny_model(), request_in(Path({folder!r}), checkpoint_every=3), report)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_run_resumes_at_its_last_checkpoint(model, ask, whole, tmp_path):
    script = KILLED.format(
        root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path), threads=torch.get_num_threads()
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert resumed(model, ask(checkpoint_every=3), whole) == [4, 5, 6]

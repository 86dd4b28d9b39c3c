"""Interrupts, crashes and kills: training goes on as if nothing had happened."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import comfy.model_management
import comfy.ops
import pytest
import torch
from runs import Reports, checkpoints, go, same_weights

from benchmarks.environment import ROOT
from unhype.training.frozen import FrozenModel

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.mark.parametrize(
    ("objective", "every", "error"),
    [
        ("attention", 0, KeyboardInterrupt),
        ("attention", 3, comfy.model_management.InterruptProcessingException),
        ("direct", 2, KeyboardInterrupt),
        ("paper", 0, KeyboardInterrupt),
        ("released", 0, comfy.model_management.InterruptProcessingException),
    ],
)
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
    assert same_weights(resumed.eraser, whole.eraser)
    assert torch.equal(resumed.eraser.detector.weight, whole.eraser.detector.weight)
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
    assert same_weights(resumed.eraser, whole.eraser)


def test_an_interrupt_after_the_last_step_loses_none(model, ask):
    whole = go(model, ask(name="whole"))

    def stop(stage, *_, **__):
        if stage == "finishing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(model, ask(name="broken"), stop)
    assert len(checkpoints(ask(name="broken"))) == 1
    report = Reports()
    resumed = go(model, ask(name="broken"), report)
    assert report.steps == []
    assert same_weights(resumed.eraser, whole.eraser)
    assert checkpoints(ask(name="broken")) == []


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
import runs
from tiny import TinyClip, tiny_model
from unhype.training.plan import Request
from unhype.training.run import train_erasure
from pathlib import Path
torch.set_num_threads({threads})
def report(stage, done, total, picture=None, history=None, note=None):
    if stage == "training" and done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
request = Request(
    "cat -> tree", "", Path({folder!r}) / "models", "killed", Path({folder!r}) / "checkpoints",
    runs.TINY, checkpoint_every=3, preview_every=0)
with torch.inference_mode():
    train_erasure(tiny_model(), TinyClip(), request, report)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_run_goes_on_from_its_last_checkpoint(model, ask, tmp_path):
    whole = go(model, ask(name="whole"))
    script = KILLED.format(
        root=str(ROOT), tests=str(Path(__file__).parent.parent), folder=str(tmp_path), threads=torch.get_num_threads()
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    report = Reports()
    resumed = go(model, ask(name="killed", checkpoint_every=3), report)
    assert report.steps == [4, 5, 6]
    assert same_weights(resumed.eraser, whole.eraser)


def test_logs_say_where_a_run_goes_on(model, ask, caplog):
    with caplog.at_level(logging.INFO):
        with pytest.raises(KeyboardInterrupt):
            go(model, ask(), Reports(at=2))
        assert "stopped at step 2; queue the same settings again" in caplog.text
        go(model, ask())
        assert "going on from the checkpoint at step 2" in caplog.text

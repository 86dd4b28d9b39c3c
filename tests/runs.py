"""Training runs on tiny models, a few steps long, and their reports."""

from dataclasses import replace

import torch
from core_parts import TINY, TinyClip

from unhype.training.plan import Request
from unhype.training.run import train_erasure


class Reports:
    """Collects the reports of training; `at` is a step at which it raises `error`, as an interrupt does."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.at, self.error = at, error
        self.stages, self.steps, self.pictures, self.histories = [], [], [], []
        self.notes, self.noted_in = [], []

    def __call__(self, stage, done, total, picture=None, history=None, note=None):
        self.stages.append(stage)
        assert 0 <= done <= total
        if picture is not None:
            self.pictures.append(picture)
        if history is not None:
            self.histories.append(([*history[0]], [*history[1]]))
        if note is not None:
            self.notes.append(note)
            self.noted_in.append(stage)
        if stage == "training":
            self.steps.append(done)
            if done == self.at:
                raise self.error


def request_in(folder, concepts="cat -> tree", preserve="", name="eraser", **changes):
    """A `plan.Request` for a run in `folder`; keywords that are settings go into the settings."""
    settings = replace(TINY, **{key: changes.pop(key) for key in list(changes) if hasattr(TINY, key)})
    options = {"checkpoint_every": 0, "preview_every": 0, "settings": settings, **changes}
    return Request(concepts, preserve, folder / "models", name, folder / "checkpoints", **options)


def go(model, request, report=None, clip=None):
    """Train as a node does, under inference mode; returns the `run.Outcome`."""
    with torch.inference_mode():
        return train_erasure(model, clip or TinyClip(), request, report or Reports())


def same_weights(one, other):
    """Whether two `Eraser`s have the same network, bit for bit."""
    one, other = one.hypernet.state_dict(), other.hypernet.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(request):
    """The checkpoint files that a request has left."""
    return list(request.checkpoints.glob("*"))


def out_of_memory(*_, **__):
    """Stands for a call for which the GPU's memory is too small."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

"""Checkpoints of a training run: enough to go on as if it had never stopped.

A checkpoint is a file of torch's own, opened with `weights_only`: weights, the optimiser's state, the random
state and the curves. It lives between two runs of the same recipe and is removed when the run is finished.
"""

import io
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hypernet.files import written_aside
from .loop import TrainingState

log = logging.getLogger("unhype")


def save_checkpoint(state: TrainingState, path: Path, recipe: str) -> None:
    """Write the state aside and move it to `path`; raises OSError as `files.written_aside`."""
    content = {
        "recipe": recipe,
        "hypernet": state.hypernet.state_dict(),
        "optimiser": state.optimiser.state_dict()["state"],
        "random": state.random,
        "step": state.step,
        "losses": state.losses,
        "retention": state.retention,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with written_aside(path) as part:
        part.write_bytes(buffer.getbuffer())


def load_checkpoint(state: TrainingState, path: Path, recipe: str) -> bool:
    """Bring `state` to the checkpoint at `path`; returns False when there is none for this recipe.

    A checkpoint of other settings or a damaged one is not an error: the run starts anew.
    """
    if not path.is_file():
        return False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["recipe"] != recipe:
            return False
        _check(content, state)
    except Exception as error:  # damaged files raise errors of many types
        log.warning("UnHype: the checkpoint '%s' can't be used (%r); training starts anew.", path.name, error)
        return False
    state.hypernet.load_state_dict(content["hypernet"])
    groups = state.optimiser.state_dict()["param_groups"]  # the run's own; a step sets its learning rate
    state.optimiser.load_state_dict({"state": content["optimiser"], "param_groups": groups})
    state.random = content["random"]
    state.generator.set_state(content["random"])
    state.step, state.losses = content["step"], content["losses"]
    state.retention = [(step, value) for step, value in content["retention"]]
    return True


def _check(content: dict[str, Any], state: TrainingState) -> None:
    """Raise for a checkpoint that lacks something, or that holds what the state can't take."""
    torch.Generator().set_state(content["random"])
    _check_tensors(content["hypernet"], state.hypernet.state_dict())
    for n, parameter in enumerate(state.optimiser.param_groups[0]["params"]):
        moments = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}  # as Adam keeps them
        _check_tensors(content["optimiser"][n], moments)
    losses, retention = content["losses"], content["retention"]
    if type(content["step"]) is not int or content["step"] != len(losses):
        raise ValueError(f"{len(losses)} losses of {content['step']!r} steps")
    points = [(0, loss) for loss in losses] + [(step, error) for step, error in retention]
    if not all(isinstance(number, int | float) for point in points for number in point):
        raise ValueError("curves that are not numbers")


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if {name: tensor.shape for name, tensor in tensors.items()} != {
        name: tensor.shape for name, tensor in expected.items()
    }:
        raise ValueError("tensors of another run")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ValueError("values that are not numbers")

"""Checkpoints of a training run: enough to go on as if it had never stopped.

A checkpoint is a file of torch's own, opened with `weights_only`: weights, the optimiser's state, the random
state and the curves. It lives between two runs of the same recipe and is removed when the run is finished.
"""

import io
import logging
from pathlib import Path
from typing import Any

import torch

from ..hypernet.files import written_aside
from .loop import TrainingState

# Of Adam.
_MOMENTS = ("exp_avg", "exp_avg_sq")

log = logging.getLogger("unhype")


def save_checkpoint(state: TrainingState, path: Path, recipe: str) -> None:
    """Write the state aside and move it to `path`; raises OSError as `files.written_aside`."""
    content = {
        "recipe": recipe,
        "hypernet": state.hypernet.state_dict(),
        "optimiser": state.optimiser.state_dict(),
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
        if content["recipe"] != recipe or not _is_sane(content, state):
            return False
    except Exception as error:  # damaged files raise errors of many types
        log.warning("UnHype: the checkpoint '%s' can't be used (%s); training starts anew.", path.name, type(error))
        return False
    state.hypernet.load_state_dict(content["hypernet"])
    state.optimiser.load_state_dict(content["optimiser"])
    state.random = content["random"]
    state.generator.set_state(content["random"])
    state.step, state.losses = content["step"], content["losses"]
    state.retention = [(step, value) for step, value in content["retention"]]
    return True


def _is_sane(content: dict[str, Any], state: TrainingState) -> bool:
    """Whether a checkpoint has the state's tensors, and numbers everywhere; may raise for a damaged one."""
    torch.Generator().set_state(content["random"])
    weights, moments = content["hypernet"], content["optimiser"]["state"]
    expected = {name: tensor.shape for name, tensor in state.hypernet.state_dict().items()}
    parts = [(moments[n][name], p.shape) for n, p in enumerate(state.hypernet.parameters()) for name in _MOMENTS]
    return (
        {name: tensor.shape for name, tensor in weights.items()} == expected
        and all(moment.shape == shape for moment, shape in parts)
        and all(bool(torch.isfinite(tensor).all()) for tensor in (*weights.values(), *(moment for moment, _ in parts)))
        and 0 <= content["step"] == len(content["losses"])
    )

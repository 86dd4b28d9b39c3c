"""Checkpoints of a training run: enough to go on as if it had never stopped.

The file is a safetensors of fp32 tensors: weights, the optimiser's moments and the random state.
"""

import json
from pathlib import Path

import torch

from ..hypernet.files import HypernetFileError, open_checked, read_tensors, write_aside


def _moments(state):
    return {
        f"{moment}.{name}": state.optimiser.state[parameter][moment]
        for name, parameter in state.hypernet.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }


def save_checkpoint(state, path, recipe):
    """Write `loop.TrainingState` aside and move it to `path`; raises OSError as `files.write_aside`."""
    tensors = {f"weights.{name}": tensor for name, tensor in state.hypernet.state_dict().items()}
    tensors |= _moments(state)
    tensors["random"] = state.random.float()
    history = {"losses": state.losses, "drift": state.drift}
    metadata = {"unhype.recipe": recipe, "unhype.step": str(state.step), "unhype.history": json.dumps(history)}
    write_aside(tensors, path, metadata)


def load_checkpoint(state, path, recipe):
    """Bring `state` to the checkpoint at `path`; returns False when there is none for this recipe.

    A checkpoint of other settings or a damaged one is not an error: the run starts anew.
    """
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with open_checked(path) as file:
            metadata = file.metadata() or {}
            if metadata.get("unhype.recipe") != recipe:
                return False
            weights = state.hypernet.state_dict()
            shapes = {f"weights.{name}": tensor.shape for name, tensor in weights.items()}
            shapes |= {
                f"{moment}.{name}": parameter.shape
                for name, parameter in state.hypernet.named_parameters()
                for moment in ("exp_avg", "exp_avg_sq")
            }
            shapes["random"] = state.generator.get_state().shape
            tensors = read_tensors(file, shapes, path)
            step, history = int(metadata["unhype.step"]), json.loads(metadata["unhype.history"])
            losses = [float(loss) for loss in history["losses"]]
            drift = [(int(at), float(value)) for at, value in history["drift"]]
            if not 0 <= step < 2**31:
                raise ValueError(f"step {step}")
            torch.Generator().set_state(tensors["random"].byte())  # a damaged one raises
    except (HypernetFileError, KeyError, TypeError, ValueError, OverflowError, RuntimeError):
        return False
    _restore(state, tensors, step, losses, drift)
    return True


def _restore(state, tensors, step, losses, drift):
    state.hypernet.load_state_dict({name: tensors[f"weights.{name}"] for name in state.hypernet.state_dict()})
    for name, parameter in state.hypernet.named_parameters():
        state.optimiser.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
        }
    state.random = tensors["random"].byte()
    state.generator.set_state(state.random)
    state.step, state.losses, state.drift = step, losses, drift

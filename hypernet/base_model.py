"""Fingerprints of the base model that an eraser was trained on."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Any

import torch

from .record import BaseModel
from .targets import PREFIX, TargetLayer

_SAMPLED_ROWS = 64
_TOLERANCE = 0.005


def base_model_of(model: Any, layers: Sequence[TargetLayer]) -> BaseModel:
    """What a file records of the MODEL (ModelPatcher) that it is trained on."""
    return BaseModel(type(model.model).__name__, weight_std(model, layers), lora_fingerprint(model))


def weight_std(model: Any, layers: Sequence[TargetLayer]) -> list[float]:
    """The standard deviation of each target layer's weights: a fingerprint that survives a change of dtype.

    model: ModelPatcher. A sample of the rows that H changes stands for all of them. Where a LoRA is merged
    into the shared weights at the moment, perhaps by another branch of the graph, the host's backup of
    them counts. Returns a list of floats, empty where weights can't be read (quantised or paged out).
    """
    std = []
    for layer in layers:
        holder = model.backup.get(f"{PREFIX}{layer.name}.weight")
        weight = getattr(holder or model.model.diffusion_model.get_submodule(layer.name), "weight", None)
        if weight is None or weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:
            return []
        rows = weight.detach()[layer.rows][:: max(1, layer.outputs // _SAMPLED_ROWS)]
        std.append(round(rows.float().std().item(), 6))
    return std


def same_base(base: BaseModel, std: list[float]) -> bool:
    """Whether a model's `weight_std` equals the recorded one, as far as both are known."""
    if len(base.weight_std) != len(std):
        return True
    return all(abs(a - b) <= _TOLERANCE * max(abs(a), 1e-9) for a, b in zip(base.weight_std, std, strict=True))


def lora_fingerprint(model: Any) -> str:
    """A hash of the LoRAs and other weight patches on a ModelPatcher, "" when there are none."""
    patches: Any = {key: _content(patches) for key, patches in model.patches.items()}
    if injected := [_injected(model, key, injection) for key, own in model.injections.items() for injection in own]:
        patches = [patches, injected]
    if not patches:
        return ""
    return hashlib.sha256(json.dumps(patches, sort_keys=True).encode()).hexdigest()[:16]


def _injected(model: Any, key: str, injection: Any) -> Any:
    """What an injection does, as JSON values. The host's bypass LoRAs are functions over the object of their adapters.

    Of an injection by another pack only its name is known.
    """
    held = inspect.getclosurevars(injection.inject).nonlocals.values() if inspect.isfunction(injection.inject) else ()
    adapters = [one.adapters for one in held if hasattr(one, "adapters")]
    return [
        key,
        getattr(injection.inject, "__qualname__", ""),
        [[name, _content_as(_dtype_at(model, name), pair)] for own in adapters for name, pair in sorted(own.items())],
    ]


def _dtype_at(model: Any, name: str) -> torch.dtype | None:
    """The dtype to which the host casts an adapter when it injects it, None where it leaves it."""
    weight = getattr(model.model.get_submodule(name), "weight", None)
    dtype = None if weight is None else weight.dtype
    return dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else None


def _content_as(dtype: torch.dtype | None, pair: Any) -> Any:
    """`_content` of (adapter, strength), the same before the adapter is cast and afterwards."""
    adapter, strength = pair
    weights = [one.to(dtype) if torch.is_tensor(one) else one for one in adapter.weights]
    return [type(adapter).__name__, _content(weights), strength]


def _content(value: Any) -> Any:
    """The parts of a weight patch as JSON values; of a tensor its shape and sums."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().double()
        return [list(value.shape), f"{numbers.sum():.6g}", f"{numbers.abs().sum():.6g}"]
    if hasattr(value, "weights"):
        return [type(value).__name__, _content(value.weights)]
    if isinstance(value, list | tuple):
        return [_content(part) for part in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__

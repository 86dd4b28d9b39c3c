"""By what text encoders and prompts differ, for encodings that are kept from run to run."""

import hashlib
import json
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..hypernet.base_model import lora_fingerprint

# Part of every fingerprint: a new one makes what was kept before useless.
_REVISION = "1"
# Numbers of eight bytes that are summed up at once: a sum says what they are, the order of the sums where.
_SUMMED = 2**17


def fingerprint(clip: Any, parts: Iterable[Any]) -> str | None:
    """A hash of a CLIP's weights and LoRAs and of `parts`, None where the encoding doesn't depend on them alone.

    parts: what else decides how prompts come out: JSON values, and tensors such as the encoding of a probe. The
    probe must have been encoded just before, so that the weights are loaded.
    """
    model, patcher = getattr(clip, "cond_stage_model", None), getattr(clip, "patcher", None)
    if model is None or patcher is None or patcher.forced_hooks is not None or clip.use_clip_schedule:
        return None
    total = hashlib.sha256()
    settings = [_REVISION, type(model).__qualname__, clip.layer_idx, lora_fingerprint(patcher), *parts]
    total.update(_json(settings).encode())
    for name, weight in model.state_dict().items():
        total.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        # Quantised and paged-out weights have no numbers to sum; the probe speaks for them.
        if type(weight) is Tensor and not weight.is_meta:
            total.update(_sums(weight))
    return total.hexdigest()[:32]


def prompt_key(tokens: Any) -> str | None:
    """A hash of what a CLIP's tokenizer gives for a prompt, with the vectors of its textual inversions.

    None where it holds something else than numbers, words and vectors.
    """
    try:
        return hashlib.sha256(_json(tokens).encode()).hexdigest()[:32]
    except TypeError:
        return None


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_content)


def _content(value: Any) -> Any:
    """What JSON doesn't know."""
    if torch.is_tensor(value):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return [str(value.dtype), list(value.shape), hashlib.sha256(flat.numpy().tobytes()).hexdigest()]
    if isinstance(value, numbers.Integral):
        return int(value)
    raise TypeError(type(value).__name__)


def _sums(weight: Tensor) -> bytes:
    """The numbers of a weight, in short."""
    flat = weight.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()  # a part of another tensor, that can't be seen as numbers of eight bytes
    whole = flat[: len(flat) // 8 * 8].view(torch.int64)
    sums = [part.sum() for part in whole.split(_SUMMED)]
    rest = flat[len(whole) * 8 :].cpu().numpy().tobytes()
    return (torch.stack(sums).cpu().numpy().tobytes() if sums else b"") + rest

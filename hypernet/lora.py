"""The delta of one prompt as a plain LoRA."""

import torch
from torch import Tensor

from .errors import UserError
from .merged import AnyEraser
from .targets import PREFIX


class BelowThresholdError(UserError, ValueError):
    """The detector finds nothing erased in the prompt, so there is nothing to put into a LoRA."""


def to_lora(eraser: AnyEraser, c: Tensor, text: str, strength: float = 1.0) -> dict[str, Tensor]:
    """A LoRA state dict in ComfyUI's key names, fp32: up (features, rank), down (rank, in), alpha = rank.

    Where H changes some rows of a fused layer, `up` is zero in the others: every loader knows the layer's own
    name, few know names for its parts. c: (width,) the embedding of `text`. Raises `BelowThresholdError`.
    """
    c = c.unsqueeze(0).to(eraser.device)
    part = eraser.answering(c)
    if eraser.score(c).item() < 1:
        erased = ", ".join(concept for concept, _ in eraser.record.concepts)
        raise BelowThresholdError(
            f"Hypernet to LoRA: '{text[:80]}' names nothing that hypernet '{eraser.name}' erases ({erased}), so there "
            "is no LoRA to make. Write a prompt with an erased concept in it."
        )
    lora = {}
    for layer, factors in zip(part.config.layers, part.factors(c, strength), strict=True):
        key = f"{PREFIX}{layer.name}"
        lora[f"{key}.lora_down.weight"] = factors.A[0].contiguous()
        up = torch.zeros(layer.features, factors.B.shape[2])
        up[layer.rows] = factors.B[0]
        lora[f"{key}.lora_up.weight"] = up
        lora[f"{key}.alpha"] = torch.tensor(float(factors.A.shape[1]))
    return lora

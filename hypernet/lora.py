"""What H writes for one prompt, as a plain LoRA."""

import torch

from .deadzone import is_silent
from .targets import PREFIX


class SilentPromptError(ValueError):
    """The prompt means nothing that the hypernet erases, so there is nothing to put into a LoRA."""


def factors_of(trained, c, strength):
    """The factors of one prompt at a strength, as Apply Concept Erasure uses them.

    c: (p, width) embeddings. Up to 1 `strength` is s / S, above 1 it multiplies the delta. Returns
    (layers, presence): one `Factors` a layer, and what the dead zone compares with its threshold, (p,).
    """
    network = trained.network
    last = network.config.trajectory
    with torch.no_grad():
        heard = trained.heard(c)
        full = network(heard, last)
        layers = full if strength >= 1 else network(heard, strength * last)
    if strength > 1:
        layers = [factors._replace(B=factors.B * strength) for factors in layers]
    return layers, trained.presence(c, full)


def to_lora(trained, c, text, strength=1.0):
    """A LoRA state dict in ComfyUI's key names, fp32: up (features, rank), down (rank, in), alpha = rank.

    Where H writes to some rows of a fused layer, `up` is zero in the others: every loader knows the
    layer's own name, few know names for its parts. c: (width,) the embedding of `text`. Raises
    `SilentPromptError` inside the dead zone.
    """
    layers, presence = factors_of(trained, c.unsqueeze(0), strength)
    if bool(is_silent(presence, trained.record.dead_zone)):
        erased = ", ".join(concept for concept, _ in trained.record.concepts)
        raise SilentPromptError(
            f"Hypernet to LoRA: '{text[:80]}' means nothing that hypernet '{trained.name}' erases ({erased}), so there "
            "is no LoRA to make. Write a prompt with an erased concept in it."
        )
    lora = {}
    for layer, factors in zip(trained.network.config.layers, layers, strict=True):
        key = f"{PREFIX}{layer.name}"
        lora[f"{key}.lora_down.weight"] = factors.A[0].contiguous()
        up = torch.zeros(layer.features, factors.B.shape[2])
        up[layer.rows] = factors.B[0]
        lora[f"{key}.lora_up.weight"] = up
        lora[f"{key}.alpha"] = torch.tensor(float(trained.network.config.rank))
    return lora

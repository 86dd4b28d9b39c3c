"""Rules of thumb for the memory that training takes, announced before it starts."""

import logging
from typing import TYPE_CHECKING

import torch

from ..hypernet.network import Hypernet
from .settings import Settings

if TYPE_CHECKING:
    from .frozen import FrozenModel

log = logging.getLogger("unhype")


def memory_line(frozen: "FrozenModel", hypernet: Hypernet, settings: Settings, tokens: int) -> str:
    """One line about the memory that a run takes; the log gets a longer one. tokens: of a prompt."""
    if settings.objective == "attention":
        step, samples = _attention_step(frozen, settings.attention_batch, tokens), f"{settings.attention_batch} prompts"
    else:
        step, samples = _diffusion_step(frozen, settings), f"{settings.batch} pictures"
    # Weights, gradients and Adam's two moments, fp32.
    trained = 4 * 4 * sum(parameter.numel() for parameter in hypernet.parameters())
    parts = [part / 1e9 for part in (frozen.patcher.model_size(), trained, step)]
    log.info(
        "UnHype: Training takes roughly %.1f GB of memory: %.1f for the model, %.1f for the hypernet and %.1f for a "
        "step of %s.",
        sum(parts),
        *parts,
        samples,
    )
    return "Memory: about {:.1f} GB (model {:.1f}, hypernet {:.1f}, step {:.1f})".format(sum(parts), *parts)


def _diffusion_step(frozen: "FrozenModel", settings: Settings) -> int:
    """Roughly the bytes of one step through the network.

    Four times what the host reckons for drawing as many pictures at once (forward, and a block's own values
    and gradients in backward), without checkpointing as often as the network has blocks.
    """
    noise = frozen.noise(settings.batch, settings.height, settings.width, torch.Generator().manual_seed(0))
    drawing = frozen.patcher.model.memory_required(list(noise.shape))
    return int(4 * drawing * (1 if settings.checkpointing else max(1, len(frozen.blocks) // 4)))


def _attention_step(frozen: "FrozenModel", batch: int, tokens: int) -> int:
    """Roughly the bytes of one step of the attention objective on `batch` prompts of `tokens`.

    Each layer keeps two fp32 values an output: its target change, and for backward the error.
    """
    return 2 * 4 * batch * tokens * sum(layer.outputs for layer in frozen.layers)

"""Rules of thumb for the memory that training takes, announced before it starts."""

import logging
from typing import TYPE_CHECKING

import torch

from ..hypernet.network import Hypernet
from .settings import Settings

if TYPE_CHECKING:
    from .frozen import FrozenModel

log = logging.getLogger("unhype")


def memory_of(frozen: "FrozenModel", hypernet: Hypernet, settings: Settings, tokens: int) -> tuple[int, int, int]:
    """Roughly the bytes that training takes: (model, hypernet with its optimiser, one step). tokens: of a prompt."""
    # Weights, gradients and Adam's two moments, fp32.
    trained = 4 * 4 * sum(parameter.numel() for parameter in hypernet.parameters())
    attention = settings.objective == "attention"
    step = _attention_step(frozen, settings.attention_batch, tokens) if attention else _diffusion_step(frozen, settings)
    return frozen.patcher.model_size(), trained, step


def memory_line(parts: tuple[int, int, int], settings: Settings) -> str:
    """One line about the bytes of `memory_of`; the log gets a longer one."""
    attention = settings.objective == "attention"
    samples = f"{settings.attention_batch} prompts" if attention else f"{settings.batch} pictures"
    gigabytes = [part / 1e9 for part in parts]
    log.info(
        "UnHype: Training takes roughly %.1f GB of memory: %.1f for the model, %.1f for the hypernet and %.1f for a "
        "step of %s.",
        sum(gigabytes),
        *gigabytes,
        samples,
    )
    return "Memory: about {:.1f} GB (model {:.1f}, hypernet {:.1f}, step {:.1f})".format(sum(gigabytes), *gigabytes)


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

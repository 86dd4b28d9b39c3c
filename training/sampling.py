"""Sampling pictures as KSampler samples them: for rollouts, previews and comparisons."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Generator, Tensor

from ..hypernet.embedding import Conditioning
from ..hypernet.targets import recognise, takes_guidance


@dataclass(frozen=True)
class Drawing:
    """How a picture is drawn. cfg: the CFG scale, or the network's own guidance input where it has one."""

    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0
    width: int = 512
    height: int = 512


def latent_noise(latent_format: Any, count: int, height: int, width: int, generator: Generator) -> Tensor:
    """Start noise for `count` pictures of height x width pixels, on the CPU.

    Shape (count, channels, h, w) of the host's latent format, or (count, channels, 1, h, w) where it is one of
    videos.
    """
    ratio = getattr(latent_format, "spacial_downscale_ratio", None)
    if ratio is None:  # older hosts leave that to the VAE: Flux.2 and Wan 2.2 have the many channels
        ratio = 16 if latent_format.latent_channels > 32 else 8
    frames = [1] if latent_format.latent_dimensions == 3 else []
    return torch.randn(
        count, latent_format.latent_channels, *frames, height // ratio, width // ratio, generator=generator
    )


def with_guidance(conditioning: Conditioning, guidance: float) -> Conditioning:
    """A CONDITIONING with the guidance that a distilled network takes as an input."""
    return [[states, {**entry, "guidance": guidance}] for states, entry in conditioning]


def sample(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    noise: Tensor,
    drawing: Drawing,
    callback: Callable[[int, Tensor, Tensor, int], None] | None = None,
) -> Tensor:
    """Latents, of the shape of `noise`, as KSampler would make them from it.

    Of `drawing` its size is not used. callback: the host's, (step, denoised, x, total) after every step; may
    raise to interrupt.
    """
    cfg = drawing.cfg
    if takes_guidance(model.model, recognise(model.model)):
        positive, cfg = with_guidance(positive, drawing.cfg), 1.0
    return comfy.sample.sample(
        model,
        noise,
        drawing.steps,
        cfg,
        drawing.sampler,
        drawing.scheduler,
        positive,
        negative,
        torch.zeros_like(noise),
        callback=callback,
        disable_pbar=True,
        seed=drawing.seed,
    )


def draw(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    drawing: Drawing,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Latents of one picture, as a VAE takes them: KSampler's for the same model, prompts, seed and size.

    on_step(steps done) is called after every step and may raise to interrupt.
    """
    generator = Generator().manual_seed(drawing.seed)
    noise = latent_noise(model.model.latent_format, 1, drawing.height, drawing.width, generator)
    callback = None if on_step is None else lambda step, *_: on_step(step + 1)
    return sample(model, positive, negative, noise, drawing, callback)

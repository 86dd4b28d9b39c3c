"""Drawing a picture as KSampler draws it, for comparisons."""

from dataclasses import dataclass

import comfy.sample
import torch

from ..hypernet.targets import recognise


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn. cfg: the CFG scale, or the network's own guidance input where it has one."""

    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0
    width: int = 512
    height: int = 512


def latent_noise(latent_format, count, height, width, generator):
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


def with_guidance(conditioning, guidance):
    """A CONDITIONING with the guidance that a distilled network takes itself."""
    return [[states, {**entry, "guidance": guidance}] for states, entry in conditioning]


def draw(model, positive, negative, drawing, on_step):
    """Latents of one picture, as a VAE takes them: KSampler's for the same model, prompts, seed and size.

    model: a ModelPatcher; positive, negative: CONDITIONINGs. on_step(steps done) is called after every step and may
    raise to interrupt.
    """
    generator = torch.Generator().manual_seed(drawing.seed)
    noise = latent_noise(model.model.latent_format, 1, drawing.height, drawing.width, generator)
    cfg = drawing.cfg
    if recognise(model.model).distilled:
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
        callback=lambda step, *_: on_step(step + 1),
        disable_pbar=True,
        seed=drawing.seed,
    )

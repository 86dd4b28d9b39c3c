"""Latents to pictures: through a VAE where there is one, or as the host's rough preview of the latents."""

from collections.abc import Callable
from typing import Any

import torch
from latent_preview import Latent2RGBPreviewer
from torch import Tensor

from .page import to_tensor

Decode = Callable[[Tensor], Tensor]


def decoder(model: Any, vae: Any) -> Decode | None:
    """A function from latents (1, ...) of `model` to one picture (h, w, 3) fp32 in [0, 1], or None if none is known.

    model: ComfyUI's MODEL. vae: its VAE, or None for the latent preview.
    """
    if vae is not None:
        return vae_decoder(vae)
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        return None
    options = [latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias]
    if (reshape := getattr(latent_format, "latent_rgb_factors_reshape", None)) is not None:
        options.append(reshape)  # older hosts have no such formats
    previewer = Latent2RGBPreviewer(*options)
    return lambda latents: to_tensor(
        previewer.decode_latent_to_preview(latent_format.process_in(latents).float().cpu())
    )[0]


def vae_decoder(vae: Any) -> Decode:
    """A function from latents (1, ...) to one picture (h, w, 3) fp32 in [0, 1] through ComfyUI's VAE."""

    def decode(latents: Tensor) -> Tensor:
        with torch.no_grad():
            pictures = vae.decode(latents)
        return pictures.reshape(-1, *pictures.shape[-3:])[0].float().cpu()  # of a video the first frame

    return decode

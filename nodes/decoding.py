"""Latents to pictures on a page: through a VAE where there is one, or as the rough preview of the latents."""

import torch

from ..training.preview import to_image
from .page import to_tensor


def decoder(model, vae):
    """A function from latents (1, ...) of `model` to one picture (h, w, 3) fp32 in [0, 1], or None if none is known.

    vae: ComfyUI's VAE, or None for the latent preview.
    """
    if vae is not None:
        return lambda latents: _decoded(vae, latents)
    latent_format = model.model.latent_format
    if latent_format.latent_rgb_factors is None:
        return None
    return lambda latents: to_tensor(to_image(latent_format.process_in(latents)[0], latent_format))[0]


def _decoded(vae, latents):
    with torch.no_grad():
        pictures = vae.decode(latents)
    return pictures.reshape(-1, *pictures.shape[-3:])[0].float().cpu()  # of a video the first frame

"""Thumbnails of an erased and a kept prompt, before and after, while training goes on."""

import torch
from PIL import Image, ImageDraw

from ..hypernet.files import Record, TrainedHypernet
from ..hypernet.patch import apply_erasure

_TILE, _BORDER, _LABEL = 160, 4, 14


def to_image(latent, latent_format):
    """A rough picture of one latent in the model's own space, or None if the host has no recipe.

    latent: (channels, h, w), or (channels, frames, h, w), of which the first frame is drawn. The host's
    latent formats carry a linear map to RGB for previews; no VAE has to be loaded.
    """
    factors = latent_format.latent_rgb_factors
    if factors is None:
        return None
    latent = latent if latent.dim() == 3 else latent[:, 0]
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    if reshape is not None:
        latent = reshape(latent.unsqueeze(0))[0]
    factors = torch.tensor(factors, dtype=torch.float32)
    bias = torch.tensor(getattr(latent_format, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0])
    rgb = torch.einsum("chw,cr->hwr", latent.float().cpu(), factors) + bias
    pixels = ((rgb + 1) / 2).clamp(0, 1).mul(255).byte().numpy()
    return Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.BICUBIC)


class Previewer:
    """Draws the same prompts from the same noise with the frozen model once, and with H whenever asked.

    prompts: `EncodedPrompt`s, one a row of the picture; empty: the encoded empty prompt. decode: latents
    (1, ...) to a picture (h, w, 3) in [0, 1], or None for the rough one.
    """

    def __init__(self, frozen, prompts, empty, settings, decode=None):
        self.frozen, self.prompts, self.empty, self.settings, self.decode = frozen, prompts, empty, settings, decode
        self.before = None

    def _draw(self, patcher):
        frozen, settings = self.frozen, self.settings
        tiles = []
        for number, prompt in enumerate(self.prompts):
            noise = frozen.noise(1, settings.height, settings.width, torch.Generator().manual_seed(number))
            latent = frozen.sample(patcher, prompt, self.empty, noise, settings.sampler_steps, settings.guidance)
            tiles.append(self._tile(latent))
        frozen.load()  # a VAE may have taken its place
        return tiles

    def _tile(self, latent):
        if self.decode is not None:
            pixels = self.decode(latent).mul(255).round().byte().numpy()
            return Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        latent_format = self.frozen.patcher.model.latent_format
        return to_image(latent_format.process_in(latent)[0], latent_format)

    def picture(self, hypernet):
        """A PIL image with a row a prompt, before on the left and after on the right; None without a recipe."""
        if self.before is None:
            self.before = self._draw(self.frozen.patcher)
        if self.before[0] is None:
            return None
        record = Record(self.frozen.family.key, (), 0.0)
        patched = apply_erasure(self.frozen.patcher, TrainedHypernet(hypernet, record, "preview"), dead_zone=False)
        after = self._draw(patched)
        step = _TILE + _BORDER
        sheet = Image.new("RGB", (2 * step, len(self.prompts) * (step + _LABEL)), "white")
        pen = ImageDraw.Draw(sheet)
        for row, (prompt, left, right) in enumerate(zip(self.prompts, self.before, after, strict=True)):
            top = row * (step + _LABEL)
            pen.text((2, top + 1), f"{prompt.text[:24]}: before | after", fill="black")
            sheet.paste(left, (0, top + _LABEL))
            sheet.paste(right, (step, top + _LABEL))
        return sheet

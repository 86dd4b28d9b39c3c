"""Thumbnails of an erased and a retained prompt, before and after, while training goes on."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..hypernet.eraser import Eraser
from ..hypernet.network import Hypernet
from ..hypernet.patch import apply_erasure
from ..hypernet.record import Record
from ..policy.enforced import protected
from .encode import EncodedPrompt
from .frozen import FrozenModel
from .sampling import Drawing, draw
from .settings import Settings

# As wide as the pages of results: a node shows it at some nine tenths, and the words have to be read there.
_TILE, _BORDER, _LABEL, _LETTERS = 312, 8, 30, 20


class Previewer:
    """Draws the same prompts from the same noise, with the frozen model once and with H whenever asked.

    prompts: one a row of the picture; empty: the encoded empty prompt. decode: latents (1, ...) to a picture
    (h, w, 3) in [0, 1].
    """

    def __init__(
        self,
        frozen: FrozenModel,
        prompts: Sequence[EncodedPrompt],
        empty: EncodedPrompt,
        settings: Settings,
        decode: Callable[[Tensor], Tensor],
    ) -> None:
        self.frozen, self.prompts, self.empty, self.settings, self.decode = frozen, prompts, empty, settings, decode
        self.before: list[Image.Image] | None = None

    def _draw(self, patcher: Any) -> list[Image.Image]:
        frozen, settings, tiles = self.frozen, self.settings, []
        for number, prompt in enumerate(self.prompts):
            drawing = Drawing(
                settings.sampler_steps, settings.guidance, seed=number, width=settings.width, height=settings.height
            )
            with frozen.without_gradients():
                latents = draw(patcher, prompt.conditioning, self.empty.conditioning, drawing)
            pixels = self.decode(latents).mul(255).round().byte().numpy()
            tiles.append(Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.BICUBIC))
        frozen.load()  # a VAE may have taken its place
        return tiles

    def picture(self, hypernet: Hypernet) -> Image.Image:
        """A PIL image with a row a prompt, before on the left and after on the right."""
        model = protected(self.frozen.patcher)
        if self.before is None:
            self.before = self._draw(model)
        family = self.frozen.family
        eraser = Eraser(hypernet, Record(family.key, (), embedding=family.embedding), "preview")
        after = self._draw(apply_erasure(model, eraser))
        step = _TILE + _BORDER
        sheet = Image.new("RGB", (2 * step, len(self.prompts) * (step + _LABEL)), "white")
        pen, letters = ImageDraw.Draw(sheet), ImageFont.load_default(size=_LETTERS)
        for row, (prompt, left, right) in enumerate(zip(self.prompts, self.before, after, strict=True)):
            top = row * (step + _LABEL)
            pen.text((_BORDER, top + 2), f"{prompt.text[:36]}: before | after", "black", letters)
            sheet.paste(left, (_BORDER // 2, top + _LABEL))
            sheet.paste(right, (_BORDER // 2 + step, top + _LABEL))
        return sheet

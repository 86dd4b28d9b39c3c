"""Pages of words and pictures as ComfyUI shows them on a node: blocks of one width, one under the other."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Color = tuple[int, int, int]

WIDTH, MARGIN = 640, 12
ERASED, KEPT, INK, FAINT, PAPER = (200, 60, 50), (70, 100, 135), (30, 30, 30), (120, 120, 120), (250, 250, 250)
# Nodes show a page at two thirds of its width, and text has to be read there.
TITLE, TEXT, SMALL = 24, 18, 15


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(size=size)


def wrapped(text: str, size: int, width: int, lines: int | None = None) -> list[str]:
    """The lines of a text in `width` pixels; a word that is wider is broken, and after `lines` lines comes '...'."""
    letters = font(size)
    all_lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and letters.getlength(longer) > width:
                all_lines.append(line)
                longer = word
            while letters.getlength(longer) > width:
                fits = next(n for n in range(len(longer), 0, -1) if n == 1 or letters.getlength(longer[:n]) <= width)
                all_lines.append(longer[:fits])
                longer = longer[fits:]
            line = longer
        all_lines.append(line)
    if lines is None or len(all_lines) <= lines:
        return all_lines
    last = all_lines[lines - 1]
    while last and letters.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*all_lines[: lines - 1], f"{last}..."]


def text_block(text: str, size: int = TEXT, color: Color = INK, lines: int | None = None) -> Image.Image:
    """A block of text over the whole width."""
    shown = wrapped(text, size, WIDTH - 2 * MARGIN, lines)
    step = size * 4 // 3
    block = Image.new("RGB", (WIDTH, step * len(shown) + 6), PAPER)
    pen = ImageDraw.Draw(block)
    for number, line in enumerate(shown):
        pen.text((MARGIN, number * step + 2), line, color, font(size))
    return block


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """A block of pictures in a row from the left margin on."""
    block = Image.new("RGB", (WIDTH, max(picture.height for picture in pictures)), PAPER)
    left = MARGIN
    for picture in pictures:
        block.paste(picture, (left, 0))
        left += picture.width + MARGIN
    return block


def page(blocks: Sequence[Image.Image]) -> Image.Image:
    """One picture (PIL) of the blocks, with a margin around."""
    sheet = Image.new("RGB", (WIDTH, sum(block.height for block in blocks) + 2 * MARGIN), PAPER)
    top = MARGIN
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def to_tensor(picture: Image.Image) -> Tensor:
    """A PIL picture as ComfyUI's IMAGE, (1, h, w, 3) fp32 in [0, 1]."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, picture.height, picture.width, 3).float() / 255


def to_picture(pixels: Tensor, side: int) -> Image.Image:
    """(h, w, 3) in [0, 1] as a PIL picture that fits into a square of `side` pixels."""
    picture = Image.fromarray(pixels.mul(255).round().clamp(0, 255).byte().cpu().numpy())
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def duration(seconds: float) -> str:
    """'40 s', '3 min' or '2 h 5 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

"""Thumbnails of the workflows for Browse Templates, cut from pictures that the lab's models drew (`results/`).

ComfyUI shows one as a card's picture: in a square, at most 256 pixels high. So they are squares of twice that.
"""

import sys

from PIL import Image, ImageDraw, ImageFont

from .environment import ROOT, say
from .graph import WORKFLOWS

SIDE = 512
_RESULTS = {"sd15": "before_after.jpg", "flux": "before_after_flux.jpg"}
_REPORT = ROOT / "web" / "docs" / "pictures" / "UnHypeErasureReportPage.jpg"
# Of the demo's sheet: side of a picture, and where the first of each half lies.
_TILE, _TOP, _LEFT = 72, 24, {"before": 150, "after": 462}
_ROWS = {"cat": 0, "kitty": 2, "airplane": 4, "bird": 6, "dog": 8, "frog": 9, "horse": 10, "ship": 11, "truck": 12}
_PAPER, _INK, _ERASED, _FAINT = (250, 250, 250), (30, 30, 30), (200, 60, 50), (110, 110, 110)


def _tile(family, what, when, side, column=0):
    """One picture of the demo's sheet, `side` pixels wide."""
    with Image.open(ROOT / "benchmarks" / "results" / _RESULTS[family]) as sheet:
        left, top = _LEFT[when] + column * _TILE, _TOP + _ROWS[what] * _TILE
        return sheet.crop((left, top, left + _TILE, top + _TILE)).resize((side, side), Image.Resampling.BICUBIC)


class _Card:
    """A square to put pictures and centred words on."""

    def __init__(self):
        self.picture = Image.new("RGB", (SIDE, SIDE), _PAPER)
        self.pen = ImageDraw.Draw(self.picture)

    def put(self, tile, left, top):
        self.picture.paste(tile, (left, top))

    def say(self, text, centre, top, size, color=_INK):
        self.pen.text((centre, top), text, color, ImageFont.load_default(size=size), anchor="ma")


def _typed(family, verb, top):
    """What is typed into the node that does `verb`, and below, from `top` on, what comes of it."""
    card = _Card()
    card.say(verb, SIDE // 2, 18, 30, _FAINT)
    card.say("cat -> tree", SIDE // 2, 56, 56)
    card.put(_tile(family, "cat", "before", 240), 12, top)
    card.put(_tile(family, "cat", "after", 240), 260, top)
    return card


def _training(family):
    """What is typed, what comes of it, and things that stay."""
    card = _typed(family, "train", 132)
    for number, what in enumerate(("dog", "frog", "ship", "truck")):
        card.put(_tile(family, what, "after", 118), 12 + number * 123, 384)
    return card.picture


def _applying(family):
    """A prompt and the picture that it gives under the eraser."""
    card = _Card()
    card.put(_tile(family, "cat", "after", 380), 66, 12)
    card.say("a photo of a cat", SIDE // 2, 400, 44)
    card.say("with the eraser on", SIDE // 2, 458, 30, _ERASED)
    return card.picture


def _erasing(family):
    """What is typed, and what the prompt gives then."""
    card = _typed(family, "erase", 150)
    card.say("a photo of a cat", SIDE // 2, 418, 44)
    return card.picture


def _pairs(family, things, side, columns=1):
    """A row a thing: `columns` pictures before on the left, as many after on the right."""
    card = _Card()
    for centre, when, color in ((SIDE // 4, "before", _FAINT), (SIDE * 3 // 4, "after", _ERASED)):
        card.say(when, centre, 12, 36, color)
        for row, what in enumerate(things):
            for column in range(columns):
                left = centre - columns * side // 2 + column * side
                card.put(_tile(family, what, when, side, column), left, 62 + row * side)
    return card.picture


def _report():
    """A part of a report, close enough to be read: of the erased and of the kept prompts."""
    with Image.open(_REPORT) as page:
        return page.crop((0, 98, 436, 98 + 436)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def thumbnails():
    """Workflow's name to its picture."""
    return {
        "erase_sd15": _erasing("sd15"),
        "train_sd15": _training("sd15"),
        "apply_sd15": _applying("sd15"),
        "before_after_sd15": _pairs("sd15", ("cat", "dog"), 224),
        "report_sd15": _report(),
        "demo": _pairs("sd15", ("cat", "kitty", "bird", "horse"), 112, columns=2),
        "train_flux": _training("flux"),
        "apply_flux": _applying("flux"),
    }


def main():
    """Command line."""
    for name, picture in thumbnails().items():
        path = WORKFLOWS[name].with_suffix(".jpg")
        picture.save(path, quality=88)
        say(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

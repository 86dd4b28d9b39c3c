"""Verdicts about a prompt as a small bar picture."""

import math

from PIL import Image, ImageDraw, ImageFont

from ..hypernet.verdict import place_of

_WIDTH, _ROW, _LABEL, _MARGIN = 640, 34, 250, 12
_LEAST, _MOST = 1 / 8, 16
_ROWS = 32
_ERASED, _SILENT, _INK, _PAPER = (200, 60, 50), (120, 140, 160), (30, 30, 30), (250, 250, 250)


def _across(size):
    """Where a size, in units of the dead zone, lies on the logarithmic axis, in pixels."""
    share = math.log(min(max(size, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return _LABEL + share * (_WIDTH - _LABEL - _MARGIN)


def _label(verdict, found):
    nearest = f": {verdict.concept}" if verdict.concept else ""
    words = f"{place_of(verdict, found)}{nearest}"
    return words if len(words) <= 30 else f"{words[:29]}..."


def bar_picture(found):
    """A bar a chunk, as long as an erased concept is present, on a logarithmic axis with the dead zone's edge (PIL)."""
    shown = found[:_ROWS]
    font = ImageFont.load_default(size=15)
    picture = Image.new("RGB", (_WIDTH, (len(shown) + 1) * _ROW + 2 * _MARGIN), _PAPER)
    pen = ImageDraw.Draw(picture)
    edge, bottom = _across(1), _MARGIN + (len(shown) + 1) * _ROW
    pen.text((edge + 6, _MARGIN), "erased", _ERASED, font)
    pen.text((edge - 6, _MARGIN), "stays as it is", _SILENT, font, anchor="ra")
    for row, verdict in enumerate(shown, start=1):
        top = _MARGIN + row * _ROW
        pen.text((_MARGIN, top + 6), _label(verdict, found), _INK, font)
        if not verdict.known:
            pen.text((_LABEL, top + 6), "can't be judged", _INK, font)
        elif verdict.size:
            color = _ERASED if verdict.erased else _SILENT
            pen.rectangle((_LABEL, top + 4, max(_across(verdict.size), _LABEL + 3), top + _ROW - 6), color)
            pen.text((_LABEL + 6, top + 6), f"{verdict.size:.2g}", "white" if verdict.size > 0.3 else _INK, font)
    pen.line((edge, _MARGIN, edge, bottom), _INK, 2)
    if len(found) > len(shown):
        pen.text((_MARGIN, _MARGIN), f"the first {len(shown)} of {len(found)} parts", _INK, font)
    return picture

"""Verdicts about a prompt as a small bar picture."""

import math

from PIL import Image, ImageDraw

from ..hypernet.verdict import place_of
from .page import ERASED, INK, MARGIN, PAPER, SMALL, WIDTH, font

_ROW, _LABEL = 34, 250
_LEAST, _MOST = 1 / 8, 16
_ROWS = 32
_SILENT = (120, 140, 160)


def _across(size):
    """Where a size, in units of the dead zone, lies on the logarithmic axis, in pixels."""
    share = math.log(min(max(size, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return _LABEL + share * (WIDTH - _LABEL - MARGIN)


def _label(verdict, found):
    nearest = f": {verdict.concept}" if verdict.concept else ""
    words = f"{place_of(verdict, found)}{nearest}"
    return words if len(words) <= 30 else f"{words[:29]}..."


def bar_picture(found):
    """A bar a chunk, as long as an erased concept is present, on a logarithmic axis with the dead zone's edge (PIL)."""
    shown = found[:_ROWS]
    letters = font(SMALL)
    picture = Image.new("RGB", (WIDTH, (len(shown) + 1) * _ROW + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    edge, bottom = _across(1), MARGIN + (len(shown) + 1) * _ROW
    pen.text((edge + 6, MARGIN), "erased", ERASED, letters)
    pen.text((edge - 6, MARGIN), "stays as it is", _SILENT, letters, anchor="ra")
    for row, verdict in enumerate(shown, start=1):
        top = MARGIN + row * _ROW
        pen.text((MARGIN, top + 6), _label(verdict, found), INK, letters)
        if not verdict.known:
            pen.text((_LABEL, top + 6), "can't be judged", INK, letters)
        elif verdict.size:
            color = ERASED if verdict.erased else _SILENT
            pen.rectangle((_LABEL, top + 4, max(_across(verdict.size), _LABEL + 3), top + _ROW - 6), color)
            pen.text((_LABEL + 6, top + 6), f"{verdict.size:.2g}", "white" if verdict.size > 0.3 else INK, letters)
    pen.line((edge, MARGIN, edge, bottom), INK, 2)
    if len(found) > len(shown):
        pen.text((MARGIN, MARGIN), f"the first {len(shown)} of {len(found)} parts", INK, letters)
    return picture

"""Detections in a prompt as a small bar picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .detection import Detection, place_of, shown_score
from .page import ERASED, INK, MARGIN, PAPER, SMALL, WIDTH, font

_ROW, _LABEL = 34, 250
_LEAST, _MOST = 1 / 8, 16
_ROWS = 32
_UNCHANGED = (120, 140, 160)


def _across(score: float) -> float:
    """The place of a score, in units of the threshold, on the logarithmic axis, in pixels."""
    share = math.log(min(max(score, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return _LABEL + share * (WIDTH - _LABEL - MARGIN)


def _label(detection: Detection, detections: Sequence[Detection]) -> str:
    nearest = f": {detection.concept}" if detection.concept else ""
    label = f"{place_of(detection, detections)}{nearest}"
    return label if len(label) <= 30 else f"{label[:29]}..."


def bar_picture(detections: Sequence[Detection]) -> Image.Image:
    """A bar for each chunk, as long as its score, on a logarithmic axis with the threshold (PIL)."""
    shown = detections[:_ROWS]
    letters = font(SMALL)
    picture = Image.new("RGB", (WIDTH, (len(shown) + 1) * _ROW + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    edge, bottom = _across(1), MARGIN + (len(shown) + 1) * _ROW
    pen.text((edge + 6, MARGIN), "erased", ERASED, letters)
    pen.text((edge - 6, MARGIN), "stays as it is", _UNCHANGED, letters, anchor="ra")
    for row, detection in enumerate(shown, start=1):
        top = MARGIN + row * _ROW
        pen.text((MARGIN, top + 6), _label(detection, detections), INK, letters)
        if not detection.known:
            pen.text((_LABEL, top + 6), "no embedding", INK, letters)
        elif detection.score is None:
            pen.text((_LABEL, top + 6), "applied, no detector", ERASED, letters)
        elif detection.score:
            color = ERASED if detection.erased else _UNCHANGED
            pen.rectangle((_LABEL, top + 4, max(_across(detection.score), _LABEL + 3), top + _ROW - 6), color)
            pen.text(
                (_LABEL + 6, top + 6), shown_score(detection.score), "white" if detection.score > 0.3 else INK, letters
            )
    pen.line((edge, MARGIN, edge, bottom), INK, 2)
    if len(detections) > len(shown):
        pen.text((MARGIN, MARGIN), f"the first {len(shown)} of {len(detections)} parts", INK, letters)
    return picture

"""Loss and retention error of a training run as small graphs."""

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from .page import FAINT, INK, MARGIN, PAPER, SMALL, WIDTH, Color, beside, font, page

PANEL = ((WIDTH - 3 * MARGIN) // 2, 180)
_LEFT, _TOP, _BOTTOM = 46, 26, 22
_LOSS, _RETENTION, _GRID = (60, 110, 190), (200, 120, 30), (225, 225, 225)
_SMOOTHED = 15


def _running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with the ones just before it."""
    parts = (values[max(0, end - _SMOOTHED) : end] for end in range(1, len(values) + 1))
    return [sum(part) / len(part) for part in parts]


def _ticks(highest: float) -> tuple[float, float]:
    """A round number at or above `highest`, and half of it."""
    unit = 10 ** math.floor(math.log10(highest))
    top = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= highest * 0.999)
    return top, top / 2


def _panel(
    title: str,
    points: Sequence[tuple[int, float]],
    steps: int,
    color: Color,
    form: Callable[[float], str],
    smooth: bool = False,
) -> Image.Image:
    """A graph (PIL) of (step, value) points; `form` formats a value."""
    panel = Image.new("RGB", PANEL, PAPER)
    pen, letters = ImageDraw.Draw(panel), font(SMALL)
    right, bottom = PANEL[0] - 4, PANEL[1] - _BOTTOM
    values = [value for _, value in points if math.isfinite(value)]
    top, half = _ticks(max([*values, 1e-6]))

    def place(step: float, value: float) -> tuple[float, float]:
        return _LEFT + (right - _LEFT) * step / steps, bottom - (bottom - _TOP) * min(value, top) / top

    for tick in (top, half):
        height = place(0, tick)[1]
        pen.line((_LEFT, height, right, height), _GRID)
        pen.text((_LEFT - 5, height), form(tick), FAINT, letters, anchor="rm")
    pen.line((_LEFT, _TOP, _LEFT, bottom, right, bottom), FAINT)
    pen.text((right, PANEL[1] - 2), f"step {steps}", FAINT, letters, anchor="rb")
    pen.text((0, 2), title, INK, letters)
    line = points
    if smooth:
        pale = tuple((channel + 2 * 255) // 3 for channel in color)
        pen.line([place(*point) for point in points], pale, 1)
        line = list(zip([step for step, _ in points], _running_mean([value for _, value in points]), strict=True))
    pen.line([place(*point) for point in line], color, 3, joint="curve")
    x, y = place(*line[-1])
    pen.ellipse((x - 4, y - 4, x + 4, y + 4), color)
    return panel


def panels(losses: Sequence[float], retention: Sequence[tuple[int, float]], steps: int) -> list[Image.Image]:
    """The graphs (PIL) of the losses of each step and of the (step, retention error) pairs, as far as there are any."""
    shown = []
    if losses:
        title = f"loss {_running_mean(losses)[-1]:.3g}"
        shown.append(_panel(title, list(enumerate(losses, start=1)), steps, _LOSS, "{:.3g}".format, smooth=True))
    if retention:
        title = f"retention error {retention[-1][1]:.0%}"
        shown.append(_panel(title, retention, steps, _RETENTION, "{:.0%}".format))
    return shown


def with_curve(picture: Image.Image | None, losses: Sequence[float], steps: int) -> Image.Image:
    """The preview of a run: its picture, if there is one, and the graph of the losses below."""
    return page([*([] if picture is None else [picture]), beside(panels(losses, [], steps))])

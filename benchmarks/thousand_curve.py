"""What erasers of more and more concepts cost and do, as a picture of four graphs."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from unhype.evaluation.page import FAINT, INK, PAPER, SMALL, TEXT, font

_WIDTH, _HEIGHT = 440, 260
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 44, 24, 44
_GRID, _BLUE, _ORANGE, _GREEN = (225, 225, 225), (60, 110, 190), (200, 120, 30), (60, 140, 80)


class Line(NamedTuple):
    """One curve of a graph: its name, the value of a row, and its color."""

    name: str
    value: Callable[[dict], float]
    color: tuple[int, int, int]


def _graph(title: str, rows: Sequence[dict], lines: Sequence[Line], top: float, form: str) -> Image.Image:
    """A graph over the number of concepts on a logarithmic axis, from zero to `top`."""
    graph = Image.new("RGB", (_WIDTH, _HEIGHT), PAPER)
    pen, letters = ImageDraw.Draw(graph), font(SMALL)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    most = math.log(max(row["concepts"] for row in rows))

    def place(concepts: float, value: float) -> tuple[float, float]:
        return _LEFT + (right - _LEFT) * math.log(concepts) / most, bottom - (bottom - _TOP) * value / top

    for share in (0.5, 1.0):
        height = place(1, top * share)[1]
        pen.line((_LEFT, height, right, height), _GRID)
        pen.text((_LEFT - 6, height), form.format(top * share), FAINT, letters, anchor="rm")
    for concepts in (1, 10, 100, 1000):
        pen.text((place(concepts, 0)[0], bottom + 6), str(concepts), FAINT, letters, anchor="ma")
    pen.text(((_LEFT + right) / 2, _HEIGHT - 18), "concepts", FAINT, letters, anchor="ma")
    pen.line((_LEFT, _TOP, _LEFT, bottom, right, bottom), FAINT)
    pen.text((8, 6), title, INK, font(TEXT))
    for number, line in enumerate(lines):
        points = [place(row["concepts"], line.value(row)) for row in rows]
        pen.line(points, line.color, 3, joint="curve")
        for x, y in points:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), line.color)
        if line.name:
            pen.text((_LEFT + 12, bottom - 24 - 20 * number), line.name, line.color, letters)
    return graph


def _above(rows: Sequence[dict], value: Callable[[dict], float]) -> float:
    """A round number at or above all values."""
    highest = max(map(value, rows))
    unit = 10 ** math.floor(math.log10(highest))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= highest)


def curve(rows: Sequence[dict]) -> Image.Image:
    """The picture (PIL) of the benchmark's rows."""

    def cost(row: dict) -> float:
        return row["milliseconds_a_prompt"]

    def megabytes(row: dict) -> float:
        return row["bytes"] / 1e6

    def memory(row: dict) -> float:
        return row["memory"] / 1e6

    quality = (
        Line("H_c", lambda row: row["h_c"], _BLUE),
        Line("benign prompts unchanged", lambda row: row["benign_below_threshold"], _GREEN),
        Line("kept names drawn, of what the model draws", lambda row: row["kept"] / row["kept_base"], _ORANGE),
    )
    graphs = (
        _graph("Quality", rows, quality, 1.0, "{:.1f}"),
        _graph("Cost of a prompt, ms", rows, [Line("", cost, _BLUE)], _above(rows, cost), "{:g}"),
        _graph("File, MB", rows, [Line("", megabytes, _BLUE)], _above(rows, megabytes), "{:g}"),
        _graph("Memory of the eraser, MB", rows, [Line("", memory, _BLUE)], _above(rows, memory), "{:g}"),
    )
    picture = Image.new("RGB", (2 * _WIDTH, 2 * _HEIGHT), PAPER)
    for number, graph in enumerate(graphs):
        picture.paste(graph, (number % 2 * _WIDTH, number // 2 * _HEIGHT))
    return picture

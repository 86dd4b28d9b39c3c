"""Pictures of captions: one object in the middle, two beside each other or one in front, three in a row."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import data
from .vocabulary import NAMES

# Flat drawings of one hand each: a model this small learns them sooner than seven ways to draw a cat.
FLAT = ("noto", "fluent-emoji-flat", "twemoji")


class Spot(NamedTuple):
    """Where an object stands: least and most of its share of the picture's width, its centre, and how far that may vary
    where the object stays whole."""

    scale: tuple[float, float]
    x: float = 0.0
    y: float = 0.0
    dx: float = 0.0
    dy: float = 0.0


# The number of objects to where each place is. Front is lower, larger and painted over back.
SPOTS = {
    1: {"middle": Spot((0.84, 0.98), dx=1.0, dy=1.0)},
    2: {
        "left": Spot((0.42, 0.5), x=-0.5, dy=0.2),
        "right": Spot((0.42, 0.5), x=0.5, dy=0.2),
        "back": Spot((0.42, 0.46), y=-0.5, dx=0.15),
        "front": Spot((0.5, 0.56), y=0.44, dx=0.15),
    },
    3: {
        "left": Spot((0.31, 0.34), x=-0.66, dy=0.2),
        "middle": Spot((0.31, 0.34), dy=0.2),
        "right": Spot((0.31, 0.34), x=0.66, dy=0.2),
    },
}


class Painter:
    """Paints concepts from the drawings of some vendors, all of them where these have none.

    folder: of the emoji packages; generator: for which drawing, size and place.
    """

    def __init__(self, folder: Path, generator: torch.Generator, sets: Sequence[str] = FLAT):
        self.generator = generator
        self.rgba, concept, vendor = data.load(folder)
        chosen = torch.isin(vendor, torch.tensor([list(data.SETS).index(name) for name in sets]))
        self.by_concept = {}
        for number, name in enumerate(NAMES):
            own = concept == number
            self.by_concept[name] = torch.nonzero(own & chosen if (own & chosen).any() else own).flatten()

    def paint(self, objects: Sequence[Sequence[tuple[str, str]]]) -> Tensor:
        """Pictures (n, 3, 32, 32) in [0, 1] of n lists of one to three (name, place)."""
        canvas = torch.ones(len(objects), 3, data.SIZE, data.SIZE)
        # What is in front comes last.
        ordered = [sorted(group, key=lambda one: one[1] == "front") for group in objects]
        for layer in range(max(map(len, ordered))):
            rows = [row for row, group in enumerate(ordered) if len(group) > layer]
            names = [ordered[row][layer][0] for row in rows]
            spots = [SPOTS[len(ordered[row])][ordered[row][layer][1]] for row in rows]
            placed = data.place(self.rgba[self._drawings(names)], *self._places(spots))
            canvas[rows] = canvas[rows] * (1 - placed[:, 3:]) + placed[:, :3]
        return canvas.clamp(0, 1)

    def _drawings(self, names: Sequence[str]) -> Tensor:
        own = [self.by_concept[name] for name in names]
        return torch.stack([group[int(torch.randint(len(group), (1,), generator=self.generator))] for group in own])

    def _places(self, spots: Sequence[Spot]) -> tuple[Tensor, Tensor]:
        """Scales (n,) and centres (n, 2)."""
        least, most = torch.tensor([spot.scale for spot in spots]).T
        scale = least + (most - least) * torch.rand(len(spots), generator=self.generator)
        centre = torch.tensor([(spot.x, spot.y) for spot in spots])
        wanted = torch.tensor([(spot.dx, spot.dy) for spot in spots])
        whole = (1 - scale.unsqueeze(1) - centre.abs()).clamp(min=0)
        return scale, centre + torch.minimum(wanted, whole) * (
            torch.rand(len(spots), 2, generator=self.generator) * 2 - 1
        )

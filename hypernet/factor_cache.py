"""The factors that H generated during a sampling, by the content of the embedding."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .embedding import content_key
from .eraser import Eraser
from .factors import Factors, select

_MOST, _AT_ONCE = 256, 64


class Generated(NamedTuple):
    """The factors of one embedding (p = 1), one `Factors` for each target layer, and the detector's score."""

    factors: list[Factors]
    score: float


class FactorCache:
    """A cache of `Generated` by `content_key`. It also knows which embeddings are below the threshold.

    gate: whether the threshold counts; without it every embedding gets its factors.
    """

    def __init__(self, eraser: Eraser, strength: float = 1.0, gate: bool = True) -> None:
        self.eraser, self.strength, self.gate = eraser, strength, gate
        self._entries: OrderedDict[bytes, Generated | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Generated | None:
        """The entry of a key, None below the threshold and for keys that the cache lacks."""
        return self._entries.get(key)

    def __getitem__(self, key: bytes) -> Generated:
        """The entry of a key above the threshold; raises KeyError for any other."""
        if (generated := self.get(key)) is None:
            raise KeyError(key)
        return generated

    def fill(self, embeddings: Iterable[Tensor], gated: bool = True) -> None:
        """Generate the factors of those embeddings (width,) that the cache lacks, in batches.

        gated: whether those below the threshold get none.
        """
        gated = gated and self.gate
        new = {content_key(c): c for c in embeddings}
        missing = [(key, c) for key, c in new.items() if key not in self._entries or not (gated or self.get(key))]
        for start in range(0, len(missing), _AT_ONCE):  # a schedule over frames may bring hundreds
            keys, c = zip(*missing[start : start + _AT_ONCE], strict=True)
            self._entries.update(zip(keys, self._generate(torch.stack(c), gated), strict=True))

    def _generate(self, c: Tensor, gated: bool) -> list[Generated | None]:
        c = c.to(self.eraser.device)
        scores = self.eraser.score(c).tolist()
        if gated and max(scores) < 1:
            return [None] * len(scores)
        layers = self.eraser.factors(c, self.strength)
        return [
            None if gated and score < 1 else Generated(select(layers, slice(p, p + 1)), score)
            for p, score in enumerate(scores)
        ]

    def trim(self) -> None:
        """Drop the oldest entries beyond the cache's size."""
        while len(self._entries) > _MOST:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()

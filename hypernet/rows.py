"""Which row and token of a batch belongs to which delta, and adding the deltas there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import pad

from .deltas import Part, Span
from .factors import Factors, lowrank_delta
from .forwards import overridden
from .targets import TargetLayer

BASE = -1


class SpanMasks:
    """The tokens of each of p deltas, from their `Span`s, as masks for inputs of any length."""

    def __init__(self, spans: list[Span], device: torch.device) -> None:
        self.start, self.stop, self.length = torch.tensor(spans, device=device).T.unsqueeze(2)
        self._masks: dict[int, Tensor] = {}

    def mask(self, tokens: int) -> Tensor:
        """(p, tokens) bool. The host repeats a prompt's tokens where it batches prompts of several lengths."""
        if tokens not in self._masks:
            place = torch.arange(tokens, device=self.start.device) % self.length
            self._masks[tokens] = (place >= self.start) & (place < self.stop)
        return self._masks[tokens]


def add_to_rows(
    y: Tensor, x: Tensor, rows: Tensor, factors: Factors, mask: Tensor | None = None, start: int = 0
) -> Tensor:
    """y with the delta of each active row added; all other rows stay as they are, bit for bit.

    x: (n, ..., in) input and y: (n, ..., features) output of the layer; rows: (p,) long indices into n;
    factors: of those p rows, for the output features from `start` on. mask: (p, tokens) bool, the tokens of
    x (n, tokens, in) that each delta is for, all of them by default. Differentiable in x and factors, y is
    not written to.
    """
    delta = lowrank_delta(x.index_select(0, rows), factors)
    if mask is not None:
        delta = delta.masked_fill(~mask.unsqueeze(-1), 0.0)
    changed = y.clone()
    changed.narrow(-1, start, delta.shape[-1]).index_add_(0, rows, delta.to(y.dtype))
    return changed


def patched_layers(
    network: Module, targets: tuple[TargetLayer, ...], rows: Tensor, layers: Sequence[Factors]
) -> AbstractContextManager[None]:
    """While open, the layers `targets` of `network` add the deltas `layers` to the rows `rows`.

    rows: (p,) long, on the device that computes. layers: one `Factors` a target, for those p rows, on the same
    device. An override that another node put on a layer before is kept and called.
    """

    def with_delta(forward: Callable[..., Tensor], factors: Factors, start: int) -> Callable[..., Tensor]:
        return lambda x, *args, **kwargs: add_to_rows(forward(x, *args, **kwargs), x, rows, factors, start=start)

    def patched() -> Iterator[tuple[Module, Callable[..., Tensor]]]:
        for target, factors in zip(targets, layers, strict=True):
            module = network.get_submodule(target.name)
            yield module, with_delta(module.forward, factors, target.start)

    return overridden(patched())


class Batch(NamedTuple):
    """The deltas of a batch: one of p for each part of its rows.

    rows: (p,) long, the row of each. layers: one `Factors` a target layer, for those p. masks: their tokens, None
    when every part is a whole prompt.
    """

    rows: Tensor
    layers: list[Factors]
    masks: SpanMasks | None

    def mask(self, tokens: int) -> Tensor | None:
        """(p, tokens) bool, None for all of them."""
        return None if self.masks is None else self.masks.mask(tokens)


def _stacked(same: Sequence[Factors], device: torch.device) -> Factors:
    """The factors of one layer for several prompts. Those of a lower rank, from another part of a merged eraser, get
    zeros."""
    rank = max(factors.A.shape[1] for factors in same)
    A = torch.cat([pad(factors.A, (0, 0, 0, rank - factors.A.shape[1])) for factors in same])
    B = torch.cat([pad(factors.B, (0, rank - factors.B.shape[2])) for factors in same])
    return Factors(A.to(device), B.to(device))


class RowTable:
    """The parts of prompts by row number, and stacked for batches of row numbers."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[tuple[Span, bytes], ...], int] = {}
        self._prompts: list[tuple[Part, ...]] = []
        self._stacked: dict[tuple[tuple[int, ...], torch.device], Batch | None] = {}

    def number(self, parts: tuple[Part, ...]) -> int:
        """The row number of a prompt of these `Part`s; BASE when there are none."""
        if not parts:
            return BASE
        key = tuple((part.span, part.key) for part in parts)
        if key not in self._numbers:
            self._numbers[key] = len(self._prompts)
            self._prompts.append(parts)
        return self._numbers[key]

    def parts(self, number: int) -> tuple[Part, ...]:
        """The parts of a row number."""
        return () if number == BASE else self._prompts[number]

    def stacked(self, numbers: tuple[int, ...], device: torch.device) -> Batch | None:
        """The `Batch` on `device` for a row number, or BASE, of each row; None when every row is BASE.

        Kept for the length of a sampling: each step asks the same.
        """
        if (numbers, device) not in self._stacked:
            self._stacked[numbers, device] = self._stack(numbers, device)
        return self._stacked[numbers, device]

    def _stack(self, numbers: tuple[int, ...], device: torch.device) -> Batch | None:
        active = [(row, part) for row, n in enumerate(numbers) for part in self.parts(n)]
        if not active:
            return None
        layers = [_stacked(same, device) for same in zip(*(part.factors for _, part in active), strict=True)]
        spans = [part.span for _, part in active]
        whole = all(span.stop - span.start == span.length for span in spans)
        rows = torch.tensor([row for row, _ in active], device=device)
        return Batch(rows, layers, None if whole else SpanMasks(spans, device))

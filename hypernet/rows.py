"""Which row and token of a batch belongs to which delta, and adding the deltas there."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

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


def source_rows(x: Tensor, rows: Tensor, batch: int, context: Tensor | None) -> Tensor | None:
    """The row of the batch that each row of a layer's input x belongs to, (n,) long, -1 for none; None if unknown.

    context: (batch, tokens, in), the text that the network was given, or None. Packs add, repeat or split rows
    inside the network. Cross-attention keys and values: rows are matched by comparing tokens; ties prefer a
    row with a delta. Elsewhere (image tokens) rows that joined the batch are known to come last.
    """
    if context is not None and context.shape[0] == batch and x.shape[1:] == context.shape[1:]:
        same = (x.unsqueeze(1) == context.to(x).unsqueeze(0)).flatten(2).all(2).int()
        best, source = (same * 2 - same.index_fill(1, rows, 0)).max(1)
        return source.masked_fill(best == 0, -1)
    if x.shape[0] < batch:
        return None
    source = torch.arange(x.shape[0], device=x.device)
    return source.masked_fill(source >= batch, -1)


def patched_layers(
    network: Module,
    targets: tuple[TargetLayer, ...],
    rows: Tensor,
    layers: Sequence[Factors],
    batch: int,
    masks: SpanMasks | None = None,
    context: Tensor | None = None,
) -> AbstractContextManager[None]:
    """While open, the layers `targets` of `network` add the deltas `layers` to the rows `rows`.

    rows: (p,) long, on the device that computes. layers: one `Factors` a target, for those p rows, on the same
    device. batch: rows of the network's input. masks: the tokens of each delta, all of them by default.
    context: the text tokens of the batch's rows, if known. An override that another node put on a layer
    before is kept and called.
    """

    def patched() -> Iterator[tuple[Module, Callable[..., Tensor]]]:
        for target, factors in zip(targets, layers, strict=True):
            module = network.get_submodule(target.name)
            yield module, _with_delta(module.forward, rows, factors, batch, masks, context, target.start)

    return overridden(patched())


def _with_delta(
    forward: Callable[..., Tensor],
    rows: Tensor,
    factors: Factors,
    batch: int,
    masks: SpanMasks | None,
    context: Tensor | None,
    start: int,
) -> Callable[..., Tensor]:
    def forward_with_delta(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = forward(x, *args, **kwargs)
        mask = None if masks is None else masks.mask(x.shape[1])
        if x.shape[0] == batch:
            return add_to_rows(y, x, rows, factors, mask, start)
        source = source_rows(x, rows, batch, context)
        if source is None:
            warnings.warn(
                "UnHype: another node changes the batch inside the model in a way that hides which prompt a row "
                "belongs to; those calls run without erasure.",
                stacklevel=2,
            )
            return y
        own, delta = (source.unsqueeze(1) == rows).nonzero(as_tuple=True)
        own_mask = None if mask is None else mask[delta]
        return add_to_rows(y, x, own, Factors(factors.A[delta], factors.B[delta]), own_mask, start)

    return forward_with_delta


class RowTable:
    """The prompts of one sampling: row number to parts. Lives in `transformer_options`.

    A class of its own, because the host copies and merges dicts and lists that it finds there.
    """

    def __init__(self) -> None:
        self.warned = False
        self._numbers: dict[tuple[tuple[Span, bytes], ...], int] = {}
        self._prompts: list[tuple[Part, ...]] = []
        self._stacked: dict[
            tuple[tuple[int, ...], torch.device], tuple[Tensor, list[Factors], SpanMasks | None] | None
        ] = {}

    def number(self, parts: tuple[Part, ...]) -> int:
        """The row number of a prompt of these `Part`s; BASE when there are none."""
        if not parts:
            return BASE
        key = tuple((part.span, part.key) for part in parts)
        if key not in self._numbers:
            self._numbers[key] = len(self._prompts)
            self._prompts.append(parts)
        return self._numbers[key]

    def stacked(
        self, numbers: tuple[int, ...], device: torch.device
    ) -> tuple[Tensor, list[Factors], SpanMasks | None] | None:
        """Rows, their stacked factors and their `SpanMasks` on `device` for the row numbers of a batch.

        `numbers`: one row number, or BASE, a row. Returns ((p,) long rows, factors, masks), one of the p a
        part, or None when every row is BASE. masks is None when every part is a whole prompt. Kept for the
        length of a sampling: each step asks the same.
        """
        if (numbers, device) not in self._stacked:
            self._stacked[numbers, device] = self._stack(numbers, device)
        return self._stacked[numbers, device]

    def _stack(
        self, numbers: tuple[int, ...], device: torch.device
    ) -> tuple[Tensor, list[Factors], SpanMasks | None] | None:
        active = [(row, part) for row, n in enumerate(numbers) if n != BASE for part in self._prompts[n]]
        if not active:
            return None
        layers = [
            Factors(torch.cat([f.A for f in same]).to(device), torch.cat([f.B for f in same]).to(device))
            for same in zip(*(part.factors for _, part in active), strict=True)
        ]
        spans = [part.span for _, part in active]
        whole = all(span.stop - span.start == span.length for span in spans)
        rows = torch.tensor([row for row, _ in active], device=device)
        return rows, layers, None if whole else SpanMasks(spans, device)

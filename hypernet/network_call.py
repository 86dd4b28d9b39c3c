"""One call of a network with an eraser on it: which text its rows have, and so which deltas.

Text that isn't the context of the call is compared by content, inside a stretch in which tensors may be made that
outlive the block of the network that runs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from .rows import BASE, Batch
from .texts import SamplingTexts, same_tensor


class _Rows(NamedTuple):
    """The row number of each row of a batch, and their deltas."""

    numbers: tuple[int, ...]
    batch: Batch | None


class _Known(NamedTuple):
    """Tokens (rows, length, in) whose deltas are known, as a weak reference, with the row number of each row."""

    tokens: Callable[[], Tensor | None]
    numbers: tuple[int, ...]
    batch: Batch | None


class NetworkCall:
    """One call of a network with an eraser on it.

    context: (rows, length, in) as the network gets it, or None. own: the texts of its rows, empty where unknown.
    outside: opens a stretch in which tensors may be made that outlive the block of the network that runs.

    A wrapper of another node may run the network several times in one call, each time with another text.
    """

    def __init__(
        self,
        texts: SamplingTexts,
        context: Tensor | None,
        own: tuple[int, ...],
        device: torch.device,
        outside: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.texts, self.context, self.device, self._outside = texts, context, device, outside
        self.own = own if context is None or len(own) == len(context) else ()
        numbers = texts.row_numbers(own) if context is None else texts.rows_of(context, self.own)
        self.batch = texts.stacked(numbers, device)
        self.mask = None if self.batch is None or context is None else self.batch.mask(context.shape[1])
        # Of a joint network: the rows of the conditionings, of the text that entered last, and of the stream of text.
        self.given = self.entering = self.stream = _Rows(numbers, self.batch)
        self.lengths = {0 if context is None else context.shape[1]}
        self.embedded: list[_Known] = []
        self.has_entered = self.is_through = False
        self.ran: list[bool] = []
        self.called: list[bool] = []

    # Cross-attention

    def deltas_for(self, tokens: Tensor, embedded: bool, pictures: bool) -> Batch | None:
        """The deltas of the rows of a cross-attention layer's input (n, length, in) that isn't the context.

        pictures: whether it may be a picture, as in Wan's layers for CLIP Vision, which read the text without one.
        """
        with self._outside():
            known = self._known(embedded)
            for tensor, _, batch in known:
                own = tensor()
                if own is not None and same_tensor(own, tokens):
                    return batch
            if embedded:
                alive = [(own, numbers) for tensor, numbers, _ in known if (own := tensor()) is not None]
                numbers = self.texts.rows_among(tokens, alive, pictures)
            else:
                numbers = self._numbers_of(tokens)
            return self._stacked(numbers, tokens.shape[1])

    def _known(self, embedded: bool) -> list[_Known]:
        if embedded:
            return self.embedded
        context = self.context
        return [] if context is None else [_Known(lambda: context, *self.given)]

    def _numbers_of(self, tokens: Tensor) -> tuple[int, ...]:
        """The row numbers of text tokens. Fewer rows than the batch may be any of its rows."""
        own = self.own if len(tokens) >= len(self.own) else ()
        return self.texts.rows_of(tokens.detach().cpu(), own)

    def _stacked(self, numbers: tuple[int, ...], length: int) -> Batch | None:
        batch = self.texts.stacked(numbers, self.device)
        if batch is not None:
            batch.mask(length)  # made here, where it may outlive the block
        return batch

    def embeds(self, tokens: Tensor, states: Tensor) -> None:
        """Take a note of what the text embedding makes of text tokens: states (n, length, width)."""
        with self._outside():
            numbers = self.given.numbers if tokens is self.context else self._numbers_of(tokens)
            self.embedded.append(_Known(ref(states), numbers, self._stacked(numbers, states.shape[1])))

    def has_embedded(self, states: Tensor) -> bool:
        """Whether every row of states (n, length, width) came out of the text embedding."""
        tensors = [own for known in self.embedded if (own := known.tokens()) is not None]
        if any(own is states or same_tensor(own, states) for own in tensors):
            return True
        rows = [row for own in tensors for row in own]
        return all(any(same_tensor(row, own) for row in rows) for own in states)

    # Joint attention

    def enter(self, tokens: Tensor) -> None:
        """Take the rows' deltas from the text tokens (n, length, in) that enter.

        Until the last block has run, they join what entered before.
        """
        with self._outside():
            numbers = self.given.numbers if tokens is self.context else self._numbers_of(tokens)
            self.entering = _Rows(numbers, self.texts.stacked(numbers, self.device))
            length = tokens.shape[1]
            if self.has_entered and not self.is_through:
                numbers = self.texts.together(self.stream.numbers, numbers)
                self.lengths |= {length, *(length + former for former in self.lengths)}
            else:
                self.lengths = {length}
            self.stream = _Rows(numbers, self.texts.stacked(numbers, self.device))
            self.is_through = False

    def lengthened(self, tokens: int) -> None:
        """Take a note that text joined the stream behind its entry: `tokens` of them instead of those that entered."""
        with self._outside():
            (unknown,) = self.texts.unreadable(1, "prompts that another node lengthens inside the model")
            numbers = tuple(unknown if number == BASE else number for number in self.stream.numbers)
            self.stream, self.lengths = _Rows(numbers, self.texts.stacked(numbers, self.device)), {tokens}

    def deltas_of_rows(self, rows: _Rows, count: int) -> Batch | None:
        """The deltas of a joint layer's batch of `count` rows. Rows that joined inside are known to come last.

        rows: one of `given`, `entering` and `stream`.
        """
        numbers = rows.numbers
        if count == len(numbers):
            return rows.batch
        with self._outside():
            what = "rows that another node adds to the batch inside the model"
            if count > len(numbers):
                more = self.texts.unreadable(count - len(numbers), what)
                return self.texts.stacked(numbers + more, self.device)
            if len(set(numbers)) == 1:
                return self.texts.stacked(numbers[:count], self.device)
            return self.texts.stacked(self.texts.unreadable(count, what), self.device)

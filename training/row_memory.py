"""A memory of token rows that stands in for the inner text encoders of a CLIP while its prompts are encoded."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from ..hypernet.forwards import overridden
from .token_rows import Encoded, Row, UnknownRowError, joined, most_tokens, row_key, rows_at_once, separated

# Times that the host may come to a row which isn't known yet: once for each inner encoder, and some more.
_MOST_ROUNDS = 16
# Rows whose masks are made at once.
_MASKED = 64
_RESTLESS = "it asks for other rows each time"

T = TypeVar("T")


class Room(NamedTuple):
    """What the host says of memory. free(device): bytes that are free; errors: what it raises when there is none.

    store: the device that rows are kept on. relax: gives unused memory back.
    """

    free: Callable[[torch.device], float]
    errors: tuple[type[BaseException], ...]
    store: torch.device
    relax: Callable[[], None]


class _UnknownYetError(Exception):
    """A row was asked for that isn't encoded yet. It is noted now."""


class _Slot(NamedTuple):
    """An inner encoder, by number, under the options that decide what it makes of a row."""

    encoder: int
    layer: Any
    layer_idx: Any
    projected: bool


class RowMemory:
    """The rows that inner encoders were asked for, and what they made of them.

    encoders: modules like the host's SDClipModel. most_rows: of one batch. count: rows encoded so far.
    """

    def __init__(self, encoders: Sequence[Any], most_rows: int, room: Room) -> None:
        self.encoders, self.most_rows, self.room = encoders, most_rows, room
        self.forwards = [encoder.forward for encoder in encoders]
        self.known: dict[tuple[_Slot, Any], Encoded] = {}
        self.waiting: dict[_Slot, dict[Any, Row]] = {}
        self.count = 0
        self._on_rows: Callable[[int], None] = _nobody
        self._asked, self._ripe = False, False

    @property
    def bytes(self) -> int:
        """The memory that the known rows take."""
        return sum(row.bytes for row in self.known.values())

    @contextmanager
    def answering(self) -> Generator[None]:
        """While open, the inner encoders answer from this memory."""
        with overridden((encoder, partial(self._answer, number)) for number, encoder in enumerate(self.encoders)):
            yield

    def learn(self, calls: Sequence[Callable[[], Any]], on_rows: Callable[[int], None]) -> None:
        """Encode all rows that `calls` ask for, each of them the host's own method for one prompt.

        on_rows: called between batches with the rows that are done, may raise. Raises `UnknownRowError` where a call
        doesn't ask the inner encoders, or for something else than rows of text.
        """
        before = self.count
        self._on_rows = lambda count: on_rows(count - before)
        for _ in range(_MOST_ROUNDS):
            calls = [call for call in calls if self._answer_of(call) is None]
            # What one call needs, the others have then as well; `answers` encodes the odd row that is missing.
            if not calls or self._answer_of(calls[0], ripe=True) is not None:
                return
        raise UnknownRowError(_RESTLESS)

    def answers(self, calls: Iterable[Callable[[], T]]) -> tuple[T, ...]:
        """What the calls give, with their rows from this memory. Raises as `learn` does."""
        return tuple(self._certain(call) for call in calls)

    def forget(self) -> None:
        """Drop all rows."""
        self.known.clear()
        self.waiting.clear()

    def _certain(self, call: Callable[[], T]) -> T:
        for _ in range(_MOST_ROUNDS):
            for ripe in (False, True):
                answer = self._answer_of(call, ripe)
                if answer is not None:
                    return answer
        raise UnknownRowError(_RESTLESS)

    def _answer_of(self, call: Callable[[], T], ripe: bool = False) -> T | None:
        """What a call gives, None where a row isn't known, which is noted then.

        ripe: rows that were noted before are encoded now: within the host's call the encoder is loaded and has its
        options.
        """
        self._asked, self._ripe = False, ripe
        try:
            with self.answering():
                answer = call()
        except _UnknownYetError:
            return None
        finally:
            self._ripe = False
        if not self._asked:
            raise UnknownRowError("it does without the inner encoders that are known")
        return answer

    def _answer(self, number: int, rows: Sequence[Row]) -> tuple[Any, ...]:
        """What the inner encoder's forward gives for rows of one length."""
        self._asked = True
        slot = _slot(number, self.encoders[number])
        keys = [row_key(row) for row in rows]
        unknown = {key: row for key, row in zip(keys, rows, strict=True) if (slot, key) not in self.known}
        if unknown:
            waiting = self.waiting.setdefault(slot, {})
            if not (self._ripe and unknown.keys() <= waiting.keys()):
                waiting.update(unknown)
                raise _UnknownYetError
            while self.waiting.get(slot):
                self._run(slot)
        return joined([self.known[slot, key] for key in keys], _device(self.encoders[number]))

    def _run(self, slot: _Slot) -> None:
        """Encode rows that wait for a slot, and with them those for the encoder's other layer."""
        encoder = self.encoders[slot.encoder]
        first, second = self._layers(slot)
        # A row that one of the two waits for is soon asked for by the other.
        rows = ({} if second is None else self.waiting.pop(second)) | self.waiting.pop(first)
        padded = encoder.enable_attention_masks and encoder.zero_out_masked
        needed = _valid(encoder, list(rows.values())) if padded else [len(row) for row in rows.values()]
        lengths = {key: (count, len(rows[key])) for key, count in zip(rows, needed, strict=True)}
        queue = sorted(rows, key=lambda key: lengths[key])
        device, width = _device(encoder), _width(encoder, rows[queue[0]])
        while queue:
            tokens = most_tokens(self.room.free(device), width)
            ahead = [lengths[key] for key in queue[: self.most_rows]]
            part = queue[: rows_at_once(ahead, tokens, self.most_rows)]
            longest, _ = lengths[part[-1]]
            outputs = self._encode(first, second, [rows[key][:longest] for key in part])
            if outputs is None:
                self.most_rows = len(part) // 2
                self.room.relax()
                continue
            sizes = [len(rows[key]) for key in part]
            for own, output in outputs.items():
                for key, encoded in zip(part, separated(output, sizes, self.room.store), strict=True):
                    self.known[own, key] = encoded
            queue = queue[len(part) :]
            self.count += len(part)
            self._on_rows(self.count)

    def _layers(self, slot: _Slot) -> tuple[_Slot, _Slot | None]:
        """The slot to encode for, and the one whose rows come from the same pass.

        A pass that gives the states of an earlier layer has those of the last one as well.
        """
        kind = slot.encoder, slot.projected
        same = [own for own, rows in self.waiting.items() if rows and (own.encoder, own.projected) == kind]
        last = [own for own in same if own.layer == "last"]
        early = [own for own in same if own.layer == "hidden" and (slot in last or own == slot)]
        return (early[0], last[0]) if last and early else (slot, None)

    def _encode(self, first: _Slot, second: _Slot | None, batch: list[Row]) -> dict[_Slot, tuple[Any, ...]] | None:
        """The encoder's output for a batch under one or two options, None when it takes too much memory."""
        encoder, forward = self.encoders[first.encoder], self.forwards[first.encoder]
        outputs: dict[_Slot, tuple[Any, ...]] = {}
        network, noted = encoder.transformer.forward, []

        def noting(*args: Any, **options: Any) -> Any:
            noted.append(network(*args, **options))
            return noted[-1]

        try:
            with _options(encoder, first), overridden([(encoder.transformer, noting)]):
                outputs[first] = forward(batch)
            if second is not None:
                # The host's own code makes the other layer's output of what its network has just given.
                with _options(encoder, second), overridden([(encoder.transformer, lambda *_, **__: noted[-1])]):
                    outputs[second] = forward(batch)
        except self.room.errors:
            if len(batch) == 1:
                raise
            return None
        return outputs


def _nobody(count: int) -> None:
    """Where nobody wants to know."""


def _slot(number: int, encoder: Any) -> _Slot:
    layer = tuple(encoder.layer) if isinstance(encoder.layer, list) else encoder.layer
    return _Slot(number, layer, encoder.layer_idx, encoder.return_projected_pooled)


@contextmanager
def _options(encoder: Any, slot: _Slot) -> Generator[None]:
    """While open, the encoder gives the layer of a slot."""
    former = encoder.layer, encoder.layer_idx
    if isinstance(slot.layer, str):  # the others are lists, which nothing changes
        encoder.layer, encoder.layer_idx = slot.layer, slot.layer_idx
    try:
        yield
    finally:
        encoder.layer, encoder.layer_idx = former


def _device(encoder: Any) -> torch.device:
    """Where the encoder computes; older hosts don't say."""
    device = getattr(encoder, "execution_device", None)
    return encoder.transformer.get_input_embeddings().weight.device if device is None else device


def _width(encoder: Any, row: Row) -> int:
    """Numbers in the state of a token."""
    return encoder.process_tokens([row], _device(encoder))[0].shape[-1]


def _valid(encoder: Any, rows: Sequence[Row]) -> list[int]:
    """Tokens of each row up to the last that the encoder's mask leaves."""
    found, alike = [len(row) for row in rows], dict[int, list[int]]()
    for number, row in enumerate(rows):
        # The host drops vectors of another width, so that what follows moves: such rows stay as long as they are.
        if not any(torch.is_tensor(token) for token in row):
            alike.setdefault(len(row), []).append(number)
    for length, numbers in alike.items():
        for first in range(0, len(numbers), _MASKED):
            part = numbers[first : first + _MASKED]
            mask = encoder.process_tokens([rows[number] for number in part], _device(encoder))[1].cpu()
            ends = (mask.bool() * torch.arange(1, length + 1)).amax(1).clamp_min(1)
            for number, end in zip(part, ends.tolist(), strict=True):
                found[number] = end
    return found

"""The texts of one sampling and their deltas: those of the conditionings, and those that reach the network beside them.

Attention patches, wrappers and packages that change the batch inside the network bring text that no conditioning
holds. It is split off by its tokens (``text_rows``), scored like a prompt, and kept for the length of the sampling.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .deltas import Part, PromptDeltas, Span
from .embedding import Entry
from .rows import Batch, RowTable
from .text_rows import Run, TextIndex

# Tensors whose rows are known; a patch may bring another one in each block of the network.
_MOST = 64


class Text(NamedTuple):
    """A text of the sampling: tokens (length, in), and its `Part`s where it was given.

    entry, row: where it stands in a conditioning. exempt: a negative prompt that needs no delta in its place.
    """

    tokens: Tensor
    parts: tuple[Part, ...]
    entry: Entry
    row: int
    exempt: bool


class _Seen(NamedTuple):
    tokens: Tensor
    own: tuple[int, ...]
    numbers: tuple[int, ...]


class SamplingTexts:
    """Which text has which deltas during one sampling. Lives in `transformer_options`.

    A class of its own, because the host copies and merges dicts and lists that it finds there. tell: takes the
    warning for the user, at most once. pushes_away: whether with these model options the sampling's guidance pushes
    away from negative prompts and does nothing else with them.
    """

    def __init__(self, deltas: PromptDeltas, tell: Callable[[str], None]) -> None:
        self.deltas, self.table = deltas, RowTable()
        self.pushes_away: Callable[[Mapping[str, Any]], bool] = lambda _: False
        self._tell, self._warned = tell, False
        self._texts: list[Text] = []
        self._number_of: dict[bytes, int] = {}
        self._elsewhere: dict[int, tuple[Part, ...]] = {}
        self._indexes: dict[torch.dtype, TextIndex] = {}
        self._others: dict[bytes, tuple[Part, ...]] = {}
        self._seen: deque[_Seen] = deque(maxlen=_MOST)

    @property
    def strict(self) -> bool:
        """Whether text that can't be read counts as erased."""
        return self.deltas.fallback is not None

    def warn(self, message: str) -> None:
        """Tell the user once a sampling that something may run unprotected."""
        if not self._warned:
            self._warned = True
            self._tell(message)

    def register(self, entries: list[Entry], exempt: bool = False) -> list[list[int]]:
        """The numbers of the texts of conditioning entries, one for each prompt of an entry's batch.

        exempt: whether they are negative prompts that need no delta.
        """
        found = [[()] * _rows(entry) for entry in entries] if exempt else self._scored(entries)
        return [
            [self._number(entry, row, parts, exempt) for row, parts in enumerate(prompts)]
            for entry, prompts in zip(entries, found, strict=True)
        ]

    def _scored(self, entries: list[Entry]) -> list[list[tuple[Part, ...]]]:
        found, unknown = self.deltas.parts(entries)
        if unknown:
            self.warn(self.deltas.unknown_message())
        return found

    def parts_of_entry(self, entry: Entry) -> list[tuple[Part, ...]]:
        """The parts of each prompt of an entry that is no text of the sampler's."""
        return self._scored([entry])[0]

    def parts_of(self, own: Sequence[int]) -> list[tuple[Part, ...]]:
        """The parts of these texts."""
        return [self._texts[text].parts for text in own]

    def any_exempt(self, own: Sequence[int]) -> bool:
        """Whether one of these texts is a negative prompt that needs no delta."""
        return any(self._texts[text].exempt for text in own)

    def _number(self, entry: Entry, row: int, parts: tuple[Part, ...], exempt: bool) -> int:
        states = entry.get("cross_attn")
        tokens = torch.zeros(0, 1) if states is None else states[row % len(states)].detach().cpu()
        key = repr([(part.span, part.key) for part in parts]).encode() + bytes([exempt]) + _digest(tokens)
        if key not in self._number_of:
            self._number_of[key] = len(self._texts)
            self._texts.append(Text(tokens, parts, entry, row, exempt))
        return self._number_of[key]

    def row_numbers(self, own: Sequence[int]) -> tuple[int, ...]:
        """The row numbers, see `RowTable`, of rows that are these texts."""
        return tuple(self.table.number(self._texts[text].parts) for text in own)

    def stacked(self, numbers: tuple[int, ...], device: torch.device) -> Batch | None:
        """See `RowTable.stacked`."""
        return self.table.stacked(numbers, device)

    def rows_of(self, tokens: Tensor, own: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The row number of each row of text tokens (n, length, in), from what is in it.

        own: the texts that the first rows were given, as far as they are known.
        """
        for seen in reversed(tuple(self._seen)):
            if seen.own == own and same_tensor(seen.tokens, tokens):
                return seen.numbers
        rows = tokens.detach().cpu()
        texts = [own[row] if row < len(own) else None for row in range(len(rows))]
        numbers = tuple(self.table.number(parts) for parts in self._parts_of_rows(rows, texts))
        self._seen.append(_Seen(tokens.detach().clone(), own, numbers))
        return numbers

    def unreadable(self, rows: int, what: str) -> tuple[int, ...]:
        """The row numbers of rows whose text can't be known. what: names them in the warning."""
        outcome = "are treated as erased" if self.strict else "run without erasure"
        self.warn(f"UnHype: {what} {outcome} {self.deltas.policy}, hypernet '{self.deltas.eraser.name}'.")
        return (self.table.number(self.deltas.unreadable()),) * rows

    def together(self, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
        """The row numbers of rows that have two texts each; of batches of other lengths each row may have any."""
        if len(first) != len(second):
            first = (self._all_of(first),) * max(len(first), len(second))
            second = (self._all_of(second),) * len(first)
        return tuple(self._all_of(both) for both in zip(first, second, strict=True))

    def _all_of(self, numbers: Iterable[int]) -> int:
        parts = [part for number in dict.fromkeys(numbers) for part in self.table.parts(number)]
        return self.table.number(self.deltas.merged(parts))

    def rows_among(
        self, states: Tensor, known: Iterable[tuple[Tensor, tuple[int, ...]]], pictures: bool
    ) -> tuple[int, ...]:
        """The row number of each row of embedded tokens (n, length, width) by those of which the text is known.

        known: embedded tokens (rows, length, width) and the row number of each. pictures: whether what isn't known
        is a picture, which gets no delta.
        """
        index, parts = TextIndex(), []
        for tokens, numbers in known:
            for row, number in zip(tokens.detach().cpu(), numbers, strict=True):
                parts.append(self.table.parts(number))
                index.add(row, bool(parts[-1]))
        rows, found = states.detach().cpu(), []
        for row in rows:
            runs = index.runs(row)
            if any(run.text is None for run in runs) and not pictures:
                self.unreadable(1, "tokens that another node puts behind the model's text embedding")
            unknown = () if pictures else self.deltas.unreadable()
            found.append(self._row_parts(runs, len(row), parts.__getitem__, lambda _, unknown=unknown: unknown))
        return tuple(map(self.table.number, found))

    def _parts_of_rows(self, rows: Tensor, texts: Sequence[int | None]) -> list[tuple[Part, ...]]:
        keys = [(_digest(row), text) for row, text in zip(rows, texts, strict=True)]
        new = {key: row for key, row in zip(keys, rows, strict=True) if not self._is_own(key[1], row)}
        index = self._index(rows.dtype)
        runs = {(digest, text): index.runs(row, text) for (digest, text), row in new.items()}
        self._score(row[run.start : run.stop] for key, row in new.items() for run in runs[key] if run.text is None)
        own: dict[int | None, tuple[Part, ...]] = {text: self._texts[text].parts for text in texts if text is not None}
        found = {}
        for key, row in new.items():
            found[key] = self._row_parts(
                runs[key],
                len(row),
                partial(self._parts_of_text, own=self._whole(key[1], runs[key])),
                lambda run, row=row: self._others[_digest(row[run.start : run.stop])],
            )
        return [found[key] if key in found else own[key[1]] for key in keys]

    def _is_own(self, text: int | None, row: Tensor) -> bool:
        """Whether a row is the text that it was given, repeated or not."""
        if text is None:
            return False
        tokens = self._texts[text].tokens.to(row.dtype)
        fits = len(tokens) and tokens.shape[1] == row.shape[1] and not len(row) % len(tokens)
        return bool(fits) and torch.equal(tokens.repeat(len(row) // len(tokens), 1), row)

    def _whole(self, text: int | None, runs: Iterable[Run]) -> int | None:
        """The text of a row, if all of it is there."""
        if text is None:
            return None
        there = {place for run in runs if run.text == text for _, place in run.tokens}
        return text if there.issuperset(self._texts[text].tokens.any(-1).nonzero().flatten().tolist()) else None

    def _row_parts(
        self,
        runs: Iterable[Run],
        length: int,
        parts_of: Callable[[int], tuple[Part, ...]],
        other_parts_of: Callable[[Run], tuple[Part, ...]],
    ) -> tuple[Part, ...]:
        """The parts of a row of `length` tokens, from those of the texts in it."""
        found: list[Part] = []
        for run in runs:
            if run.text is None:
                for part in other_parts_of(run):
                    start, stop, whole = part.span
                    here = (run.start, run.stop) if stop - start == whole else (run.start + start, run.start + stop)
                    found.append(part._replace(span=Span(*here, length)))
                continue
            for part in parts_of(run.text):
                places = [here for here, place in run.tokens if part.span.start <= place < part.span.stop]
                if places:
                    found.append(part._replace(span=Span(min(places), max(places) + 1, length)))
        return self.deltas.merged(found)

    def _parts_of_text(self, text: int, own: int | None) -> tuple[Part, ...]:
        """The parts of a known text. own: the text that the row was given, if all of it is there; a negative prompt
        that is in another row, or in pieces, counts like any prompt."""
        known = self._texts[text]
        if not known.exempt or text == own:
            return known.parts
        if text not in self._elsewhere:
            self._elsewhere[text] = self.parts_of_entry(known.entry)[known.row]
        return self._elsewhere[text]

    def _score(self, others: Iterable[Tensor]) -> None:
        """Score text that isn't known: (tokens, in) each."""
        new = {_digest(tokens): tokens for tokens in others}
        new = {key: tokens for key, tokens in new.items() if key not in self._others}
        if not new:
            return
        found, unknown = self.deltas.parts([{"cross_attn": tokens.unsqueeze(0)} for tokens in new.values()])
        if unknown:
            self.warn(self.deltas.unknown_message("text that another node brings into the model"))
        self._others.update((key, prompts[0]) for key, prompts in zip(new, found, strict=True))

    def _index(self, dtype: torch.dtype) -> TextIndex:
        """The index of all texts in the network's dtype."""
        index = self._indexes.setdefault(dtype, TextIndex(self.deltas.eraser.record.text_encoder.chunk))
        for text in self._texts[len(index) :]:
            index.add(text.tokens.to(dtype), bool(text.parts))
        return index


def _rows(entry: Entry) -> int:
    states = entry.get("cross_attn")
    return 1 if states is None else len(states)


def same_tensor(known: Tensor, tokens: Tensor) -> bool:
    """Whether two tensors are equal in every respect."""
    return (
        known.shape == tokens.shape
        and known.dtype == tokens.dtype
        and known.device == tokens.device
        and torch.equal(known, tokens)
    )


def _digest(tokens: Tensor) -> bytes:
    """A key of token states (n, in) on the CPU by their content."""
    shape = f"{tuple(tokens.shape)} {tokens.dtype}".encode()
    return hashlib.blake2b(tokens.contiguous().view(torch.uint8).numpy().tobytes() + shape, digest_size=16).digest()

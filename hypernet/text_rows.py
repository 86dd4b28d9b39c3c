"""Where the token rows of a layer's input come from: known texts, whole or in pieces, and text that nobody knows.

Tokens are compared by their states, bit for bit. A row may hold texts one after the other, repeated, cut, split
by other tokens or padded with zeros.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Neighbouring tokens of a row, from `start` to `stop`; zeros between them don't count.

    text: the number of the known text that they are from, None for text that isn't known. tokens: of a known
    text, for each of them its place in the row and in the text.
    """

    start: int
    stop: int
    text: int | None
    tokens: tuple[tuple[int, int], ...] = ()


class _Chunk(NamedTuple):
    """Tokens of a known text that the text encoder processed together: keys and places of those that aren't zero."""

    text: int
    keys: list[bytes]
    places: list[int]
    preferred: bool


class _Piece(NamedTuple):
    """Tokens `start` to `stop` of a row without its zeros, from token `first` of a chunk on; None is unknown text."""

    start: int
    stop: int
    chunk: int | None
    first: int = 0


@dataclass
class _Occurrence:
    """One occurrence of a chunk in a row so far: the next token that it needs and the pieces that it has."""

    chunk: int
    next: int
    pieces: list[int] = field(default_factory=list)


def token_keys(tokens: Tensor) -> list[bytes | None]:
    """A key for each token of (n, in) on the CPU, equal for equal states; None for a token of zeros."""
    there = tokens.any(-1).tolist()
    states = tokens.contiguous().view(torch.uint8).reshape(len(tokens), -1).numpy()
    return [state.tobytes() if some else None for state, some in zip(states, there, strict=True)]


class TextIndex:
    """The known texts of a sampling, to find their tokens again.

    chunk: tokens that the text encoder processes together, 0 where that is not known.
    """

    def __init__(self, chunk: int = 0) -> None:
        self.chunk = chunk
        self._count = 0
        self._chunks: list[_Chunk] = []
        self._where: dict[bytes, list[tuple[int, int]]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, tokens: Tensor, preferred: bool) -> None:
        """Add the text of tokens (length, in) under the next number. preferred: it wins over equal texts."""
        keys = token_keys(tokens)
        length = self.chunk or len(keys)
        for start in range(0, len(keys), length or 1):
            there = [(place, key) for place, key in enumerate(keys[start : start + length], start) if key is not None]
            for n, (_, key) in enumerate(there):
                self._where.setdefault(key, []).append((len(self._chunks), n))
            chunk = _Chunk(self._count, [key for _, key in there], [place for place, _ in there], preferred)
            self._chunks.append(chunk)
        self._count += 1

    def runs(self, tokens: Tensor, own: int | None = None) -> list[Run]:
        """The `Run`s of a row of tokens (n, in) on the CPU, in their order.

        own: the text that the row was given, if known; it wins over equal ones. Texts of a causal encoder begin
        alike, so the beginning of a known chunk right before unknown tokens belongs to them, unless the rest of
        the chunk follows.
        """
        keys = token_keys(tokens)
        places = [place for place, key in enumerate(keys) if key is not None]
        pieces, occurrences = self._pieces([key for key in keys if key is not None], own)
        shared = {
            occurrence.pieces[0]
            for occurrence in occurrences
            if len(occurrence.pieces) == 1
            and pieces[occurrence.pieces[0]].first == 0
            and occurrence.next < len(self._chunks[occurrence.chunk].keys)
        }
        return list(self._joined(pieces, shared, places, len(tokens)))

    def _pieces(self, sequence: Sequence[bytes], own: int | None) -> tuple[list[_Piece], list[_Occurrence]]:
        pieces: list[_Piece] = []
        occurrences: list[_Occurrence] = []
        at = 0
        while at < len(sequence):
            begun = {(occurrence.chunk, occurrence.next): occurrence for occurrence in reversed(occurrences)}

            def rank(
                place: tuple[int, int], at: int = at, begun: Container[tuple[int, int]] = begun
            ) -> tuple[int, ...]:
                chunk = self._chunks[place[0]]
                return (
                    _common(sequence, at, chunk.keys, place[1]),
                    place in begun,
                    chunk.text == own,
                    chunk.preferred,
                )

            best = max(self._where.get(sequence[at], ()), key=rank, default=None)
            if best is None:
                if pieces and pieces[-1].chunk is None:
                    pieces[-1] = pieces[-1]._replace(stop=at + 1)
                else:
                    pieces.append(_Piece(at, at + 1, None))
                at += 1
                continue
            stop = at + rank(best)[0]
            if best not in begun:
                begun[best] = _Occurrence(*best)
                occurrences.append(begun[best])
            begun[best].next = best[1] + stop - at
            begun[best].pieces.append(len(pieces))
            pieces.append(_Piece(at, stop, *best))
            at = stop
        return pieces, occurrences

    def _joined(self, pieces: list[_Piece], shared: set[int], places: list[int], length: int) -> Iterator[Run]:
        """The runs of the pieces, in places of the row; pieces of `shared` join unknown text behind them."""
        begin = None
        for number, piece in enumerate(pieces):
            follows = number + 1 < len(pieces) and pieces[number + 1].chunk is None
            if piece.chunk is None:
                start = places[piece.start if begin is None else begin]
                blank_until = places[piece.stop] if piece.stop < len(places) else length
                yield Run(start, self._with_padding(start, places[piece.stop - 1] + 1, blank_until), None)
                begin = None
            elif number in shared and follows:
                begin = piece.start
            else:
                chunk = self._chunks[piece.chunk]
                here = places[piece.start : piece.stop]
                there = chunk.places[piece.first : piece.first + len(here)]
                yield Run(here[0], here[-1] + 1, chunk.text, tuple(zip(here, there, strict=True)))

    def _with_padding(self, start: int, stop: int, blank_until: int) -> int:
        """Where a text ends whose encoder pads it with zeros: at the end of its last chunk."""
        if not self.chunk:
            return stop
        return max(stop, min(blank_until, start + -(-(stop - start) // self.chunk) * self.chunk))


def _common(sequence: Sequence[bytes], at: int, text: Sequence[bytes], first: int) -> int:
    """How many tokens from `at` on are those of `text` from `first` on."""
    most = min(len(sequence) - at, len(text) - first)
    return next((n for n in range(most) if sequence[at + n] != text[first + n]), most)

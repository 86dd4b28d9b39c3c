"""Where the token rows of a layer's input come from: known texts, whole or in pieces, and text that nobody knows.

Tokens are compared by their states, bit for bit. A row may hold texts one after the other, repeated, cut, split
by other tokens or padded with zeros.
"""

from collections.abc import Iterator, Sequence
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


class _Piece(NamedTuple):
    """Tokens `start` to `stop` of a row without its zeros, from token `first` of a text on."""

    start: int
    stop: int
    text: int | None
    first: int = 0


@dataclass
class _Occurrence:
    """One occurrence of a text in a row so far: the next token that it needs and the pieces that it has."""

    text: int
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
        self._texts: list[tuple[list[bytes], list[int], bool]] = []
        self._where: dict[bytes, list[tuple[int, int]]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, tokens: Tensor, preferred: bool) -> None:
        """Add the text of tokens (length, in) under the next number. preferred: it wins over equal texts."""
        number = len(self._texts)
        keys = [(place, key) for place, key in enumerate(token_keys(tokens)) if key is not None]
        self._texts.append(([key for _, key in keys], [place for place, _ in keys], preferred))
        for n, (_, key) in enumerate(keys):
            self._where.setdefault(key, []).append((number, n))

    def runs(self, tokens: Tensor, own: int | None = None) -> list[Run]:
        """The `Run`s of a row of tokens (n, in) on the CPU, in their order.

        own: the text that the row was given, if known; it wins over equal ones. Texts of a causal encoder begin
        alike, so the beginning of a known text right before unknown tokens belongs to them, unless the rest of
        the known text follows.
        """
        keys = token_keys(tokens)
        places = [place for place, key in enumerate(keys) if key is not None]
        pieces, occurrences = self._pieces([key for key in keys if key is not None], own)
        shared = {
            occurrence.pieces[0]
            for occurrence in occurrences
            if len(occurrence.pieces) == 1
            and pieces[occurrence.pieces[0]].first == 0
            and occurrence.next < len(self._texts[occurrence.text][0])
        }
        return list(self._joined(pieces, shared, places, len(tokens)))

    def _pieces(self, sequence: Sequence[bytes], own: int | None) -> tuple[list[_Piece], list[_Occurrence]]:
        pieces: list[_Piece] = []
        occurrences: list[_Occurrence] = []
        at = 0
        while at < len(sequence):
            best, best_rank = None, (0, False, False, False)
            for text, first in self._where.get(sequence[at], ()):
                going_on = any(other.text == text and other.next == first for other in occurrences)
                length = _common(sequence, at, self._texts[text][0], first)
                rank = (length, going_on, text == own, self._texts[text][2])
                if rank > best_rank:
                    best, best_rank = (text, first), rank
            if best is None:
                if pieces and pieces[-1].text is None:
                    pieces[-1] = pieces[-1]._replace(stop=at + 1)
                else:
                    pieces.append(_Piece(at, at + 1, None))
                at += 1
                continue
            (text, first), length = best, best_rank[0]
            begun = next((other for other in occurrences if other.text == text and other.next == first), None)
            if begun is None:
                begun = _Occurrence(text, first)
                occurrences.append(begun)
            begun.next = first + length
            begun.pieces.append(len(pieces))
            pieces.append(_Piece(at, at + length, text, first))
            at += length
        return pieces, occurrences

    def _joined(self, pieces: list[_Piece], shared: set[int], places: list[int], length: int) -> Iterator[Run]:
        """The runs of the pieces, in places of the row; pieces of `shared` join unknown text behind them."""
        begin = None
        for number, piece in enumerate(pieces):
            follows = number + 1 < len(pieces) and pieces[number + 1].text is None
            if piece.text is None:
                start = places[piece.start if begin is None else begin]
                blank_until = places[piece.stop] if piece.stop < len(places) else length
                yield Run(start, self._with_padding(start, places[piece.stop - 1] + 1, blank_until), None)
                begin = None
            elif number in shared and follows:
                begin = piece.start
            else:
                text_places = self._texts[piece.text][1]
                tokens = tuple(
                    (places[piece.start + n], text_places[piece.first + n]) for n in range(piece.stop - piece.start)
                )
                yield Run(places[piece.start], places[piece.stop - 1] + 1, piece.text, tokens)

    def _with_padding(self, start: int, stop: int, blank_until: int) -> int:
        """Where a text ends whose encoder pads it with zeros: at the end of its last chunk."""
        if not self.chunk:
            return stop
        return max(stop, min(blank_until, start + -(-(stop - start) // self.chunk) * self.chunk))


def _common(sequence: Sequence[bytes], at: int, text: Sequence[bytes], first: int) -> int:
    """How many tokens from `at` on are those of `text` from `first` on."""
    most = min(len(sequence) - at, len(text) - first)
    return next((n for n in range(most) if sequence[at + n] != text[first + n]), most)

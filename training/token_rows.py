"""Rows of tokens for a text encoder: when two are the same, how many run at once, and what comes out of each.

A row is what an inner text encoder takes at once: a chunk of 77 tokens of CLIP, the whole prompt of a language
model. Rows don't depend on each other, so they may be encoded in any order and number.
"""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Token ids, and the vectors of textual inversions.
Row = Sequence[Any]
# Tokens of one batch, its padding counted: more makes no token cheaper, and takes memory.
_MOST_TOKENS = 4096
# Tokens of a batch with its padding, as a multiple of those that count.
_MOST_PADDING = 1.5
# Bytes of a token on its way through a layer, for each number of its state: generous for gated feed-forwards.
_BYTES = 160


class UnknownRowError(ValueError):
    """A row, or what an encoder made of it, isn't of the kind that is known here."""


def row_key(row: Row) -> tuple[Any, ...]:
    """Equal for rows of equal content. Raises `UnknownRowError` for pictures and whatever else is no text."""
    return tuple(token if type(token) is int else _token_key(token) for token in row)


def _token_key(token: Any) -> Any:
    if isinstance(token, numbers.Integral):
        return int(token)
    if not torch.is_tensor(token) or token.dim() != 1:
        raise UnknownRowError(f"a prompt has tokens of the type {type(token).__name__}")
    content = token.detach().cpu().contiguous().flatten().view(torch.uint8)
    return str(token.dtype), tuple(token.shape), content.numpy().tobytes()


class Encoded(NamedTuple):
    """What an encoder makes of one row: states (..., tokens, width), pooled (width,) or None, and further tensors."""

    states: Tensor
    pooled: Tensor | None
    extra: dict[str, Tensor] | None

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        tensors = [self.states, *([] if self.pooled is None else [self.pooled]), *(self.extra or {}).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def separated(output: tuple[Any, ...], lengths: Sequence[int], device: torch.device) -> list[Encoded]:
    """What an encoder gave for a batch, row by row, on `device`.

    output: states (rows, ..., tokens, width), pooled (rows, width) or None, and perhaps a dict. lengths: tokens
    that each row has; states and masks are filled up with zeros to them. Raises `UnknownRowError` for a dict of
    other things than a tensor with a row for each row.
    """
    states, pooled, extra = (*output[:2], output[2] if len(output) > 2 else None)
    for value in (extra or {}).values():
        if not torch.is_tensor(value) or value.shape[:1] != states.shape[:1]:
            raise UnknownRowError("its further outputs aren't a row each")
    states, pooled = states.to(device), None if pooled is None else pooled.to(device)
    extra = None if extra is None else {name: value.to(device) for name, value in extra.items()}
    rows = []
    for n, length in enumerate(lengths):
        missing = length - states.shape[-2]
        own = None if extra is None else {name: value[n] for name, value in extra.items()}
        if missing and own is not None and "attention_mask" in own:
            own["attention_mask"] = torch.nn.functional.pad(own["attention_mask"], (0, missing))
        padded = torch.nn.functional.pad(states[n], (0, 0, 0, missing)) if missing else states[n]
        rows.append(Encoded(padded, None if pooled is None else pooled[n], own))
    return rows


def joined(rows: Sequence[Encoded], device: torch.device) -> tuple[Any, ...]:
    """The reverse: rows of one length as an encoder gives them for a batch, copies on `device`."""
    states = torch.stack([row.states for row in rows]).to(device)
    pooled = None if rows[0].pooled is None else torch.stack([row.pooled for row in rows if row.pooled is not None])
    pooled = None if pooled is None else pooled.to(device)
    if rows[0].extra is None:
        return states, pooled
    extra = {name: torch.stack([(row.extra or {})[name] for row in rows]).to(device) for name in rows[0].extra}
    return states, pooled, extra


def most_tokens(free: float, width: int) -> int:
    """Tokens of a batch. free: bytes of memory; width: numbers in a token's state."""
    return max(1, min(_MOST_TOKENS, int(free / 2 / (_BYTES * width))))


def rows_at_once(lengths: Sequence[tuple[int, int]], tokens: int, rows: int) -> int:
    """How many of the first rows run at once, one at least.

    lengths: of each row the tokens that count and all of its tokens, sorted. Padding may be left out, but a row isn't
    made longer. tokens, rows: the most of a batch.
    """
    count, whole, total = 1, lengths[0][1], lengths[0][0]
    for needed, own in lengths[1:rows]:
        whole, total = min(whole, own), total + needed
        if needed > whole or (count + 1) * needed > min(tokens, _MOST_PADDING * total):
            break
        count += 1
    return count

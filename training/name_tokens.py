"""Where in a prompt's token states a name ends, found with any of ComfyUI's tokenizers.

Two texts that go on differently behind the name begin with the same tokens; the last of these is the name's last.
In an encoder that reads from left to right it is the first that has seen the whole name.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .written import end_of_name


def last_tokens_of(clip: Any, prompt: str, name: str, length: int) -> list[int]:
    """The indices of the name's last token among `length` token states of a prompt, none where they can't be found.

    Where two encoders' states follow each other (SD 3), each has one. Where a template in front was cut off
    (Qwen-Image, Z-Image), the last tokens are those of the states.
    """
    end = end_of_name(prompt, name)
    before, behind = prompt[: end - len(name)], prompt[end:]
    unreadable = " ".join("\ue000" * len(word) for word in name.split())
    texts = (prompt, f"{prompt} zebra", f"{prompt[:end]} umbrella", before + unreadable + behind)
    rows, one, other, without = (_rows(clip, text) for text in texts)
    # A tokenizer that lacks the characters of a name (T5: CJK, emoji) makes the same tokens of any such word.
    ends = {(n, _common_start(one[n], other[n]) - 1) for n, ids in enumerate(rows) if ids != without[n]}
    return [place for place, token in enumerate(_places_of_states(rows, length)) if token in ends]


def span_of(clip: Any, name: str, most: int) -> int:
    """How many tokens a name is, from 1 to `most`; where tokenizers differ, in the one that makes fewest of it."""
    named, other = (_rows(clip, f"a {name} {word}") for word in ("zebra", "umbrella"))
    without = [_rows(clip, f"a {word}") for word in ("zebra", "umbrella")]
    spans = [
        _common_start(ids, other[n]) - min(_common_start(ids, rows[n]) for rows in without)
        for n, ids in enumerate(named)
    ]
    return max(1, min([*spans, most]))


def distinct_tokens(clip: Any, text: str, length: int) -> list[int]:
    """The indices of the tokens behind `length` token states of a text, without most of the padding: of a run of
    equal tokens the first two and the last count. All of them where the tokens can't be found."""
    rows = _rows(clip, text)
    ids = [rows[n][index] for n, index in _places_of_states(rows, length)] or list(range(length))
    return [
        place
        for place in range(length)
        if place < 2 or place == length - 1 or len({*ids[place - 2 : place + 1]}) > 1 or ids[place + 1] != ids[place]
    ]


def ids_of_states(clip: Any, text: str, length: int) -> list[list[Any]]:
    """The token ids behind `length` token states of a text, a list for each tokenizer whose states follow each other;
    none where they can't be found. A textual inversion counts as one id, its content."""
    rows = _rows(clip, text)
    ids: dict[int, list[Any]] = {}
    for n, index in _places_of_states(rows, length):
        ids.setdefault(n, []).append(rows[n][index])
    return list(ids.values())


def _places_of_states(rows: list[list[Any]], length: int) -> list[tuple[int, int]]:
    """For each of `length` token states the number of its row of tokens and the index there; none if unknown."""
    for n, ids in enumerate(rows):
        if len(ids) == length:
            return [(n, index) for index in range(length)]
    last = len(rows) - 1
    if last > 0 and len(rows[0]) + len(rows[last]) == length:
        return [(0, index) for index in range(len(rows[0]))] + [(last, index) for index in range(len(rows[last]))]
    if last == 0 and len(rows[0]) > length:
        return [(0, index) for index in range(len(rows[0]) - length, len(rows[0]))]
    return []


def _rows(clip: Any, text: str) -> list[list[Any]]:
    """The token ids of each tokenizer, all chunks in a row."""
    tokens = clip.tokenize(text)
    chunks_of = tokens.values() if isinstance(tokens, dict) else ()
    return [[_key(token[0]) for chunk in chunks for token in chunk] for chunks in chunks_of]


def _key(token: Any) -> Any:
    """A token id, or the content of a textual inversion's vector."""
    return token.detach().cpu().numpy().tobytes() if torch.is_tensor(token) else token


def _common_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements two sequences begin with in common."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

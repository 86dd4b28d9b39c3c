"""Many prompts through ComfyUI's own text encoders at once, a door to the host.

Batches are made one level below the tokens. The classes that know a model family's prompts (weights, chunks, textual
inversion, masks, zeroing, further outputs) hand rows of tokens to inner encoders, and rows don't depend on each other:

1. the host's own method is called for every prompt, and what it asks of an inner encoder is noted;
2. the noted rows run through the inner encoder in batches;
3. the host's own method is called again, and the memory of those rows answers for the inner encoder.

Calls of the host's method cost about as much as a small encoder's pass, so there are no more of them.

Eight prompts that are encoded both ways decide whether the result is the same, and which way is faster.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy.sd1_clip import SDClipModel

from .encode import EncodedPrompt, OnProgress, encode, one_by_one
from .frozen import out_of_memory_errors
from .row_memory import Room, RowMemory
from .token_rows import UnknownRowError

# Prompts that are encoded both ways, and the largest share of a token's state by which they may differ.
_TRIED, _TOLERANCE = 8, 1e-4
# Fewer prompts aren't worth the trial.
_WORTHWHILE = 32
# Rows of one batch at most, and prompts whose rows are kept at once: enough that rows of like length are among them.
_MOST_ROWS, _WINDOW, _WINDOW_BYTES = 64, 256, 2e9

_ALONE = "UnHype: encoding prompts one by one, since this text encoder takes no batches: %s."

log = logging.getLogger("unhype")


def in_batches(
    versions: Sequence[Any], texts: Sequence[str], source: str, on_progress: OnProgress
) -> Iterator[tuple[EncodedPrompt, ...]]:
    """Encode texts as `encode.one_by_one` does, up to rounding, many at a time.

    versions: of one CLIP, see `encode.skipping_last_layer`. Where batches are unknown, differ or are slower, texts are
    encoded one by one. on_progress is called between batches. Nothing stays on the host's objects, neither while the
    iterator waits nor when it ends.
    """
    total, done = len(texts), 0
    way = _tried(versions, texts, source, partial(on_progress, 0, total)) if total >= _WORTHWHILE else None
    while way is not None and done < total:
        part = _calls(versions, texts[done : done + way.window], source)
        on_progress(done, total)
        try:
            way.rows.learn(_first_of(part), partial(_report, on_progress, done, way, total))
            for calls in part:
                yield way.rows.answers(calls)
                done += 1
        except UnknownRowError as error:
            log.info(_ALONE, error)
            break
        way.rows.forget()
    yield from one_by_one(versions, texts[done:], source, lambda own, _: on_progress(done + own, total))


class _Way(NamedTuple):
    """How to encode, found by trial. each: rows of one prompt, on average. window: prompts to learn at once."""

    rows: RowMemory
    each: float
    window: int


def _report(on_progress: OnProgress, done: int, way: _Way, total: int, rows: int) -> None:
    """Report prompts in the middle of a window, by its rows that are done."""
    on_progress(min(total, done + min(way.window - 1, int(rows / way.each))), total)


# The host's own method for one prompt.
_Call = Callable[[], EncodedPrompt]


def _calls(versions: Sequence[Any], texts: Sequence[str], source: str) -> list[tuple[_Call, ...]]:
    """For each text the calls that encode it, one for each version. The tokens are the same for all of them."""
    tokens = [versions[0].tokenize(text) for text in texts]
    return [
        tuple(partial(encode, version, text, source, own) for version in versions)
        for text, own in zip(texts, tokens, strict=True)
    ]


def _first_of(calls: Sequence[tuple[_Call, ...]]) -> list[_Call]:
    """The calls that ask for all rows: versions ask for the same rows, so one prompt is enough to know their layers."""
    return [*calls[0], *(own[0] for own in calls[1:])]


def _tried(versions: Sequence[Any], texts: Sequence[str], source: str, on_progress: Callable[[], None]) -> _Way | None:
    """The fastest way that gives the same for some of the texts, None for the host's own; the log says why.

    on_progress: called all along, may raise.
    """
    encoders = _inner_encoders(versions[0])
    if not encoders:
        log.info(_ALONE, "it has hooks, or isn't made like the others")
        return None
    timed, others = _some(texts)
    started = _clock()
    expected = list(one_by_one(versions, timed, source, lambda *_: on_progress()))
    fastest, chosen = _clock() - started, None
    expected += one_by_one(versions, others, source, lambda *_: on_progress())
    # One row at a time gains as well: padding is left out, and two layers come from one pass.
    for most_rows in (1, _MOST_ROWS):
        rows, started = RowMemory(encoders, most_rows, _room()), _clock()
        try:
            found = _learned(rows, _calls(versions, timed, source), on_progress)
            seconds = _clock() - started
            found += _learned(rows, _calls(versions, others, source), on_progress)
        except UnknownRowError as error:
            log.info(_ALONE, error)
            return None
        if not _same(found, expected):
            log.info("UnHype: this text encoder gives other values for %d rows at once.", most_rows)
        elif seconds <= fastest:
            fastest, chosen = seconds, rows
    if chosen is None:
        log.info("UnHype: encoding prompts one by one, which is fastest here.")
        return None
    each = chosen.count / _TRIED
    free = min(_WINDOW_BYTES, comfy.model_management.get_free_memory(chosen.room.store) / 4)
    window = int(min(_WINDOW, max(_TRIED, free * _TRIED / chosen.bytes)))
    chosen.forget()  # a prompt that is known already would not show the layers of its rows
    return _Way(chosen, each, window)


def _learned(
    rows: RowMemory, calls: Sequence[tuple[_Call, ...]], on_progress: Callable[[], None]
) -> list[tuple[EncodedPrompt, ...]]:
    rows.learn(_first_of(calls), lambda _: on_progress())
    return [rows.answers(own) for own in calls]


# Replaced in tests, which measure no time.
_clock = time.perf_counter


def _some(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Texts for the trial: some of like length, as batches have them, and the shortest and the longest."""
    by_length = sorted(texts, key=len)
    middle = (len(texts) - _TRIED) // 2 + 1
    return by_length[middle : middle + _TRIED - 2], [by_length[0], by_length[-1]]


def _inner_encoders(clip: Any) -> list[SDClipModel]:
    """The encoders within a CLIP that rows of tokens are handed to, none where hooks change them prompt by prompt."""
    model, patcher = getattr(clip, "cond_stage_model", None), getattr(clip, "patcher", None)
    if model is None or patcher is None or patcher.forced_hooks is not None or clip.use_clip_schedule:
        return []
    return [module for module in model.modules() if isinstance(module, SDClipModel)]


def _room() -> Room:
    return Room(
        comfy.model_management.get_free_memory,
        out_of_memory_errors(),
        comfy.model_management.intermediate_device(),
        comfy.model_management.soft_empty_cache,
    )


def _same(found: Any, expected: Any) -> bool:
    """Whether two nests of prompts are equal, tensors up to rounding."""
    if torch.is_tensor(expected):
        if not torch.is_tensor(found) or found.shape != expected.shape:
            return False
        error, size = (found.double() - expected.double()).norm(dim=-1), expected.double().norm(dim=-1)
        return bool((error <= _TOLERANCE * size).all())
    if isinstance(expected, EncodedPrompt):
        return _same([found.c, found.conditioning], [expected.c, expected.conditioning])
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[name], expected[name]) for name in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(_same, found, expected))
    return bool(found == expected)

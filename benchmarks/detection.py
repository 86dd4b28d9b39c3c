"""Which prompts an eraser detects, counted by what kind of prompt they are."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from unhype.hypernet.embedding import Conditioning, Entry, entries_of
from unhype.hypernet.eraser import Eraser

from .lab.measure import encode

# Conditioning entries of prompts to whether each is detected.
Detected = Callable[[list[Entry]], list[bool]]
# Group to label to how many prompts something holds for, of how many.
Counts = dict[str, dict[str, list[int]]]
_AT_ONCE = 64


class Case(NamedTuple):
    """A prompt to look at.

    group: what it belongs to; labels: all else that it is counted by; shows: the name of the vocabulary that its
    picture shows if the model draws it, "" where there is none.
    """

    text: str
    group: str
    labels: tuple[str, ...] = ()
    shows: str = ""


def highest_scores(eraser: Eraser, entries: Sequence[Entry]) -> list[float]:
    """The detector's highest score for each conditioning entry; from 1 on the eraser acts on it.

    Every other module asks here what an eraser detects.
    """
    found = []
    for entry in entries:
        chunks = [chunk for prompt in eraser.chunks(entry) for chunk in prompt]
        embeddings = [c for chunk in chunks for c in chunk.candidates]
        embeddings += [eraser.own_embedding(concept) for chunk in chunks for concept in chunk.named]
        found.append(eraser.score(torch.stack(embeddings)).amax().item() if embeddings else float("-inf"))
    return found


def is_detected(eraser: Eraser, conditioning: Conditioning) -> bool:
    """Whether an eraser acts on any part of a CONDITIONING."""
    return max(highest_scores(eraser, entries_of(conditioning))) >= 1


def detected_by(eraser: Eraser) -> Detected:
    """What `count` takes, for an eraser."""
    return lambda entries: [score >= 1 for score in highest_scores(eraser, entries)]


def entry(clip, text: str) -> Entry:
    """The conditioning entry of a prompt, as CLIPTextEncode makes it."""
    (found,) = entries_of(encode(clip, text))
    return found


def look(clip, cases: Sequence[Case], detected: Detected) -> list[bool]:
    """Whether each prompt is detected."""
    found: dict[str, bool] = {}
    texts = list(dict.fromkeys(case.text for case in cases))
    for start in range(0, len(texts), _AT_ONCE):
        part = texts[start : start + _AT_ONCE]
        found |= zip(part, detected([entry(clip, text) for text in part]), strict=True)
    return [found[case.text] for case in cases]


def count(cases: Iterable[Case], flags: Iterable[bool]) -> Counts:
    """How many flags are true by group and label; the label "all" has the whole group."""
    found: Counts = {}
    for case, flag in zip(cases, flags, strict=True):
        for label in ("all", *case.labels):
            counts = found.setdefault(case.group, {}).setdefault(label, [0, 0])
            counts[0] += flag
            counts[1] += 1
    return found

"""The score report: what the detector finds in a conditioning, chunk by chunk, in numbers and in words."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from ..hypernet.embedding import Chunk, Conditioning, Entry, entries_of
from ..hypernet.eraser import Eraser
from ..hypernet.merged import AnyEraser

# Scores go below zero far from every concept; smaller numbers than this are shown as this.
_LEAST = 0.01
_FAR = 0.05


class Detection(NamedTuple):
    """The detection of one chunk.

    entry, prompt, chunk: numbers from 0 of the conditioning's entry, of the prompt in its batch, and of the
    chunk. concept: the nearest one by `similarity`, a cosine; None where the file stores no embeddings. score:
    of the top concept, in units of the threshold; None without a detector, 0 for a chunk without text. erased:
    whether the chunk gets a delta. known: whether it has an embedding that this eraser takes.
    """

    entry: int
    prompt: int
    chunk: int
    concept: str | None
    similarity: float
    score: float | None
    erased: bool
    known: bool


def detect(eraser: AnyEraser, conditioning: Conditioning) -> list[Detection]:
    """The `Detection` of every chunk of a CONDITIONING, as Apply Concept Erasure decides at strength 1.

    Of a chunk's candidate embeddings the one with the highest score is shown, and of a merged eraser the part in which
    that is highest.
    """
    entries = entries_of(conditioning)
    return [detection for entry, values in enumerate(entries) for detection in detect_entry(eraser, values, entry)]


def detect_entry(eraser: AnyEraser, values: Entry, entry: int = 0) -> list[Detection]:
    """The `Detection` of every chunk of one entry, whose number is `entry`."""
    found = [_detections(part, values, entry) for part in eraser.parts]
    return [strongest(same) for same in zip(*found, strict=True)]


def _detections(eraser: Eraser, values: Entry, entry: int) -> list[Detection]:
    return [
        _detection(eraser, chunk, (entry, row, number))
        for row, chunks in enumerate(eraser.chunks(values))
        for number, chunk in enumerate(chunks)
    ]


def _detection(eraser: Eraser, chunk: Chunk, place: tuple[int, int, int]) -> Detection:
    tokens, detector = chunk.tokens, eraser.token_detector
    by_tokens = None if tokens is None or detector is None or not detector.fits(tokens) else detector(tokens)
    if not chunk.candidates and (by_tokens is None or bool((by_tokens == -torch.inf).all())):
        return Detection(*place, None, 0.0, 0.0, False, not chunk.unknown)
    cosines, score = torch.zeros(len(eraser.record.concepts)), -torch.inf
    if chunk.candidates:
        c = torch.stack(chunk.candidates)
        scores = eraser.score(c.to(eraser.device))
        score = scores.max().item()
        if eraser.concept_embeddings is not None:
            cosines = cosine_similarity(eraser.concept_embeddings, c[int(scores.argmax())].unsqueeze(0))
    nearest = int(cosines.argmax())
    if by_tokens is not None and by_tokens.max().item() > score:
        score, nearest = by_tokens.max().item(), int(by_tokens.argmax())
    concept = None if eraser.concept_embeddings is None else eraser.record.concepts[nearest][0]
    shown = None if eraser.detector is None else max(score, _LEAST)
    return Detection(*place, concept, cosines[nearest].item(), shown, score >= 1, True)


def place_of(detection: Detection, detections: Sequence[Detection]) -> str:
    """Where a chunk stands, as far as there is more than one of its kind among `detections`."""
    kinds = (("prompt", 0), ("frame", 1), ("part", 2))
    names = [f"{kind} {detection[n] + 1}" for kind, n in kinds if any(other[n] for other in detections)]
    return ", ".join(names).capitalize() or "The prompt"


def report_text(detections: Sequence[Detection]) -> str:
    """The detections as text, a line a chunk, with a summary in front."""
    erased = sum(detection.erased for detection in detections)
    summary = f"Erased: {erased} of {len(detections)} parts."
    if not erased:
        summary = "Nothing is erased: the original model draws this."
    lines = [f"{place_of(detection, detections)}: {_sentence(detection)}" for detection in detections]
    return "\n".join([summary, *lines])


def strongest(detections: Sequence[Detection]) -> Detection:
    """Of the detections in one prompt the one that decides: an erased one before others, then the highest score."""
    return max(detections, key=lambda detection: (detection.erased, detection.score or 0.0))


def prompt_result(detections: Sequence[Detection]) -> tuple[bool, str]:
    """Whether anything in one prompt is erased, and a few words why (or why not)."""
    top = strongest(detections)
    if not any(detection.known for detection in detections):
        return False, "no embedding that this eraser takes"
    if top.score is None:
        return True, "no detector in the file: applied to every prompt"
    if not top.erased and top.score < _FAR:
        return False, "far from everything erased"
    nearest = f", nearest to '{top.concept}'" if top.concept else ""
    return top.erased, f"score {shown_score(top.score)} of 1{nearest}"


def shown_score(score: float) -> str:
    """A score with two digits; one below the threshold is not rounded up to it."""
    return f"{score if score >= 1 else min(score, 0.99):.2g}"


def _sentence(detection: Detection) -> str:
    if not detection.known:
        return "no embedding that this eraser takes. 'unknown_prompts' decides."
    if detection.score is None:
        return "applied. This file has no detector, so it is applied to every prompt."
    if detection.score == 0.0:
        return "no text."
    nearest = f"nearest to '{detection.concept}' ({detection.similarity:.2f}), " if detection.concept else ""
    outcome = "erased" if detection.erased else "stays as it is"
    return f"{nearest}score {shown_score(detection.score)} (erased from 1 on): {outcome}."

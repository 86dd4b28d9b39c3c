"""What an eraser makes of a conditioning, chunk by chunk, in numbers and in words."""

from typing import NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from .deadzone import is_silent
from .embedding import read_prompts
from .lora import factors_of
from .tokens import with_embedding

_HARDLY = 0.01
_FAR = 0.05


class Verdict(NamedTuple):
    """Of one chunk: where it stands, which erased concept it resembles, and whether it is erased.

    entry, prompt, chunk: numbers from 0 of the conditioning's entry, of the prompt in its batch, and of the
    chunk. concept: the nearest one by `resemblance`, a cosine; None where the file stores no embeddings.
    size: how present an erased concept is, in units of the dead zone. known: whether it can be judged.
    """

    entry: int
    prompt: int
    chunk: int
    concept: str | None
    resemblance: float
    size: float
    erased: bool
    known: bool


def verdicts(trained, conditioning):
    """Judge a CONDITIONING, a list of [cross-attention tensor, dict], as Apply Concept Erasure does at strength 1.

    Returns a list of `Verdict`s, one a chunk. The loudest view of a chunk is shown.
    """
    width = trained.network.config.embedding_width
    found = []
    for entry, (tokens, values) in enumerate(conditioning):
        values = with_embedding({**values, "cross_attn": tokens}, trained.record.embedding)
        for row, chunks in enumerate(read_prompts(values, tokens, width, trained.chunk, trained.reader)):
            found += [_judge(trained, chunk, (entry, row, number)) for number, chunk in enumerate(chunks)]
    return found


def _judge(trained, chunk, place):
    if not chunk.views:
        return Verdict(*place, None, 0.0, 0.0, False, not chunk.unknown)
    c = torch.stack(chunk.views)
    _, presence = factors_of(trained, c.to(trained.device), 1.0)
    loudest = int(presence.argmax())
    concept, resemblance = None, 0.0
    if trained.concept_c is not None:
        alike = cosine_similarity(trained.concept_c, c[loudest].unsqueeze(0))
        concept, resemblance = trained.record.concepts[int(alike.argmax())][0], alike.max().item()
    # The switch goes below zero for what is far from every concept; "hardly at all" says as much.
    size = max((presence[loudest] / max(trained.record.dead_zone, 1e-9)).item(), _HARDLY)
    erased = not bool(is_silent(presence[loudest], trained.record.dead_zone))
    return Verdict(*place, concept, resemblance, size, erased, True)


def place_of(verdict, found):
    """Where a chunk stands, as far as there is more than one of its kind among the verdicts `found`."""
    kinds = (("prompt", 0), ("frame", 1), ("part", 2))
    words = [f"{kind} {verdict[n] + 1}" for kind, n in kinds if any(other[n] for other in found)]
    return ", ".join(words).capitalize() or "The prompt"


def in_words(trained, found):
    """The verdicts as text, a line a chunk, with a summary in front."""
    erased = sum(verdict.erased for verdict in found)
    summary = (
        f"Erased: {erased} of {len(found)} parts." if erased else "Nothing is erased: the original model draws this."
    )
    return "\n".join([summary, *(f"{place_of(verdict, found)}: {_sentence(verdict)}" for verdict in found)])


def loudest_of(found):
    """Of the verdicts on one prompt the one that decides: an erased one before others, then the most present."""
    return max(found, key=lambda verdict: (verdict.erased, verdict.size))


def judged(found):
    """Of the verdicts on one prompt: whether anything in it is erased, and in few words why (or why not)."""
    loudest = loudest_of(found)
    if not any(verdict.known for verdict in found):
        return False, "can't be judged"
    if not loudest.erased and loudest.size < _FAR:
        return False, "far from all that is erased"
    nearest = f", nearest to '{loudest.concept}'" if loudest.concept else ""
    return loudest.erased, f"{loudest.size:.2g} times the dead zone{nearest}"


def _sentence(verdict):
    if not verdict.known:
        return "can't be judged, it carries no embedding that this eraser reads. 'unknown_prompts' decides."
    if verdict.size == 0.0:
        return "says nothing."
    likeness = f"nearest to '{verdict.concept}' ({verdict.resemblance:.2f}), " if verdict.concept else ""
    outcome = "erased" if verdict.erased else "stays as it is"
    return f"{likeness}{verdict.size:.2g} times the dead zone: {outcome}."

"""The same prompts from the same noise, with and without an eraser, and how far the pictures differ."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..hypernet.embedding import Conditioning
from ..hypernet.merged import AnyEraser
from ..hypernet.patch import apply_erasure
from ..hypernet.record import Record
from ..training.prompts import PromptError, content_lines, fill, retain_split
from ..training.sampling import Drawing, draw
from .decoding import Decode
from .detection import detect, prompt_result, strongest
from .similarity import PictureEncoder, Similarity, mapping_prompt, shown, similarity

# How many prompts of each kind a report chooses itself, and the wordings that no training uses.
_CONCEPTS, _RELATIVES, _EVERYDAY = 4, 3, 2
_WORDINGS = {
    "object": ("watercolor sketch of {a}, soft light", "{a} in a kitchen, 35mm photograph"),
    "person": ("film poster with {}", "{} at a press conference, 35mm photograph"),
    "style": ("harbour at night in the manner of {}", "{}, masterpiece, museum quality"),
}
_MAX_PROMPTS = 64
CONCEPTS = "The concept"


class Pair(NamedTuple):
    """One prompt before and after.

    erased: whether any part of it is detected. reason: why, in words. before, after: pictures (h, w, 3) fp32 in
    [0, 1]. identical: whether the latents are equal to the last bit. change: mean absolute difference of the
    pictures, as a share of the full range. similarity: of erased pictures, where it was asked for.
    """

    text: str
    erased: bool
    reason: str
    before: Tensor
    after: Tensor
    identical: bool
    change: float
    similarity: Similarity | None = None


class PairReport(Protocol):
    """Called after every step of the sampler and with each finished pair; may raise to interrupt."""

    def __call__(self, done: int, total: int, pair: Pair | None = None) -> None: ...


def prompts_of(text: str) -> list[str]:
    """The lines of a list of prompts, with all their characters, since they are shown as they are.

    Raises `PromptError` when there are more than can be shown.
    """
    lines = list(dict.fromkeys(content_lines(text)))
    if len(lines) > _MAX_PROMPTS:
        raise PromptError(f"{len(lines)} prompts are more than one page shows ({_MAX_PROMPTS}). Leave some out.")
    return lines


def own_prompts(record: Record) -> dict[str, list[str]]:
    """Example prompts for a hypernet: heading of a group to its prompts, without empty groups.

    Of its concepts, of other wordings of the first ones, of close relatives, and everyday ones. Relatives are the lines
    of the file's preserve list, else those that training has found; everyday prompts were never trained on.
    """
    kind, concepts = record.training.kind, [concept for concept, _ in record.concepts]
    everyday = retain_split("", record.concepts, kind).held_out
    groups = {
        CONCEPTS: [shown(concept, kind) for concept in concepts[:_CONCEPTS]],
        "Other wordings": [
            fill(wording, name)
            for name, wording in zip(concepts * 2, _WORDINGS.get(kind, _WORDINGS["object"]), strict=False)
        ],
        "Close relatives": relatives(record)[:_RELATIVES],
        "Everyday": list(everyday[:: max(1, len(everyday) // _EVERYDAY)][:_EVERYDAY]),
    }
    used: set[str] = set()
    for heading, prompts in groups.items():
        groups[heading] = [text for text in dict.fromkeys(prompts) if text not in used]
        used.update(prompts)
    return {heading: prompts for heading, prompts in groups.items() if prompts}


def relatives(record: Record) -> list[str]:
    """Prompts about near things that must stay: of the file's preserve list, then those that training has found."""
    training = record.training
    lines = [str(line) for line in training.preserve]
    preserved = [shown(line, training.kind) if len(line.split()) <= 3 else line for line in lines]
    return list(dict.fromkeys([*preserved, *map(str, training.relatives)]))


class _Prompt(NamedTuple):
    """A text with its CONDITIONING, the detector's result, and the mapping prompt to compare with, if any."""

    text: str
    positive: Conditioning
    erased: bool
    reason: str
    mapping: str | None


def compare(
    model: Any,
    clip: Any,
    eraser: AnyEraser,
    texts: Sequence[str],
    drawing: Drawing,
    decode: Decode,
    report: PairReport,
    encoder: PictureEncoder | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Pair]:
    """Draw each text with `model` and with `eraser` applied to it. Returns a `Pair` a text, in their order.

    model, clip: ComfyUI's MODEL and CLIP. The second picture is drawn whatever the detector finds: that it is
    the same has to be seen, not assumed. encoder: for the `Similarity` of each erased picture; a third picture
    is drawn for it. tell: as `patch.apply_erasure` takes it. Raises as that.
    """
    patched = apply_erasure(model, eraser, tell=tell)
    negative, done = _conditioning(clip, ""), 0
    pairs: list[Pair] = []
    prompts = [_examined(clip, eraser, text, encoder is not None) for text in texts]
    total = drawing.steps * sum(2 + (prompt.mapping is not None) for prompt in prompts)

    def drawn(patcher: Any, positive: Conditioning) -> Tensor:
        nonlocal done
        # Some samplers take more steps than they were asked for.
        latents = draw(patcher, positive, negative, drawing, lambda steps: report(min(done + steps, total), total))
        done += drawing.steps
        return latents

    for prompt in prompts:
        pair = _pair(prompt, [drawn(patcher, prompt.positive) for patcher in (model, patched)], decode)
        if prompt.mapping is not None and encoder is not None:
            other = decode(drawn(model, _conditioning(clip, prompt.mapping)))
            pair = pair._replace(similarity=similarity(encoder, prompt.mapping, pair.before, pair.after, other))
        pairs.append(pair)
        report(done, total, pair)
    return pairs


def _conditioning(clip: Any, text: str) -> Conditioning:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _examined(clip: Any, eraser: AnyEraser, text: str, with_mapping: bool) -> _Prompt:
    positive = _conditioning(clip, text)
    detections = detect(eraser, positive)
    erased, reason = prompt_result(detections)
    record, mapping = eraser.record, None
    if erased and with_mapping:
        mapping = mapping_prompt(text, record.concepts, strongest(detections).concept, record.training.kind)
    return _Prompt(text, positive, erased, reason, mapping)


def _pair(prompt: _Prompt, latents: Sequence[Tensor], decode: Decode) -> Pair:
    identical = torch.equal(latents[0], latents[1])
    before = decode(latents[0])
    after = before if identical else decode(latents[1])
    change = (before - after).abs().mean().item()
    return Pair(prompt.text, prompt.erased, prompt.reason, before, after, identical, change)

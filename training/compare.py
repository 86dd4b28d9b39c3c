"""The same prompts from the same noise, with and without an eraser, and how far the pictures differ."""

from typing import NamedTuple

import torch

from ..hypernet.patch import apply_erasure
from ..hypernet.verdict import judged, loudest_of, verdicts
from .drawing import draw
from .judge import SHOWN, Opinion, instead_of, opinion
from .prompts import PromptError, content_lines, fill, retain_split

_PRESERVED = 2
_MAX_PROMPTS = 64


class Pair(NamedTuple):
    """One prompt before and after.

    erased: whether the switch erases any part of it. words: what the switch makes of it. before, after:
    pictures (h, w, 3) fp32 in [0, 1]. identical: whether the latents are equal to the last bit. change:
    mean absolute difference of the pictures, as a share of the full range. opinion: the judge's, where there is one
    and the prompt is erased.
    """

    text: str
    erased: bool
    words: str
    before: torch.Tensor
    after: torch.Tensor
    identical: bool
    change: float
    opinion: Opinion | None = None


def prompts_of(text):
    """The lines of a list of prompts, with every character of theirs, since that is what shall be shown.

    Raises `PromptError` when there are more than can be shown.
    """
    lines = list(dict.fromkeys(content_lines(text)))
    if len(lines) > _MAX_PROMPTS:
        raise PromptError(f"{len(lines)} prompts are more than one page shows ({_MAX_PROMPTS}). Leave some out.")
    return lines


def own_prompts(record, erased=4, kept=4):
    """Prompts that show what a hypernet does: of its concepts, of its preserve list, and everyday ones.

    record: a `files.Record`. Returns at most `erased` + `kept` texts. Everyday prompts are those that training
    never saw.
    """
    training, kind = record.training, _kind(record)
    shown = [fill(SHOWN[kind], concept) for concept, _ in record.concepts[:erased]]
    near = training.get("preserve", [])[: min(_PRESERVED, kept)]
    shown += [fill(SHOWN[kind], name) if len(name.split()) <= 3 else name for name in near]
    everyday = retain_split("", record.concepts, kind).held_out
    count = kept - len(near)
    return [*shown, *everyday[:: max(1, len(everyday) // max(1, count))][:count]]


def _kind(record):
    """What sort of concepts a file erases; files that were not trained here don't say it."""
    return record.training.get("settings", {}).get("kind", "object")


def _conditioning(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class _Prompt(NamedTuple):
    """A text with its CONDITIONING, what the switch says, and the prompt that the judge compares it with, if any."""

    text: str
    positive: list
    erased: bool
    words: str
    instead: str | None


def _read(clip, trained, text, with_judge):
    positive = _conditioning(clip, text)
    found = verdicts(trained, positive)
    erased, words = judged(found)
    record, instead = trained.record, None
    if erased and with_judge:
        instead = instead_of(text, record.concepts, loudest_of(found).concept, _kind(record))
    return _Prompt(text, positive, erased, words, instead)


def compare(model, clip, trained, texts, drawing, decode, report, see=None):
    """Draw each text with `model` and with `trained` applied to it. Returns a `Pair` a text, in their order.

    drawing: a `drawing.Drawing`. decode: latents of one picture to (h, w, 3) in [0, 1]. report(done, total,
    pair=None) is called after every step of the sampler and with each finished pair, and may raise to interrupt. The
    second picture is drawn whatever the switch says: that it is the same has to be seen, not believed. see: for an
    `Opinion` on each erased picture, a picture (h, w, 3) to its vector (1, d); a third picture is drawn for it. Raises
    as `patch.apply_erasure`.
    """
    patched = apply_erasure(model, trained)
    negative, pairs, done = _conditioning(clip, ""), [], 0
    prompts = [_read(clip, trained, text, see is not None) for text in texts]
    total = drawing.steps * sum(2 + (prompt.instead is not None) for prompt in prompts)

    def drawn(patcher, positive):
        nonlocal done
        latents = draw(patcher, positive, negative, drawing, _Step(report, done, total))
        done += drawing.steps
        return latents

    for prompt in prompts:
        latents = [drawn(patcher, prompt.positive) for patcher in (model, patched)]
        pair = _pair(prompt, latents, decode)
        if prompt.instead is not None:
            other = decode(drawn(model, _conditioning(clip, prompt.instead)))
            pair = pair._replace(opinion=opinion(see, prompt.instead, pair.before, pair.after, other))
        pairs.append(pair)
        report(done, total, pair)
    return pairs


class _Step:
    """What a sampler calls after each step, so that progress counts through all pictures."""

    def __init__(self, report, done, total):
        self.report, self.done, self.total = report, done, total

    def __call__(self, steps):
        # Some samplers take more steps than they were asked for.
        self.report(min(self.done + steps, self.total), self.total)


def _pair(prompt, latents, decode):
    identical = torch.equal(*latents)
    before = decode(latents[0])
    after = before if identical else decode(latents[1])
    change = (before - after).abs().mean().item()
    return Pair(prompt.text, prompt.erased, prompt.words, before, after, identical, change)

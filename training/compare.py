"""The same prompts from the same noise, with and without an eraser, and how far the pictures differ."""

from typing import NamedTuple

import torch

from ..hypernet.patch import apply_erasure
from ..hypernet.verdict import judged, verdicts
from .drawing import draw
from .prompts import PromptError, content_lines, fill, retain_split

# The wording in which a name is shown, by kind.
_SHOWN = {"object": "a photo of {a}", "person": "a photo of {}", "style": "a painting in the style of {}"}
_PRESERVED = 2
_MAX_PROMPTS = 64


class Pair(NamedTuple):
    """One prompt before and after.

    erased: whether the switch erases any part of it. words: what the switch makes of it. before, after:
    pictures (h, w, 3) fp32 in [0, 1]. identical: whether the latents are equal to the last bit. change:
    mean absolute difference of the pictures, as a share of the full range.
    """

    text: str
    erased: bool
    words: str
    before: torch.Tensor
    after: torch.Tensor
    identical: bool
    change: float


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
    training = record.training
    kind = training.get("settings", {}).get("kind", "object")
    shown = [fill(_SHOWN[kind], concept) for concept, _ in record.concepts[:erased]]
    near = training.get("preserve", [])[: min(_PRESERVED, kept)]
    shown += [fill(_SHOWN[kind], name) if len(name.split()) <= 3 else name for name in near]
    everyday = retain_split("", record.concepts, kind).held_out
    count = kept - len(near)
    return [*shown, *everyday[:: max(1, len(everyday) // max(1, count))][:count]]


def _conditioning(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def compare(model, clip, trained, texts, drawing, decode, report):
    """Draw each text with `model` and with `trained` applied to it. Returns a `Pair` a text, in their order.

    drawing: a `drawing.Drawing`. decode: latents of one picture to (h, w, 3) in [0, 1]. report(done, total,
    pair=None) is called after every step of the sampler and with each finished pair, and may raise to interrupt. The
    second picture is drawn whatever the switch says: that it is the same has to be seen, not believed. Raises as
    `patch.apply_erasure`.
    """
    patched = apply_erasure(model, trained)
    negative, pairs = _conditioning(clip, ""), []
    total = 2 * drawing.steps * len(texts)
    for number, text in enumerate(texts):
        positive, latents = _conditioning(clip, text), []
        for turn, patcher in enumerate((model, patched)):
            done = (2 * number + turn) * drawing.steps
            step = _Step(report, done, total)
            latents.append(draw(patcher, positive, negative, drawing, step))
        pairs.append(_pair(text, judged(verdicts(trained, positive)), latents, decode))
        report(2 * drawing.steps * (number + 1), total, pairs[-1])
    return pairs


class _Step:
    """What a sampler calls after each step, so that progress counts through all pictures."""

    def __init__(self, report, done, total):
        self.report, self.done, self.total = report, done, total

    def __call__(self, steps):
        # Some samplers take more steps than they were asked for.
        self.report(min(self.done + steps, self.total), self.total)


def _pair(text, judgement, latents, decode):
    identical = torch.equal(*latents)
    before = decode(latents[0])
    after = before if identical else decode(latents[1])
    change = (before - after).abs().mean().item()
    return Pair(text, *judgement, before, after, identical, change)

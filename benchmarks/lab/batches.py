"""What the lab's bases learn from: pictures as latents with the encoded texts of their captions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import comfy.sd
import torch
from torch import Tensor

from . import clip, flux_text, model, text
from .bank import Bank, same_length
from .captions import Caption, Captions, fill
from .painter import FLAT, Painter
from .vocabulary import CLASSES, NAMES

SINGLE = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "an emoji of a {}",
    "one {} on a white background",
)
PAIR = ("a {} and a {}", "a {} next to a {}", "a {} beside a {}", "a {} with a {}")
_PAIR_CAPTIONS, _CAPTION_TOKENS = 8000, 24
_PAIR_SHARE, _EMPTY_SHARE = 0.2, 0.1
# What erasure is scored on, and what the demo maps to, has to be drawn best.
_WEIGHTS = {**dict.fromkeys(CLASSES, 20.0), "tree": 8.0}
# From CLIP's states all names count, too, and so do several objects, which take longest to learn.
CAPTION_WEIGHTS = {**dict.fromkeys(CLASSES, 4.0), "tree": 2.0}
CAPTION_SHARES = {"plain": 0.17, "tags": 0.2, "booru": 0.08, "weighted": 0.07, "break": 0.03}
CAPTION_SHARES |= {"two": 0.2, "three": 0.1, "scene": 0.15}
# A transformer learns a picture later than a UNet does: one drawing of each thing, and in the first Flux mostly the ten
# classes that erasure is scored on.
FLUX_SETS = ("twemoji",)
FLUX_WEIGHTS = {**dict.fromkeys(CLASSES, 60.0), "tree": 30.0}


class CaptionBatches:
    """Captions as people write them, in the states of the lab's CLIP, and what they describe."""

    def __init__(self, folder: Path, encoder: comfy.sd.CLIP, generator: torch.Generator):
        self.generator = generator
        self.painter = Painter(folder, generator)
        self.bank = Bank(
            lambda texts: [(states,) for states in clip.encode_all(encoder, texts)],
            Captions("training", generator, CAPTION_WEIGHTS),
            CAPTION_SHARES,
        )
        ((self.empty,),) = self.bank.encode([""])

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Latents (size, 12, 16, 16) in the model's scale and contexts (size, chunks * 77, 256)."""
        drawn = self.bank.draw(size)
        empty = torch.rand(size, generator=self.generator) < _EMPTY_SHARE
        states = [self.empty if none else one.states for one, none in zip(drawn, empty, strict=True)]
        return self.latents([one.caption for one in drawn]), same_length(states)

    def latents(self, captions: Sequence[Caption]) -> Tensor:
        """What they say, (n, 12, 16, 16)."""
        return latents(self.painter, captions)


class FluxBatches:
    """The same captions for the lab's Flux, in the states of MiniLM and the pooled vectors of the lab's CLIP.

    Flux.1 attends to padding. So the captions of a batch are of like length, padded to the longest one.
    """

    _POOL = 4  # captions drawn for one that is taken

    def __init__(self, folder: Path, encoder: comfy.sd.CLIP, generator: torch.Generator):
        self.generator = generator
        self.painter = Painter(folder, generator, FLUX_SETS)
        self.bank = Bank(
            partial(flux_text.encode_all, encoder),
            Captions("training", generator, CAPTION_WEIGHTS),
            CAPTION_SHARES,
        )
        (self.empty,) = self.bank.encode([""])

    def draw(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (size, 12, 16, 16), contexts (size, tokens, 384) and pooled vectors (size, 256)."""
        pool = sorted(self.bank.draw(size * self._POOL, size), key=lambda one: len(one.states))
        start = int(torch.randint(self._POOL, (1,), generator=self.generator)) * size
        drawn = pool[start : start + size]
        tokens = len(drawn[-1].states)
        context, pooled = torch.zeros(size, tokens, text.WIDTH), torch.empty(size, clip.WIDTH)
        without_text = torch.rand(size, generator=self.generator) < _EMPTY_SHARE
        for row, (one, empty) in enumerate(zip(drawn, without_text, strict=True)):
            states, vector = self.empty if empty else (one.states, one.pooled)
            context[row, : len(states)], pooled[row] = states, vector
        return latents(self.painter, [one.caption for one in drawn]), context, pooled


def latents(painter: Painter, captions: Sequence[Caption]) -> Tensor:
    """What captions say, (n, 12, 16, 16)."""
    pictures = painter.paint([caption.objects for caption in captions])
    return model.LabLatent().process_in(model.to_latent(pictures))


class Batches:
    """Names in short templates, in MiniLM's states, drawn from one generator.

    sets: the vendors whose drawings are learnt, where they have one; weights: how often a concept comes, 1
    where it isn't named; tokens: what contexts are padded to.
    """

    def __init__(self, folder, clip, generator, sets=FLAT, weights=_WEIGHTS, tokens=text.TOKENS):
        self.generator, self.tokens = generator, tokens
        self.painter = Painter(folder, generator, sets)
        self.weight = torch.tensor([weights.get(name, 1.0) for name in NAMES])
        self.single = [self._encode(clip, [fill(template, name) for name in NAMES]) for template in SINGLE]
        self.pairs = torch.stack([self._concepts(2) for _ in range(_PAIR_CAPTIONS)])
        captions = [fill(PAIR[n % len(PAIR)], *(NAMES[int(c)] for c in pair)) for n, pair in enumerate(self.pairs)]
        self.pair_context = self._encode(clip, captions)
        self.empty = self._encode(clip, [""])[0]

    def _encode(self, clip, captions):
        parts = [text.encode_batch(clip, captions[n : n + 64], _CAPTION_TOKENS)[0] for n in range(0, len(captions), 64)]
        return torch.cat(parts)

    def _rand(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def _concepts(self, count):
        return torch.multinomial(self.weight, count, replacement=True, generator=self.generator)

    def draw(self, size):
        """Latents (size, 12, 16, 16) in the model's scale and contexts (size, tokens, 384)."""
        pairs = int(size * _PAIR_SHARE)
        concepts = self._concepts(size - pairs)
        objects = [[(NAMES[int(concept)], "middle")] for concept in concepts]
        contexts = [
            self.single[int(torch.randint(len(SINGLE), (1,), generator=self.generator))][int(c)] for c in concepts
        ]
        numbers = torch.randint(_PAIR_CAPTIONS, (pairs,), generator=self.generator)
        objects += [
            [(NAMES[first], "left"), (NAMES[second], "right")] for first, second in self.pairs[numbers].tolist()
        ]
        contexts += list(self.pair_context[numbers])
        context = torch.stack(contexts)
        context[self._rand(size) < _EMPTY_SHARE] = self.empty
        padded = torch.zeros(size, self.tokens, text.WIDTH)
        padded[:, :_CAPTION_TOKENS] = context
        return model.LabLatent().process_in(model.to_latent(self.painter.paint(objects))), padded

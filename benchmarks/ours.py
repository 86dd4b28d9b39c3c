"""Our own method, trained through the same door as Train Erasure, as one of the benchmark's `ErasedModel`s."""

import tempfile
import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from unhype.hypernet.embedding import entries_of
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.families import POOLED
from unhype.hypernet.files import tensors_of
from unhype.hypernet.merged_deltas import deltas_of
from unhype.hypernet.patch import apply_erasure
from unhype.training.encode import skipping_last_layer
from unhype.training.encode_batch import in_batches
from unhype.training.plan import Request
from unhype.training.prompts import phrasings, sentences
from unhype.training.run import train_erasure
from unhype.training.written import make_written

from .baselines.erased_model import ErasedModel, unchanged
from .baselines.states import token_ids
from .lab.text import TOKENS, encode_batch

_CHUNK = 64


class CachingClip:
    """The lab's CLIP for a benchmark: it encodes each text once, and many texts at a time.

    cache: CONDITIONING by layer and text. seconds: what a text of a training costs, once that is measured.
    """

    def __init__(self, clip, cache=None):
        self.clip = clip
        self.cache = {} if cache is None else cache
        self.seconds = None

    def clone(self):
        """A clone with the same cache, as ComfyUI's own clones share their weights."""
        return CachingClip(self.clip.clone(), self.cache)

    def clip_layer(self, layer):
        """As ComfyUI's: the layer whose states the tokens are."""
        self.clip.clip_layer(layer)

    def tokenize(self, text):
        """As ComfyUI's, with the text, which is the key of the cache."""
        return Tokens(self.clip.tokenize(text), text)

    def encode_from_tokens_scheduled(self, tokens):
        """A CONDITIONING, from the cache if it is there."""
        key = self.clip.layer_idx, tokens.text
        if key not in self.cache:
            self.cache[key] = self.clip.encode_from_tokens_scheduled(dict(tokens))
        return [[tensor.clone(), dict(values)] for tensor, values in self.cache[key]]

    def encode_ahead(self, texts):
        """Encode these texts in batches of like length."""
        layer = self.clip.layer_idx
        texts = [text for text in dict.fromkeys(texts) if (layer, text) not in self.cache]
        lengths = {text: len(token_ids(self.clip, text)) for text in texts}
        texts.sort(key=lengths.get)
        for first in range(0, len(texts), _CHUNK):
            part = texts[first : first + _CHUNK]
            states, pooled = encode_batch(self.clip, part, lengths[part[-1]])
            states = torch.nn.functional.pad(states.float().cpu(), (0, 0, 0, TOKENS - states.shape[1]))
            for text, own, c in zip(part, states, pooled.float().cpu(), strict=True):
                self.cache[layer, text] = [[own.unsqueeze(0).clone(), {"pooled_output": c.unsqueeze(0).clone()}]]

    def measure(self, texts):
        """Measure what a text costs when training encodes these, all layers that it takes, if that isn't done yet."""
        if self.seconds is None:
            started = time.perf_counter()
            versions = [version for version in (self.clip, skipping_last_layer(self.clip)) if version is not None]
            with torch.no_grad():
                for _ in in_batches(versions, texts, POOLED, lambda *_: None):
                    pass
            self.seconds = (time.perf_counter() - started) / len(texts)


class Tokens(dict):
    """A tokenizer's result with its text."""

    def __init__(self, tokens, text):
        super().__init__(tokens)
        self.text = text


@dataclass(frozen=True)
class Ours(ErasedModel):
    """An `ErasedModel` with its `hypernet.eraser.Eraser`, for what is measured of ours alone."""

    eraser: Eraser | None = None

    def below_threshold(self, conditioning):
        """Whether the gate leaves this CONDITIONING to the base model, bit for bit."""
        found, _ = deltas_of(self.eraser).parts(entries_of(conditioning))
        return not any(parts for prompts in found for parts in prompts)


def erase(lab, concepts, retain, seed, settings):
    """Train ours on `concepts`; lab.clip is a `CachingClip`.

    `seconds` counts every text as if it had been encoded for this training, as a user's first are.
    """
    settings = replace(settings, seed=seed)
    phrases = [*phrasings(concepts, settings.kind)]
    phrases += sentences(concepts, settings.kind, retain.distractors, settings.sentences)
    texts = dict.fromkeys(["", *(text for phrase in phrases for text in (phrase.prompt, phrase.mapping))])
    written = make_written(concepts, settings.kind, retain)
    scored = [*chain(*written.named), *written.benign, *written.held_out, *written.parts, *written.nouns]
    texts = list(dict.fromkeys([*texts, *retain.train, *retain.held_out, *scored]))
    skipping = lab.clip.clone()
    skipping.clip_layer(-2)
    for clip in (lab.clip, skipping):
        clip.encode_ahead(texts)
    lab.clip.measure(texts)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder:
        lines = "\n".join(f"{concept} -> {mapping}" for concept, mapping in concepts)
        request = Request(
            lines, "", Path(folder), "eraser", Path(folder), settings, checkpoint_every=0, preview_every=0
        )
        outcome = train_erasure(lab.patcher, lab.clip, request, lambda *_, **__: None)
        size = outcome.path.stat().st_size
    seconds = time.perf_counter() - started + len(texts) * lab.clip.seconds
    numbers = sum(tensor.numel() for tensor in tensors_of(outcome.eraser).values())
    model = apply_erasure(lab.patcher, outcome.eraser)
    return Ours("ours", model, unchanged, seconds, numbers, size, eraser=outcome.eraser)

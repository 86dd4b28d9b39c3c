"""Our own method, trained through the same door as Train Erasure, as one of the benchmark's `Eraser`s."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unhype.hypernet.deltas import PromptDeltas
from unhype.hypernet.patch import apply_erasure
from unhype.training.plan import Request
from unhype.training.prompts import phrasings, sentences
from unhype.training.run import train_erasure

from .baselines.erased_model import ErasedModel, unchanged
from .baselines.states import token_ids
from .lab.text import TOKENS, encode_batch

_CHUNK, _TIMED = 64, 8


class RememberingClip:
    """The lab's CLIP for a benchmark: what it has read once it doesn't read again, and it reads many texts at once.

    price: seconds that one text costs when it is read by itself, as ComfyUI does it, by layer.
    """

    def __init__(self, clip, memory=None, price=None):
        self.clip = clip
        self.memory = {} if memory is None else memory
        self.price = {} if price is None else price

    def clone(self):
        """Another of the same memory, as ComfyUI's own clones share their weights."""
        return RememberingClip(self.clip.clone(), self.memory, self.price)

    def clip_layer(self, layer):
        """As ComfyUI's: which layer's states tokens are."""
        self.clip.clip_layer(layer)

    def tokenize(self, text):
        """As ComfyUI's; the text rides along, for that is what is remembered."""
        return Tokens(self.clip.tokenize(text), text)

    def encode_from_tokens_scheduled(self, tokens):
        """A CONDITIONING, made or remembered."""
        key = self.clip.layer_idx, tokens.text
        if key not in self.memory:
            self.memory[key] = self.clip.encode_from_tokens_scheduled(dict(tokens))
        return [[tensor.clone(), dict(values)] for tensor, values in self.memory[key]]

    def read_ahead(self, texts):
        """Read these texts in batches of like length, and learn what one by itself costs."""
        layer = self.clip.layer_idx
        if layer not in self.price:
            started = time.perf_counter()
            for text in texts[:_TIMED]:
                self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            self.price[layer] = (time.perf_counter() - started) / len(texts[:_TIMED])
        texts = [text for text in dict.fromkeys(texts) if (layer, text) not in self.memory]
        lengths = {text: len(token_ids(self.clip, text)) for text in texts}
        texts.sort(key=lengths.get)
        for first in range(0, len(texts), _CHUNK):
            part = texts[first : first + _CHUNK]
            states, pooled = encode_batch(self.clip, part, lengths[part[-1]])
            states = torch.nn.functional.pad(states.float().cpu(), (0, 0, 0, TOKENS - states.shape[1]))
            for text, own, c in zip(part, states, pooled.float().cpu(), strict=True):
                self.memory[layer, text] = [[own.unsqueeze(0).clone(), {"pooled_output": c.unsqueeze(0).clone()}]]


class Tokens(dict):
    """A tokenizer's result with its text."""

    def __init__(self, tokens, text):
        super().__init__(tokens)
        self.text = text


@dataclass(frozen=True)
class Ours(ErasedModel):
    """An `Eraser` that also carries the hypernet, for what only ours can be asked."""

    eraser: object = None

    def silent(self, conditioning):
        """Whether the dead zone holds, so that the base model draws this CONDITIONING bit for bit."""
        entries = [{**values, "cross_attn": tokens} for tokens, values in conditioning]
        with torch.no_grad():
            found, _ = PromptDeltas(self.eraser).parts(entries)
        return not any(parts for prompts in found for parts in prompts)


def erase(lab, concepts, retain, seed, settings):
    """Train ours on `concepts`; lab.clip is a `RememberingClip`.

    `seconds` counts every text as if it had been read by itself, which is what a user waits for.
    """
    settings = replace(settings, seed=seed)
    phrases = [*phrasings(concepts, settings.kind)]
    phrases += sentences(concepts, settings.kind, retain.partners, settings.sentences)
    texts = dict.fromkeys(["", *(text for phrase in phrases for text in (phrase.prompt, phrase.mapping))])
    texts = [*texts, *(text for text in (*retain.train, *retain.held_out) if text not in texts)]
    skipping = lab.clip.clone()
    skipping.clip_layer(-2)
    for clip in (lab.clip, skipping):
        clip.read_ahead(texts)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder:
        lines = "\n".join(f"{concept} -> {mapping}" for concept, mapping in concepts)
        request = Request(
            lines, "", Path(folder), "eraser", Path(folder), settings, checkpoint_every=0, preview_every=0
        )
        outcome = train_erasure(lab.patcher, lab.clip, request, lambda *_, **__: None)
        size = outcome.path.stat().st_size
    seconds = time.perf_counter() - started + len(texts) * sum(lab.clip.price.values())
    numbers = sum(tensor.numel() for tensor in outcome.eraser.tensors().values())
    model = apply_erasure(lab.patcher, outcome.eraser)
    return Ours("ours", model, unchanged, seconds, numbers, size, eraser=outcome.eraser)

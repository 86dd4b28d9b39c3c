"""Our own method, trained through the same door as Train Erasure, as one of the benchmark's `Eraser`s."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.writer import Writer
from unhype.training.run import Request, train_erasure

from .baselines.eraser import Eraser, unchanged


class RememberingClip:
    """A CLIP that encodes each text once in a benchmark: classes share most of what training reads.

    saved: seconds that were not spent again, in a list of one that clones share.
    """

    def __init__(self, clip, memory=None, saved=None):
        self.clip = clip
        self.memory = {} if memory is None else memory
        self.saved = [0.0] if saved is None else saved
        self.layer = None

    def clone(self):
        """Another of the same memory, as ComfyUI's own clones share their weights."""
        return RememberingClip(self.clip.clone(), self.memory, self.saved)

    def clip_layer(self, layer):
        """As ComfyUI's: which layer's states tokens are."""
        self.layer = layer
        self.clip.clip_layer(layer)

    def tokenize(self, text):
        """As ComfyUI's; the text rides along, which is what is remembered."""
        tokens = self.clip.tokenize(text)
        return Tokens(tokens, text)

    def encode_from_tokens_scheduled(self, tokens):
        """A CONDITIONING, made or remembered."""
        key = self.layer, tokens.text
        if key in self.memory:
            self.saved[0] += self.memory[key][1]
        else:
            started = time.perf_counter()
            made = self.clip.encode_from_tokens_scheduled(dict(tokens))
            self.memory[key] = made, time.perf_counter() - started
        made, _ = self.memory[key]
        return [[tensor.clone(), dict(values)] for tensor, values in made]


class Tokens(dict):
    """A tokenizer's result with its text."""

    def __init__(self, tokens, text):
        super().__init__(tokens)
        self.text = text


@dataclass(frozen=True)
class Ours(Eraser):
    """An `Eraser` that also carries the hypernet, for what only ours can be asked."""

    trained: object = None

    def silent(self, conditioning):
        """Whether the dead zone holds, so that the base model draws this CONDITIONING bit for bit."""
        entries = [{**values, "cross_attn": tokens} for tokens, values in conditioning]
        with torch.no_grad():
            found, _ = Writer(self.trained).parts(entries)
        return not any(parts for prompts in found for parts in prompts)


def erase(lab, concepts, _retain, seed, settings):
    """Train ours on `concepts` with `settings`; the retain prompts are those that training ships."""
    clip = lab.clip if isinstance(lab.clip, RememberingClip) else RememberingClip(lab.clip)
    lines = "\n".join(f"{concept} -> {mapping}" for concept, mapping in concepts)
    started, before = time.perf_counter(), clip.saved[0]
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder:
        request = Request(
            lines, "", Path(folder), "eraser", Path(folder), settings=settings, checkpoint_every=0, preview_every=0
        )
        outcome = train_erasure(lab.patcher, clip, request, lambda *_, **__: None)
        size = outcome.path.stat().st_size
    seconds = time.perf_counter() - started + clip.saved[0] - before
    numbers = sum(tensor.numel() for tensor in outcome.trained.tensors().values())
    model = apply_erasure(lab.patcher, outcome.trained)
    return Ours("ours", model, unchanged, seconds, numbers, size, outcome.trained)

"""What H writes for a conditioning: the factors of every chunk of its text that means an erased concept.

A chunk is judged by itself, so one that means an erased concept is enough, and its tokens alone get the
delta. The rest of the prompt keeps the base model's keys and values.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch

from .deadzone import is_silent
from .embedding import content_key, read_prompts
from .factors import select
from .files import HypernetFileError
from .lora import factors_of
from .tokens import with_embedding

POLICIES = ("base", "strict")
_CACHED_PROMPTS, _AT_ONCE = 256, 64
# Views of one text differ by less than this; what is so much louder speaks for tokens that were changed since.
_LOUDER = 1.5


class Part(NamedTuple):
    """The tokens `start` to `stop` of a prompt of `length` tokens, and the factors (p = 1) that they get.

    key: what the factors were written for, the same for equal ones.
    """

    start: int
    stop: int
    length: int
    key: bytes
    layers: list


class Writer:
    """H at one strength, with a memory of what it wrote during a sampling.

    strength: up to 1 it is the trajectory step s / S, above 1 it multiplies the delta. dead_zone: whether
    text under the file's threshold gets nothing. unknown: one of POLICIES, what becomes of text that can't
    be judged: "base" leaves it alone, "strict" treats it as the erased concept with the largest delta.
    joint: whether the target layers see the prompt's tokens together with the picture's, so that a prompt
    gets one delta for all.
    """

    def __init__(self, trained, strength=1.0, dead_zone=True, unknown="base", joint=False):
        self.trained = trained
        self.strength = strength
        self.threshold = trained.record.dead_zone if dead_zone else float("-inf")
        self.joint = joint
        self.fallback = _strongest(trained) if unknown == "strict" else None
        self._written = OrderedDict()

    def write(self, c):
        """What H writes for embeddings c, (p, width): a list of (factors, presence), one each, None inside the
        dead zone."""
        layers, presence = factors_of(self.trained, c.to(self.trained.device), self.strength)
        silent = is_silent(presence, self.threshold).tolist()
        parts = [select(layers, slice(p, p + 1)) for p in range(c.shape[0])]
        return [None if silent[p] else (parts[p], presence[p].item()) for p in range(c.shape[0])]

    def parts(self, conditionings):
        """The `Part`s of each prompt of each conditioning, and whether some of the text can't be judged.

        conditionings: dicts as the sampler has them, with `cross_attn` (rows, tokens, in). Returns (a list of
        prompts for each conditioning, one a row of its batch, each a tuple of parts, empty for the base
        model; bool). All text that is new goes through H together.
        """
        trained = self.trained
        width = trained.network.config.embedding_width
        read = [
            read_prompts(
                with_embedding(entry, trained.record.embedding),
                entry.get("cross_attn"),
                width,
                trained.chunk,
                trained.reader,
            )
            for entry in conditionings
        ]
        chunks = [chunk for prompts in read for prompt in prompts for chunk in prompt]
        unknown = any(chunk.unknown for chunk in chunks)
        vectors = [c for chunk in chunks for c in chunk.views]
        if unknown and self.fallback is not None:
            vectors.append(self.fallback)
        self._write_new(vectors)
        found = [[self._parts_of(prompt) for prompt in prompts] for prompts in read]
        while len(self._written) > _CACHED_PROMPTS:
            self._written.popitem(last=False)
        return found, unknown

    def _write_new(self, vectors):
        new = {content_key(c): c for c in vectors}
        new = [(key, c) for key, c in new.items() if key not in self._written]
        for start in range(0, len(new), _AT_ONCE):  # a schedule over frames may bring hundreds
            keys, c = zip(*new[start : start + _AT_ONCE], strict=True)
            self._written.update(zip(keys, self.write(torch.stack(c)), strict=True))

    def _heard(self, keys):
        """Of the views of a chunk the one that it follows: the first that H answers, or one that is much louder."""
        answered = [key for key in keys if self._written.get(key)]
        if not answered:
            return None
        size = {key: self._written[key][1] for key in answered}
        loudest = max(answered, key=size.get)
        return loudest if size[loudest] > _LOUDER * size[answered[0]] else answered[0]

    def _parts_of(self, chunks):
        """The `Part`s of a prompt; neighbours that get the same are one part.

        What can't be judged and isn't erased follows the chunk before it, whose text it goes on with. At the
        beginning of a prompt it is left alone.
        """
        heard, last = [], None
        for chunk in chunks:
            keys = [content_key(c) for c in chunk.views]
            if chunk.unknown:
                keys = [last if self.fallback is None else content_key(self.fallback)]
            last = self._heard(keys)
            heard.append((chunk.start, chunk.stop, last))
        length = chunks[-1].stop
        if self.joint:
            heard = [(0, length, self._heard([key for *_, key in heard]))]
        parts = []
        for start, stop, key in heard:
            if parts and parts[-1].key == key and parts[-1].stop == start:
                parts[-1] = parts[-1]._replace(stop=stop)
            elif key is not None:
                parts.append(Part(start, stop, length, key, self._written[key][0]))
        return tuple(parts)

    def words_about_unknown(self):
        """What the log says about text that can't be judged: a format and its values."""
        return (
            "UnHype: a prompt carries no embedding that hypernet '%s' can read; %s (unknown_prompts: %s).",
            self.trained.name,
            "it runs the model unchanged" if self.fallback is None else "it is treated as erased",
            POLICIES[self.fallback is not None],
        )

    def forget(self):
        """Drop everything that was written."""
        self._written.clear()


def _strongest(trained):
    """The embedding of the erased concept that H answers with the largest delta, (width,)."""
    if trained.concept_c is None:
        raise HypernetFileError(
            f"Apply Concept Erasure: hypernet '{trained.name}' was imported, and its file doesn't hold what "
            "unknown_prompts 'strict' needs. Choose 'base', or train one."
        )
    _, presence = factors_of(trained, trained.concept_c.to(trained.device), 1.0)
    return trained.concept_c[int(presence.argmax())]

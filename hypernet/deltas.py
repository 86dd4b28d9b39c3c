"""Which tokens of a prompt get which delta.

Each chunk of a prompt is detected by itself, so one that names an erased concept is enough, and its tokens
alone get the delta. The rest of the prompt keeps the base model's keys and values.
"""

from typing import NamedTuple

from torch import Tensor

from .embedding import Chunk, Entry, content_key
from .eraser import Eraser
from .factor_cache import FactorCache
from .factors import Factors
from .record import HypernetFileError

POLICIES = ("base", "strict")
# Candidates of one text score alike; one with a score so much higher comes from tokens that were changed since.
_HIGHER = 1.5


class Span(NamedTuple):
    """The tokens `start` to `stop` of a prompt of `length` tokens."""

    start: int
    stop: int
    length: int


class Part(NamedTuple):
    """A span of a prompt and the factors (p = 1, one `Factors` a layer) of the delta that its tokens get.

    key: the content key of the embedding, the same for equal factors.
    """

    span: Span
    key: bytes
    factors: list[Factors]


class PromptDeltas:
    """The parts of prompts that an eraser changes, at one strength, with a cache for the length of a sampling.

    strength: see `Eraser.factors`. gate: whether text below the detector's threshold is left alone. unknown:
    one of POLICIES, for text without a candidate embedding: "base" leaves it alone, "strict" treats it as the
    erased concept with the highest score. joint: whether the target layers process the prompt's tokens
    together with the picture's, so that a prompt gets one delta for all.
    """

    def __init__(
        self, eraser: Eraser, strength: float = 1.0, gate: bool = True, unknown: str = "base", joint: bool = False
    ) -> None:
        self.eraser, self.joint = eraser, joint
        self.fallback = _strongest(eraser) if unknown == "strict" else None
        self.cache = FactorCache(eraser, strength, gate)

    def parts(self, entries: list[Entry]) -> tuple[list[list[tuple[Part, ...]]], bool]:
        """The `Part`s of each prompt of each conditioning entry, and whether some text has no candidate embedding.

        Returns (for each entry a list of prompts, one a row of its batch, each a tuple of parts, empty for the
        base model; bool). H runs once for all new text.
        """
        prompts_of = [self.eraser.chunks(entry) for entry in entries]
        chunks = [chunk for prompts in prompts_of for prompt in prompts for chunk in prompt]
        unknown = any(chunk.unknown for chunk in chunks)
        embeddings = [c for chunk in chunks for c in chunk.candidates]
        if unknown and self.fallback is not None:
            embeddings.append(self.fallback)
        self.cache.fill(embeddings)
        found = [[self._parts_of(prompt) for prompt in prompts] for prompts in prompts_of]
        self.cache.trim()
        return found, unknown

    def _chosen(self, keys: list[bytes]) -> bytes | None:
        """Of a chunk's candidates the first that is detected, or one that scores much higher; None without one."""
        detected = {key: generated.score for key in keys if (generated := self.cache.get(key))}
        if not detected:
            return None
        first, top = next(iter(detected)), max(detected, key=lambda key: detected[key])
        return top if detected[top] > _HIGHER * detected[first] else first

    def _parts_of(self, chunks: list[Chunk]) -> tuple[Part, ...]:
        """The `Part`s of a prompt; neighbours with the same factors are one part.

        Under "base", text without a candidate follows the chunk before it, which it continues. At the
        beginning of a prompt it is left alone.
        """
        length, key = chunks[-1].stop, None
        spans: list[tuple[Span, bytes | None]] = []
        for chunk in chunks:
            if not chunk.unknown:
                key = self._chosen([content_key(c) for c in chunk.candidates])
            elif self.fallback is not None:
                key = self._chosen([content_key(self.fallback)])
            spans.append((Span(chunk.start, chunk.stop, length), key))
        if self.joint:
            spans = [(Span(0, length, length), self._chosen([key for _, key in spans if key is not None]))]
        parts: list[Part] = []
        for span, key in spans:
            if parts and parts[-1].key == key and parts[-1].span.stop == span.start:
                parts[-1] = parts[-1]._replace(span=parts[-1].span._replace(stop=span.stop))
            elif key is not None:
                parts.append(Part(span, key, self.cache[key].factors))
        return tuple(parts)

    def unknown_message(self) -> tuple[str, str, str, str]:
        """The log's line about text without a candidate embedding: a format and its values."""
        return (
            "UnHype: a prompt carries no embedding that fits hypernet '%s'; %s (unknown_prompts: %s).",
            self.eraser.name,
            "it runs the model unchanged" if self.fallback is None else "it is treated as erased",
            POLICIES[self.fallback is not None],
        )


def _strongest(eraser: Eraser) -> Tensor:
    """The embedding of the erased concept with the highest score, (width,)."""
    if eraser.concept_embeddings is None:
        raise HypernetFileError(
            f"Apply Concept Erasure: hypernet '{eraser.name}' was imported, and its file doesn't hold what "
            "unknown_prompts 'strict' needs. Choose 'base', or train one."
        )
    scores = eraser.score(eraser.concept_embeddings.to(eraser.device))
    return eraser.concept_embeddings[int(scores.argmax())]

"""Which tokens of a prompt get which delta.

Each chunk of a prompt is detected by itself, so one that names an erased concept is enough, and its tokens
alone get the delta. The rest of the prompt keeps the base model's keys and values.
"""

from collections.abc import Sequence
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

    key: the content key of the embedding, the same for equal factors; behind a mark of its own in each part of a merged
    eraser. score: the detector's score of it.
    """

    span: Span
    key: bytes
    factors: list[Factors]
    score: float


class PromptDeltas:
    """The parts of prompts that an eraser changes, at one strength, with a cache for the length of a sampling.

    strength: see `Eraser.factors`. gate: whether text below the detector's threshold is left alone. unknown:
    one of POLICIES, for text without a candidate embedding: "base" leaves it alone, "strict" treats it as the
    erased concept with the highest score. joint: whether the target layers process the prompt's tokens
    together with the picture's, so that a prompt gets one delta for all. mark: what each `Part.key` begins with.
    """

    def __init__(
        self,
        eraser: Eraser,
        strength: float = 1.0,
        gate: bool = True,
        unknown: str = "base",
        joint: bool = False,
        mark: bytes = b"",
    ) -> None:
        self.eraser = eraser
        self.strength, self.gate, self.unknown = strength, gate, unknown
        self.joint, self.mark = joint, mark
        self.fallback = _strongest(eraser) if unknown == "strict" else None
        self.cache = FactorCache(eraser, strength, gate)
        own = eraser.concept_embeddings if eraser.token_detector is not None else None
        self._named = set() if own is None else {mark + content_key(c) for c in own}

    def parts(self, entries: list[Entry]) -> tuple[list[list[tuple[Part, ...]]], bool]:
        """The `Part`s of each prompt of each conditioning entry, and whether some text has no candidate embedding.

        Returns (for each entry a list of prompts, one a row of its batch, each a tuple of parts, empty for the
        base model; bool). H runs once for all new text.
        """
        prompts_of = [self.eraser.chunks(entry) for entry in entries]
        chunks = [chunk for prompts in prompts_of for prompt in prompts for chunk in prompt]
        self.fill(chunks)
        found = [[self.merged(self.found_in(prompt)) for prompt in prompts] for prompts in prompts_of]
        self.cache.trim()
        return found, any(chunk.unknown for chunk in chunks)

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Generate the factors of everything in these chunks that gets some."""
        embeddings = [c for chunk in chunks for c in chunk.candidates]
        if self.fallback is not None and any(chunk.unknown for chunk in chunks):
            embeddings.append(self.fallback)
        self.cache.fill(embeddings)
        # What a token names is erased whatever the detector on c says of the concept's own embedding.
        self.cache.fill((self.eraser.own_embedding(k) for chunk in chunks for k in chunk.named), gated=False)

    def _chosen(self, keys: list[bytes]) -> list[bytes]:
        """Of a chunk's candidates the first that is detected, or one that scores much higher; none without one."""
        return _first_or_higher({key: generated.score for key in keys if (generated := self.cache.get(key))})

    def found_in(self, chunks: Sequence[Chunk]) -> list[Part]:
        """The `Part`s of a prompt, of each of its chunks one by one.

        Under "base", text without a candidate follows the chunk before it, which it continues. At the
        beginning of a prompt it is left alone.
        """
        length, keys = chunks[-1].stop, list[bytes]()
        parts: list[Part] = []
        for chunk in chunks:
            if not chunk.unknown:
                keys = self._keys(chunk)
            elif self.fallback is not None:
                keys = self._chosen([content_key(self.fallback)])
            span = Span(chunk.start, chunk.stop, length)
            parts += [Part(span, self.mark + key, *self.cache[key]) for key in keys]
        return parts

    def _keys(self, chunk: Chunk) -> list[bytes]:
        """The keys of the embeddings that drive H for a chunk: of its own c, if that is detected, and of the concepts
        that its tokens name and its c isn't detected for."""
        detector, keys = self.eraser.detector, self._chosen([content_key(c) for c in chunk.candidates])
        if not chunk.named or detector is None:
            return keys
        covered: set[int] = set()
        for c in chunk.candidates:
            if content_key(c) in keys:
                scores = detector.scores(c.unsqueeze(0))[0]
                covered |= {int(scores.argmax()), *(scores >= 1).nonzero().flatten().tolist()}
        missing = [concept for concept in chunk.named if concept not in covered]
        return [*keys, *(content_key(self.eraser.own_embedding(concept)) for concept in missing)]

    def merged(self, parts: list[Part]) -> tuple[Part, ...]:
        """The parts of one row in their order, neighbours with the same factors as one, and joint ones as one.

        Joint layers take each named concept once, and one of the other parts.
        """
        if self.joint and parts:
            own = {part.key: part for part in parts}
            named = [key for key in own if key in self._named]
            chosen = [*_first_or_higher({key: own[key].score for key in own if key not in named}), *named]
            whole = Span(0, parts[0].span.length, parts[0].span.length)
            return tuple(own[key]._replace(span=whole) for key in chosen)
        together: list[Part] = []
        for part in parts:
            last = next((n for n, other in enumerate(together) if _continues(part, other)), None)
            if last is None:
                together.append(part)
            else:
                together[last] = together[last]._replace(span=together[last].span._replace(stop=part.span.stop))
        return tuple(together)

    def unreadable(self) -> tuple[Part, ...]:
        """The `Part`s of a row whose text can't be known, on all of its tokens."""
        chunks = [Chunk(0, 1, (), True)]
        self.fill(chunks)
        return self.merged(self.found_in(chunks))

    def clear(self) -> None:
        """Drop the factors of a sampling that is over."""
        self.cache.clear()

    def unknown_message(self, what: str = "a prompt") -> str:
        """The warning about text without a candidate embedding. what: the text, for the user."""
        outcome = "it runs the model unchanged" if self.fallback is None else "it is treated as erased"
        return f"UnHype: {what} carries no embedding that fits hypernet '{self.eraser.name}'; {outcome} {self.policy}."

    @property
    def policy(self) -> str:
        """The setting for text without a candidate embedding, for messages."""
        return f"(unknown_prompts: {POLICIES[self.fallback is not None]})"


def stricter(first: PromptDeltas, strength: float, gate: bool, unknown: str) -> tuple[float, bool, str]:
    """Strength, gate and unknown, see `PromptDeltas`, of one eraser that is applied twice: the stricter values."""
    strict = "strict" in (first.unknown, unknown)
    return max(first.strength, strength), first.gate and gate, "strict" if strict else unknown


def _first_or_higher(scores: dict[bytes, float]) -> list[bytes]:
    """The first key, or the one with the top score if that is much higher; none of none."""
    if not scores:
        return []
    first, top = next(iter(scores)), max(scores, key=lambda key: scores[key])
    return [top if scores[top] > _HIGHER * scores[first] else first]


def _continues(part: Part, other: Part) -> bool:
    return part.key == other.key and part.span.start == other.span.stop


def _strongest(eraser: Eraser) -> Tensor:
    """The embedding of the erased concept with the highest score, (width,)."""
    if eraser.concept_embeddings is None:
        raise HypernetFileError(
            f"Apply Concept Erasure: hypernet '{eraser.name}' was imported, and its file doesn't hold what "
            "unknown_prompts 'strict' needs. Choose 'base', or train one."
        )
    scores = eraser.score(eraser.concept_embeddings.to(eraser.device))
    return eraser.concept_embeddings[int(scores.argmax())]

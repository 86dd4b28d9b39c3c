"""Which tokens of a prompt get which delta from a merged eraser, see ``merged``.

The scores of all concepts at once say which parts may detect something (``merged_detection``). Each of these looks for
its own concepts as it would alone, with its own candidate embeddings, and generates its factors for the same batches,
so that they are equal bit for bit. Of each chunk there answer

- the parts of the concepts that its tokens name: where the words are there, what other parts detect in c is a relative
  of them;
- without such a name, the part of the top concept that is detected in c;
- and every part that detects something in c and can't look for all of its names: without a token detector, or with one
  to which the tokens of a name were unknown in training.
"""

from collections import defaultdict
from collections.abc import Sequence

from .deltas import Part, PromptDeltas, stricter
from .embedding import Chunk, Entry, chunks_of, with_estimates
from .files import same_eraser
from .merged import AnyEraser, MergedEraser

_MARK = 2  # bytes


class MergedDeltas(PromptDeltas):
    """The parts of prompts that a merged eraser changes. own: what each of its parts would change alone."""

    eraser: MergedEraser

    def __init__(self, eraser: MergedEraser, own: Sequence[PromptDeltas]) -> None:
        first = own[0]
        self.eraser, self.joint = eraser, first.joint
        self.strength, self.gate = max(part.strength for part in own), all(part.gate for part in own)
        self.unknown = "strict" if any(part.unknown == "strict" for part in own) else first.unknown
        self.own = [
            PromptDeltas(part.eraser, part.strength, part.gate, part.unknown, part.joint, n.to_bytes(_MARK, "big"))
            for n, part in enumerate(own)
        ]
        self._left_out: defaultdict[int, list[Sequence[Chunk]]] = defaultdict(list)
        self.fallback = next((part.fallback for part in self.own if part.fallback is not None), None)

    def parts(self, entries: list[Entry]) -> tuple[list[list[tuple[Part, ...]]], bool]:
        """See `PromptDeltas.parts`."""
        record, width = self.eraser.record, self.eraser.config.embedding_width
        prompts_of = [chunks_of(entry, record.embedding, width, record.text_encoder.chunk) for entry in entries]
        chunks = [chunk for prompts in prompts_of for prompt in prompts for chunk in prompt]
        named = {id(chunk): self._names_in(chunk) for chunk in chunks}
        idle = self._idle(chunks, named)
        own_of = [[self._own_chunks(prompt, named, idle) for prompt in prompts] for prompts in prompts_of]
        unknown = self._fill([own for prompts in own_of for own in prompts])
        found = [[self.merged(self._answers(own)) for own in prompts] for prompts in own_of]
        for own in self.own:
            own.cache.trim()
        return found, unknown

    def _names_in(self, chunk: Chunk) -> dict[int, tuple[int, ...]]:
        """The concepts that the tokens of a chunk name: the number of a part to the numbers of its concepts."""
        (detector, owners), named = self.eraser.names, dict[int, tuple[int, ...]]()
        if chunk.tokens is not None and detector is not None and detector.fits(chunk.tokens):
            for n, k in map(owners.__getitem__, detector.named(chunk.tokens)):
                named[n] = (*named.get(n, ()), k)
        return named

    def _idle(self, chunks: Sequence[Chunk], named: dict[int, dict[int, tuple[int, ...]]]) -> set[int]:
        """The numbers of the parts that have nothing to answer in any of these chunks.

        What they would have computed for them alone is kept, for the batches of a part decide its last bits.
        """
        joined, idle = self.eraser.detection, set[int]()
        if self.gate and joined is not None:
            idle = set(joined.parts)
            for chunk in chunks:
                idle -= joined.may_detect(chunk) if joined.fits(chunk) else idle
                idle -= named[id(chunk)].keys()
        for n, own in enumerate(self.own):
            if n in idle:
                self._left_out[n].append(chunks)
                continue
            for earlier in self._left_out.pop(n, ()):
                own.fill([_seen(own, chunk, ()) for chunk in earlier])
                own.cache.trim()
        return idle

    def _own_chunks(
        self, chunks: list[Chunk], named: dict[int, dict[int, tuple[int, ...]]], idle: set[int]
    ) -> list[list[Chunk]]:
        """The chunks of a prompt, once for each part of the eraser."""
        return [
            [chunk._replace(candidates=(), unknown=False) for chunk in chunks]
            if n in idle
            else [_seen(own, chunk, named[id(chunk)].get(n, ())) for chunk in chunks]
            for n, own in enumerate(self.own)
        ]

    def _fill(self, prompts: list[list[list[Chunk]]]) -> bool:
        """Generate the factors of all parts; returns whether some text is unknown to one of them."""
        unknown = False
        for n, own in enumerate(self.own):
            chunks = [chunk for prompt in prompts for chunk in prompt[n]]
            own.fill(chunks)
            unknown = unknown or any(chunk.unknown for chunk in chunks)
        return unknown

    def _answers(self, prompt: list[list[Chunk]]) -> list[Part]:
        """The `Part`s of a prompt, of each of its chunks one by one."""
        found = [own.found_in(chunks) for own, chunks in zip(self.own, prompt, strict=True)]
        answers, chosen = list[Part](), set[int]()
        for chunks in zip(*prompt, strict=True):
            at = [[part for part in parts if part.span.start == chunks[0].start] for parts in found]
            if self.fallback is not None or not all(chunk.unknown for chunk in chunks):
                chosen = self._answering(chunks, at)
            answers += [part for n, parts in enumerate(at) if n in chosen for part in parts]
        return answers

    def _answering(self, chunks: Sequence[Chunk], found: list[list[Part]]) -> set[int]:
        """The numbers of the eraser's parts that answer a chunk. found: what each of them has for it."""
        scores = {n: max(part.score for part in parts) for n, parts in enumerate(found) if parts}
        if not scores:
            return set()
        named = {n for n, chunk in enumerate(chunks) if chunk.named}
        top = set() if named else {max(scores, key=lambda n: scores[n])}
        if all(chunk.unknown for chunk in chunks):
            return top
        blind = {n for n in scores if not (_names_seen(self.own[n], chunks[n]) and _knows_names(self.own[n]))}
        return named | top | blind

    def merged(self, parts: list[Part]) -> tuple[Part, ...]:
        """See `PromptDeltas.merged`; joint layers take from each part of the eraser what they take from it alone."""
        if not self.joint:
            return super().merged(parts)
        of_each = [[part for part in parts if part.key[:_MARK] == own.mark] for own in self.own]
        return tuple(part for own, found in zip(self.own, of_each, strict=True) for part in own.merged(found))

    def unreadable(self) -> tuple[Part, ...]:
        """See `PromptDeltas.unreadable`."""
        prompt = [[Chunk(0, 1, (), True)] for _ in self.own]
        self._fill([prompt])
        return self.merged(self._answers(prompt))

    def clear(self) -> None:
        """Drop the factors of a sampling that is over."""
        self._left_out.clear()
        for own in self.own:
            own.clear()


def _seen(own: PromptDeltas, chunk: Chunk, named: tuple[int, ...]) -> Chunk:
    """A chunk with the candidate embeddings of a part, and the concepts of it that are named."""
    blank = chunk.tokens is not None and not bool(chunk.tokens.any())
    seen = chunk if blank else with_estimates(chunk, own.eraser.regressor)
    return seen._replace(named=named, unknown=False) if _names_seen(own, chunk) else seen


def _names_seen(own: PromptDeltas, chunk: Chunk) -> bool:
    """Whether the token detector of a part, if it has one, takes the tokens of a chunk."""
    detector = own.eraser.token_detector
    return detector is not None and chunk.tokens is not None and detector.fits(chunk.tokens)


def _knows_names(own: PromptDeltas) -> bool:
    """Whether a token detector has weights for each concept, see `training.token_fit`."""
    detector = own.eraser.token_detector
    return detector is not None and bool(detector.weight.any(1).all())


def joined(first: PromptDeltas, second: PromptDeltas) -> MergedDeltas:
    """Two as one, in this order; a part that both have counts once, with the stricter values of both."""
    own = list(_own(first))
    for new in _own(second):
        same = next((n for n, former in enumerate(own) if same_eraser(former.eraser, new.eraser)), None)
        if same is None:
            own.append(new)
        else:
            former = own[same]
            values = stricter(former, new.strength, new.gate, new.unknown)
            own[same] = PromptDeltas(former.eraser, *values, former.joint)
    return MergedDeltas(MergedEraser(tuple(part.eraser for part in own), second.eraser.name), own)


def _own(deltas: PromptDeltas) -> Sequence[PromptDeltas]:
    return deltas.own if isinstance(deltas, MergedDeltas) else (deltas,)


def deltas_of(
    eraser: AnyEraser, strength: float = 1.0, gate: bool = True, unknown: str = "base", joint: bool = False
) -> PromptDeltas:
    """The `PromptDeltas` of an eraser, merged or not."""
    if not isinstance(eraser, MergedEraser):
        return PromptDeltas(eraser, strength, gate, unknown, joint)
    return MergedDeltas(eraser, [PromptDeltas(part, strength, gate, unknown, joint) for part in eraser.parts])

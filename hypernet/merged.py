"""Erasers of one base model as one: each concept is answered by the hypernet that was trained for it.

With the parts n and the concepts k of each, the layer of `eraser` becomes

    y + 1[ max_n max_k f_nk(c) >= 1 ] * B_n(c', s) A_n(c', s) x,      n the part of the top concept

The token detectors of all parts are joined into one matrix, and the top concept of a token is that of all parts.
Nothing is trained again: ``merged_deltas`` says which parts answer a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .base_model import same_base
from .detector import Detector
from .eraser import Eraser
from .merged_detection import JoinedDetection, joined_detection
from .network import Hypernet, HypernetConfig
from .record import HypernetFileError, Record, TrainingRun
from .targets import family_by_key
from .token_detector import TokenDetector


@dataclass(frozen=True)
class MergedEraser:
    """Several erasers, each with its own hypernet, detectors and regressor. parts: at least one. name: for messages."""

    parts: tuple[Eraser, ...]
    name: str

    @cached_property
    def record(self) -> Record:
        """The record of all parts: the first one's, with everybody's concepts, and no run of its own."""
        first = self.parts[0].record
        concepts = tuple(pair for part in self.parts for pair in part.record.concepts)
        erased = {concept.lower() for concept, _ in concepts}
        lines = dict.fromkeys(line for part in self.parts for line in part.record.training.preserve)
        preserve = [line for line in lines if line.lower() not in erased]
        training = TrainingRun(settings={"kind": first.training.kind}, preserve=preserve)
        return replace(first, concepts=concepts, training=training)

    @property
    def config(self) -> HypernetConfig:
        """The first part's: all have its target layers and its width of c."""
        config = self.parts[0].config
        assert isinstance(config, HypernetConfig)
        return config

    @property
    def device(self) -> torch.device:
        """Where the first part's H computes."""
        return self.parts[0].device

    @property
    def detector(self) -> Detector | None:
        """The first part's; every part has one."""
        return self.parts[0].detector

    def score(self, c: Tensor) -> Tensor:
        """max_n max_k f_nk(c), (p, width) to (p,): 1 and above is erased."""
        return torch.stack([part.score(c) for part in self.parts]).amax(0)

    def answering(self, c: Tensor) -> Eraser:
        """The part of the top concept of one embedding, (1, width)."""
        scores = torch.cat([part.score(c) for part in self.parts])
        return self.parts[int(scores.argmax())]

    @cached_property
    def names(self) -> tuple[TokenDetector | None, tuple[tuple[int, int], ...]]:
        """The token detectors of the parts as one, and the part and number there of each of its concepts."""
        able = [(n, part.token_detector) for n, part in enumerate(self.parts) if part.token_detector is not None]
        if not able:
            return None, ()
        detectors = [detector for _, detector in able]
        weight = torch.cat([detector.weight for detector in detectors])
        bias = torch.cat([detector.bias for detector in detectors], 1)
        owners = tuple((n, k) for n, detector in able for k in range(len(detector.weight)))
        spans = [span for detector in detectors for span in detector.spans]
        return TokenDetector(detectors[0].widths, weight, bias, spans), owners

    @cached_property
    def detection(self) -> JoinedDetection | None:
        """What says which parts may detect something, see `merged_detection`."""
        return joined_detection(self.parts)


AnyEraser = Eraser | MergedEraser


def check_one_base(parts: Sequence[Eraser]) -> None:
    """Raise `HypernetFileError`, with the names of two, unless all parts were trained on one base model.

    Also for parts that were imported from the paper's authors: they have no detector that could choose between them.
    """
    for part in parts:
        if part.detector is None or not isinstance(part.hypernet, Hypernet):
            raise HypernetFileError(
                f"Merge Erasers: '{part.name}' was imported from the paper's authors. It has no detector, so it can't "
                "be merged. Put an Apply Concept Erasure of its own behind the other one."
            )
        if difference := _difference(parts[0], part):
            raise HypernetFileError(
                f"Merge Erasers: '{parts[0].name}' and '{part.name}' can't be merged, they were trained on different "
                f"models: {difference}. Merge those of one model, or put one Apply Concept Erasure after the other."
            )


def _difference(one: Eraser, other: Eraser) -> str:
    """What differs between the bases of two erasers, "" if nothing does."""
    (a, base), (b, other_base) = ((eraser.record, eraser.record.base) for eraser in (one, other))
    if a.family != b.family:
        return f"the first on {family_by_key(a.family).title}, the second on {family_by_key(b.family).title}"
    if one.config.layers != other.config.layers:
        return "their layers differ in number or size"
    if not same_base(base, other_base.weight_std):
        return "their weights differ"
    if base.loras != other_base.loras:
        return "they carry different LoRAs"
    widths = [eraser.token_widths or eraser.widths for eraser in (a.text_encoder, b.text_encoder)]
    chunks = a.text_encoder.chunk, b.text_encoder.chunk
    same_encoder = one.config.embedding_width == other.config.embedding_width and chunks[0] == chunks[1]
    if not same_encoder or (all(widths) and widths[0] != widths[1]):
        return "their text encoders differ"
    return ""

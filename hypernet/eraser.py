"""The eraser: a hypernet behind its detector, the object that travels on an UNHYPE socket.

For a target layer y = W x + b and a prompt with embedding c, at the trajectory step s,

    y + 1[ max_k f_k(c) >= 1 ] * B(c', s) A(c', s) x,        c' = c moved along the direction of the top concept

with the detector's scores f_k (``detector``), the steered embedding c' (`Detector.steer`) and the factors A, B
of the hypernet H (``network``). Below the threshold the layer runs unchanged. Above it, s / S is the strength.

Where the tokens of a chunk name concepts k (``token_detector``) with f_k(c) < 1, the deltas of these concepts' own
embeddings e_k are added: in a long prompt c says little about one word of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .detector import Detector
from .embedding import Chunk, Entry, chunks_of
from .factors import Factors
from .network import Hypernet, HypernetConfig
from .published import PublishedConfig, PublishedHypernet
from .record import Record
from .regressor import PooledRegressor
from .token_detector import TokenDetector

_HALF_WAY = 0.5


@dataclass(frozen=True)
class Eraser:
    """A hypernet with everything that decides when and how it is applied.

    detector: the gate; without one (files imported from the paper's authors) every prompt passes it. regressor:
    candidate embeddings from tokens, None where the file has none. concept_embeddings: the mean embedding of
    each concept's wordings, (concepts, width) fp32 on the CPU, or None. token_detector: for names among other
    words, None where the file has none; it goes with concept_embeddings. name: for messages.
    """

    hypernet: Hypernet | PublishedHypernet
    record: Record
    name: str
    detector: Detector | None = None
    regressor: PooledRegressor | None = None
    concept_embeddings: Tensor | None = None
    token_detector: TokenDetector | None = None

    @property
    def parts(self) -> tuple["Eraser", ...]:
        """The erasers that a merged one is made of (``merged``); of any other, itself."""
        return (self,)

    @property
    def config(self) -> HypernetConfig | PublishedConfig:
        """The shape of H and the target layers."""
        return self.hypernet.config

    @property
    def device(self) -> torch.device:
        """Where H computes."""
        return next(self.hypernet.parameters()).device

    def chunks(self, entry: Entry) -> list[list[Chunk]]:
        """The chunks of every prompt of a conditioning entry, see `embedding.chunks_of`.

        With a token detector, text of its encoders is never unknown.
        """
        width = self.hypernet.config.embedding_width
        prompts = chunks_of(entry, self.record.embedding, width, self.record.text_encoder.chunk, self.regressor)
        detector = self.token_detector
        if detector is None:
            return prompts
        return [
            [
                chunk._replace(named=detector.named(chunk.tokens), unknown=False)
                if chunk.tokens is not None and detector.fits(chunk.tokens)
                else chunk
                for chunk in chunks
            ]
            for chunks in prompts
        ]

    def own_embedding(self, concept: int) -> Tensor:
        """e_k, the mean embedding of a concept's wordings, (width,)."""
        if self.concept_embeddings is None:
            raise ValueError(f"'{self.name}' holds no embeddings of its concepts")
        return self.concept_embeddings[concept]

    def score(self, c: Tensor) -> Tensor:
        """max_k f_k(c), (p, width) to (p,): 1 and above is erased. Without a detector it is 1 throughout."""
        return torch.ones(c.shape[0]) if self.detector is None else self.detector(c)

    def answering(self, _c: Tensor) -> "Eraser":
        """The part whose H answers one embedding (1, width), see `parts`."""
        return self

    def factors(self, c: Tensor, strength: float = 1.0) -> list[Factors]:
        """A(c', s) and B(c', s) for embeddings c (p, width), one `Factors` for each target layer.

        strength: up to 1 it is s / S, above 1 it multiplies B. The gate is not applied here, see `score`.
        """
        with torch.no_grad():
            if self.detector is not None and self.concept_embeddings is not None:
                # Files of before the trunk had bounds, and those of diffusion objectives, were steered half way.
                whole = isinstance(self.config, HypernetConfig) and self.config.bounded
                c = self.detector.steer(c, self.concept_embeddings.to(c), 1.0 if whole else _HALF_WAY)
            layers = self.hypernet(c, min(strength, 1.0) * self.hypernet.config.trajectory)
        if strength > 1:
            layers = [factors._replace(B=factors.B * strength) for factors in layers]
        return layers

"""Which parts of a merged eraser may detect something in a chunk: the scores of all concepts in one matrix product.

The candidate embeddings of part n are linear in the features f of a chunk (``regressor``), and the scores of its
concepts k are linear in those. With the detector's w, b and the regressor's U, D, b' of the text encoder's layer,

    f_nk = w_nk (U_n D_n f + b'_n) + b_nk = G_nk f + h_nk

Neighbours only lower scores, so a part whose scores are all below the threshold has nothing to answer. The sums are
taken in another order than by the part itself. So whatever is near the threshold is left to the part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .embedding import Chunk
from .eraser import Eraser
from .regressor import chunk_features

# From this score on a part looks for itself; layers of the text encoder whose scores are this close both count.
_NEAR, _TIE = 0.99, 1e-3


@dataclass(frozen=True)
class JoinedDetection:
    """The linear scores of all parts that have a detector and a regressor of one shape.

    parts: their numbers. owner: (concepts,), of each concept the place of its part among these. weight: (concepts,
    width), bias: (concepts,), for scores of a pooled embedding. G: (layers, concepts, F), h: (layers, concepts), for
    scores of features, one of each for each text encoder of `widths`. key: (parts, layers, F + 1), for the layer that
    tokens are from. All fp32 on the CPU.
    """

    widths: tuple[int, ...]
    parts: tuple[int, ...]
    owner: Tensor
    weight: Tensor
    bias: Tensor
    G: tuple[Tensor, ...]
    h: tuple[Tensor, ...]
    key: Tensor

    def fits(self, chunk: Chunk) -> bool:
        """Whether a chunk has token states of the encoders that the regressors were fitted on."""
        return chunk.tokens is not None and chunk.tokens.shape[-1] == sum(self.widths)

    def may_detect(self, chunk: Chunk) -> set[int]:
        """The numbers of those of `parts` that may detect something in a chunk that fits."""
        assert chunk.tokens is not None
        high = [self.weight @ c + self.bias >= _NEAR for c in chunk.candidates]
        if chunk.tokens.any():
            high.append(self._estimates_high(chunk_features(chunk.tokens, self.widths)))
        return {self.parts[n] for concepts in high for n in self.owner[concepts].tolist()}

    def _estimates_high(self, f: Tensor) -> Tensor:
        """Whether features f (F,) score high enough for each concept, (concepts,), of the layer that they are from."""
        layer = self.key[..., :-1] @ f + self.key[..., -1]
        own = (layer >= layer.amax(1, keepdim=True) - _TIE)[self.owner].T
        sizes = [2 * width for width in self.widths]
        scores = [G @ part + h for G, part, h in zip(self.G, f.split(sizes), self.h, strict=True)]
        return ((torch.stack(scores).amax(0) >= _NEAR) & own).any(0)


def joined_detection(parts: Sequence[Eraser]) -> JoinedDetection | None:
    """Of those parts whose regressor has the shape of the first one; None without any."""
    able, weights, biases, owner = list[int](), list[Tensor](), list[Tensor](), list[int]()
    first = next((part.regressor for part in parts if part.regressor is not None), None)
    if first is None:
        return None
    Gs, hs = ([[] for _ in first.widths] for _ in range(2))
    keys = list[Tensor]()
    for n, part in enumerate(parts):
        own, detector = part.regressor, part.detector
        if own is None or detector is None or own.widths != first.widths or own.key.shape != first.key.shape:
            continue
        weight, bias = detector.weight.cpu(), detector.bias.cpu()
        downs = own.down.split([2 * width for width in own.widths], -1)
        for e, down in enumerate(downs):
            Gs[e].append(weight @ own.up[:, e] @ down)
            hs[e].append(own.bias[:, e] @ weight.T + bias)
        weights.append(weight)
        biases.append(bias)
        keys.append(own.key)
        owner += [len(able)] * len(weight)
        able.append(n)
    G, h = (tuple(torch.cat(of_each, 1) for of_each in grown) for grown in (Gs, hs))
    return JoinedDetection(
        first.widths, tuple(able), torch.tensor(owner), torch.cat(weights), torch.cat(biases), G, h, torch.stack(keys)
    )

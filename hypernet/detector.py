"""The detector: linear scores on c that decide whether H is applied.

H never generates exactly nothing for a benign prompt, and guidance amplifies the rest. So a linear detector
on c decides first: below the threshold the base model runs unchanged, bit for bit. The norm of H's delta
makes a much worse detector (benchmarks/results/erasure.json).
"""

import torch
from torch import Tensor
from torch.nn import Module

from .neighbours import Neighbours

# From this score on a prompt says what the concept's own wordings say, whatever else is near. Theirs are 1 / 0.6 and
# higher, see `calibrate`.
_UNDISPUTED = 1.6
# What a disputed score is lowered to.
_BELOW = 0.99


class Detector(Module):
    """f_k(c) = w_k c + b_k, one score for each concept k, scaled so that the threshold of each is 1.

    weight: (concepts, width), bias: (concepts,), fp32; the concepts are those of the file's record. neighbours: what
    takes weak scores back, None where the file has none.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, neighbours: Neighbours | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.neighbours = neighbours

    def scores(self, c: Tensor) -> Tensor:
        """The score of every concept: (p, width) to (p, concepts)."""
        scores = c.to(self.weight) @ self.weight.T + self.bias
        if self.neighbours is None:
            return scores
        disputed = (scores < _UNDISPUTED) & self.neighbours.closer(c)
        return torch.where(disputed, scores.clamp(max=_BELOW), scores)

    def forward(self, c: Tensor) -> Tensor:
        """max_k f_k(c): (p, width) to (p,); 1 and above is detected."""
        return self.scores(c).amax(1)

    def steer(self, c: Tensor, concept_embeddings: Tensor, share: float = 1.0) -> Tensor:
        """c (p, width), moved along the direction of its top concept k to that concept's own score, by `share`.

        Unseen wordings score lower than the concept's name, and H would answer them weakly. With e_k the row
        of `concept_embeddings` (concepts, width):

            c' = c + share max(0, f_k(e_k) - f_k(c)) * w_k / |w_k|^2

        Embeddings below the threshold stay as they are.
        """
        score, concept = self.scores(c).max(1)
        w = self.weight[concept]
        own = (concept_embeddings.to(w)[concept] * w).sum(1) + self.bias[concept]
        missing = torch.where(score < 1, 0.0, (own - score).clamp_min(0.0))
        return c + share * (missing / w.square().sum(1).clamp_min(1e-12)).unsqueeze(1) * w


def calibrate(
    benign: Tensor, target: Tensor, false_alarms: float = 0.01, reach: float = 0.6, ceiling: float = 0.6
) -> float:
    """Pick the threshold between the scores of benign prompts and those of erased ones.

    benign: (n,) scores of prompts that were not in the fit; target: (m,) scores of the wordings of the erased
    concepts. On a logarithmic scale from the weakest erased wording down to the benign quantile
    1 - `false_alarms`, the threshold lies at `reach`: nearer to the benign side, since unseen wordings score
    lower than trained ones. Never above `ceiling` times the weakest erased wording, never below the benign
    quantile unless the two overlap. Where it is at or above that quantile, the probability that a benign
    prompt of the same distribution is detected is at most false_alarms + 1 / (n + 1) (split conformal
    prediction).
    """
    highest = max(torch.quantile(benign.float(), 1 - false_alarms).item(), 0.0)
    weakest = max(target.float().min().item(), 0.0)
    return min(max(highest, highest**reach * weakest ** (1 - reach)), ceiling * weakest)

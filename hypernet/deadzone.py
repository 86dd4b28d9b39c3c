"""The dead zone: prompts that count as meaning nothing erased, and run the base model bit for bit.

H never writes exactly nothing for a benign prompt, and guidance amplifies what is left. So a `Switch`
looks at c first: one linear score a concept, above 1 for its wordings and below for other prompts. The
size of the delta that H writes makes a much worse switch (benchmarks/results/erasure.json).
"""

import torch
from torch.nn import Module

_RAISED = 0.5


class Switch(Module):
    """presence(c) = max over concepts k of w_k c + b_k, scaled so that each concept's threshold is 1.

    weight: (concepts, width), bias: (concepts,), fp32; what the concepts of a file are is in its record.
    """

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def scores(self, c):
        """How present each concept is: (p, width) to (p, concepts)."""
        return c.to(self.weight) @ self.weight.T + self.bias

    def forward(self, c):
        """How present the most present concept is: (p, width) to (p,)."""
        return self.scores(c).amax(1)

    def raised(self, c, plain):
        """c (p, width) with its most present concept raised half-way to how present it is in its own name.

        A wording that training never saw says a concept more weakly than its name does, and H would answer it as
        weakly. With f_k the score of concept k and n_k its row of `plain` (concepts, width):

            c + max(0, f_k(n_k) - f_k(c)) / 2 * w_k / |w_k|^2

        What doesn't reach the threshold stays as it is.
        """
        presence, concept = self.scores(c).max(1)
        w = self.weight[concept]
        named = (plain.to(w)[concept] * w).sum(1) + self.bias[concept]
        missing = torch.where(presence < 1, 0.0, (named - presence).clamp_min(0.0))
        return c + _RAISED * (missing / w.square().sum(1).clamp_min(1e-12)).unsqueeze(1) * w


def calibrate(benign, target, false_alarms=0.01, reach=0.6, ceiling=0.6):
    """Pick the threshold between the scores of benign prompts and those of erased ones.

    benign: (n,) scores of prompts that training never saw; target: (m,) scores of the phrasings of the
    erased concepts. On a logarithmic scale from the weakest erased phrasing down to the benign quantile
    1 - `false_alarms`, the threshold lies at `reach`: nearer to the benign side, since wordings that
    training never saw score lower than those it did. Never above `ceiling` times the weakest erased
    phrasing, never below the benign quantile unless the two overlap. Where it is at or above that
    quantile, a benign prompt like those n is taken for an erased one with a probability of at most
    false_alarms + 1 / (n + 1) (split conformal prediction).
    """
    benign = max(torch.quantile(benign.float(), 1 - false_alarms).item(), 0.0)
    target = max(target.float().min().item(), 0.0)
    return min(max(benign, benign**reach * target ** (1 - reach)), ceiling * target)


def is_silent(presence, threshold):
    """True where a presence counts as none; (p,) to bool (p,)."""
    return presence < threshold

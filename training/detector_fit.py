"""Fitting the detector: one linear score a concept, with a wide margin.

A support vector machine with squared hinges on either side: f(c) = w (c - m) / r + b shall be at least 1 for
a concept's wordings and at most 0 for retained prompts,

    sum_i p_i max(0, 1 - f(c_i))^2 + mean_j max(0, f(c_j))^2 + lambda |w|^2,

m and r the mean of the retained prompts and their mean distance from it. Only prompts near the concept count,
so that a relative to preserve moves the boundary where a hundred distant prompts don't, and the short w leaves
a margin for unseen wordings and against attacks. The difference of the means and Fisher's discriminant are
measured beside it (`dev.py bench detector`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..hypernet.detector import Detector, calibrate

# lambda
_WIDTH = 0.01
# Plain wordings count more than the sentences that hold them, of which there are many more.
_WORDING_WEIGHT = 10.0

_LEAST = 0.01
# Half of the one percent of benign prompts that may be detected; the other half is the token detector's.
_FALSE_ALARMS = 0.005
# The threshold goes above the prompts to preserve, with a margin for half precision, as long as it stays below
# this share of the weakest wording.
_ABOVE, _HIGHEST = 1.01, 0.8


def widest_margin(wordings: Tensor, sentences: Tensor, benign: Tensor, width: float = _WIDTH) -> tuple[Tensor, Tensor]:
    """w (d,) and b of one concept, so that w c + b is about 1 for its wordings and 0 or less for benign prompts.

    wordings: (n, d) c of its phrasings; sentences: (m, d) of prompts that name it among other things, m may be 0;
    benign: (k, d). width: lambda, the larger the wider. fp32 in and out, solved in fp64.
    """
    center = benign.double().mean(0)
    positive, negative = torch.cat([wordings, sentences]).double() - center, benign.double() - center
    scale = negative.square().sum(1).mean().sqrt()
    weights = torch.cat([torch.full((len(wordings),), _WORDING_WEIGHT), torch.ones(len(sentences))]).double()
    weights = weights / weights.sum()
    w, b = center.new_zeros(center.shape, requires_grad=True), center.new_zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([w, b], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        missed = weights @ torch.relu(1 - (positive @ w / scale + b)).square()
        alarms = torch.relu(negative @ w / scale + b).square().mean()
        total = missed + alarms + width * w.square().sum()
        total.backward()
        return total

    solver.step(loss)
    w = w.detach() / scale
    return w.float(), (b.detach() - w @ center).squeeze().float()


def fit_detector(
    wordings: Sequence[Tensor],
    sentences: Sequence[Tensor],
    benign: Tensor,
    held_out: Tensor,
    preserved: Tensor | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Detector:
    """Fit a `Detector` and calibrate each concept's threshold on prompts that are not in the fit.

    wordings, sentences: one (n, d) tensor for each concept; benign: (k, d); held_out: (candidates, k, d), of a
    prompt the highest score counts; preserved: (k, d) of the prompts of the user's list, which stay below the
    threshold unless a concept can't be separated from them. All fp32 on the CPU. report(done, total) is called
    before each concept and may raise to interrupt. The threshold of every concept is 1.
    """
    weight, bias = [], []
    for own, sentence in zip(wordings, sentences, strict=True):
        report(len(weight), len(wordings))
        w, b = widest_margin(own, sentence, benign)
        benign_scores, scores = (held_out @ w + b).amax(0), own @ w + b
        # A false alarm of any concept is one: each gets its share of them.
        threshold = calibrate(benign_scores, scores, false_alarms=_FALSE_ALARMS / len(wordings))
        if preserved is not None:
            threshold = max(threshold, min(_ABOVE * (preserved @ w + b).max().item(), _HIGHEST * scores.min().item()))
        # Where wordings and benign prompts overlap it would be zero, which nothing can be scaled by.
        threshold = max(threshold, _LEAST)
        weight.append(w / threshold)
        bias.append(b / threshold)
    return Detector(torch.stack(weight), torch.stack(bias))

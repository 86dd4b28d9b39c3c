"""Fitting the detector: one linear score a concept, with a wide margin.

A support vector machine with squared hinges on either side: f(c) = w (c - m) / r + b shall be at least 1 for
a concept's wordings and at most 0 for retained prompts,

    sum_i p_i max(0, 1 - f(c_i))^2 + mean_j max(0, f(c_j))^2 + mu mean_l max(0, f(n_l))^2 + lambda |w|^2,

m and r the mean of the retained prompts and their mean distance from it, n_l the embeddings of the nouns nearest to
the concept (``nouns``). Only prompts near the concept count,
so that a relative to preserve moves the boundary where a hundred distant prompts don't, and the short w leaves
a margin for unseen wordings and against attacks. The difference of the means and Fisher's discriminant are
measured beside it (`dev.py bench detector`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..hypernet.detector import Detector, calibrate
from ..hypernet.neighbours import Neighbours
from .margin import Side, even, widest_margin_of

# lambda and mu, the latter for one concept. With a hundred it is half as large: the neighbours of all dispute a score.
_WIDTH, _NEAR_WEIGHT, _HALVED_AT = 0.01, 0.1, 100
# How many of the nouns count in the fit of a concept, and how many of them a file holds.
_NEAR, _KEPT = 60, 8
# Nouns closer to a concept than that, by the cosine of what sets them apart from other nouns, are neither wordings nor
# neighbours: other words for it are as close, and the model may draw it for them. Those further away surround it, too.
NEITHER = 0.4
# Plain wordings count more than the sentences that hold them, of which there are many more.
_WORDING_WEIGHT = 10.0

_LEAST = 0.01
# Half of the one percent of benign prompts that may be detected; the other half is the token detector's.
_FALSE_ALARMS = 0.005
# The threshold goes above the prompts to preserve, with a margin for half precision, as long as it stays below
# this share of the weakest wording.
_ABOVE, _HIGHEST = 1.01, 0.8


def widest_margin(
    wordings: Tensor,
    sentences: Tensor,
    benign: Tensor,
    near: Tensor,
    near_weight: float = _NEAR_WEIGHT,
    width: float = _WIDTH,
) -> tuple[Tensor, Tensor]:
    """w (d,) and b of one concept, so that w c + b is about 1 for its wordings and 0 or less for benign prompts.

    wordings: (n, d) c of its phrasings; sentences: (m, d) of prompts that name it among other things; benign: (k, d);
    near: (l, d) of nouns near it. m and l may be 0. near_weight: mu; width: lambda, the larger the wider. fp32 in and
    out, solved in fp64.
    """
    center = benign.double().mean(0)
    scale = (benign.double() - center).square().sum(1).mean().sqrt()

    def scaled(c: Tensor) -> Tensor:
        return (c.double() - center) / scale

    p = torch.cat([torch.full((len(wordings),), _WORDING_WEIGHT), torch.ones(len(sentences))]).double()
    positive = Side(scaled(torch.cat([wordings, sentences])), p / p.sum())
    w, b = widest_margin_of(positive, (even(scaled(benign)), even(scaled(near), near_weight)), width)
    w = w / scale
    return w.float(), (b - w @ center).float()


def fit_detector(
    wordings: Sequence[Tensor],
    sentences: Sequence[Tensor],
    benign: Tensor,
    held_out: Tensor,
    preserved: Tensor | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
    nouns: Tensor | None = None,
) -> Detector:
    """Fit a `Detector` and calibrate each concept's threshold on prompts that are not in the fit.

    wordings, sentences: one (n, d) tensor for each concept; benign: (k, d); held_out: (candidates, k, d), of a
    prompt the highest score counts; preserved: (k, d) of the prompts of the user's list, which stay below the
    threshold unless a concept can't be separated from them. All fp32 on the CPU. report(done, total) is called
    before each concept and may raise to interrupt. nouns: (candidates, k, d) of everyday nouns, of which the
    neighbours are taken. The threshold of every concept is 1.
    """
    weight, bias = [], []
    concepts = torch.stack([own.mean(0) for own in wordings])
    near_weight = _NEAR_WEIGHT / (1 + len(wordings) / _HALVED_AT)
    bank = benign[:0].unsqueeze(0) if nouns is None else nouns
    nearest = neighbours_of(concepts, bank[0])
    for own, sentence, indices in zip(wordings, sentences, nearest, strict=True):
        report(len(weight), len(wordings))
        w, b = widest_margin(own, sentence, benign, bank[:, indices].flatten(0, 1), near_weight)
        benign_scores, scores = (held_out @ w + b).amax(0), own @ w + b
        # A false alarm of any concept is one: each gets its share of them.
        threshold = calibrate(benign_scores, scores, false_alarms=_FALSE_ALARMS / len(wordings))
        if preserved is not None:
            threshold = max(threshold, min(_ABOVE * (preserved @ w + b).max().item(), _HIGHEST * scores.min().item()))
        # Where wordings and benign prompts overlap it would be zero, which nothing can be scaled by.
        threshold = max(threshold, _LEAST)
        weight.append(w / threshold)
        bias.append(b / threshold)
    kept = sorted({index for indices in nearest for index in indices[:_KEPT]})
    neighbours = Neighbours(bank[0, kept], concepts) if kept else None
    return Detector(torch.stack(weight), torch.stack(bias), neighbours)


def neighbours_of(concepts: Tensor, nouns: Tensor) -> list[list[int]]:
    """The indices of the nouns (n, d) that count in the fit of each concept (k, d), the nearest first."""
    return _alike(concepts, nouns).argsort(dim=1, descending=True)[:, :_NEAR].tolist()


def unlike(concepts: Tensor, nouns: Tensor, most: float = NEITHER) -> list[int]:
    """The indices of the nouns (n, d) whose cosine with each of the concepts (k, d) is below `most`, see `_alike`."""
    return (_alike(concepts, nouns).amax(0) < most).nonzero().flatten().tolist()


def _alike(concepts: Tensor, nouns: Tensor) -> Tensor:
    """The cosines of what sets each apart from the mean noun, (k, n)."""
    center = nouns.mean(0)
    return normalize(concepts - center, dim=1) @ normalize(nouns - center, dim=1).T

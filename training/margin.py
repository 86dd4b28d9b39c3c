"""The widest margin between two sets of rows: a support vector machine with squared hinges on either side.

    sum_i p_i max(0, 1 - f(x_i))^2 + sum_j q_j max(0, f(y_j))^2 + lambda |w|^2,        f(x) = w x + b

By Newton's method (Chapelle 2007, Training a support vector machine in the primal): among the rows with a loss it is a
ridge regression, which is solved in the smaller of their number and their width. Where the next solution has the same
rows with a loss, it is the minimum. Some five regressions are enough, where a quasi-Newton method takes a hundred
passes over all rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_ITERATIONS, _HALVINGS = 50, 30
# Where the first scores are zero, as a share of the way from the mean of all y to that of all x.
_START = 0.3


class Side(NamedTuple):
    """Rows (n, d) on one side of the margin, and the weight of each (n,), both fp64."""

    rows: Tensor
    weights: Tensor


def even(rows: Tensor, total: float = 1.0) -> Side:
    """A `Side` whose rows share a weight. There may be none."""
    return Side(rows.double(), torch.full((len(rows),), total / max(len(rows), 1), dtype=torch.float64))


def widest_margin_of(x: Side, y: Sequence[Side], width: float) -> tuple[Tensor, Tensor]:
    """w (d,) and b that minimise the sum of the module, fp64.

    x: the rows that score at least 1; y: those that score at most 0, in several parts of which some may be those of
    another margin as well. width: lambda, above 0.
    """
    sides = [x, *y]
    weights = torch.cat([side.weights for side in sides])
    wanted = torch.zeros_like(weights)
    wanted[: len(x.rows)] = 1
    sign = 2 * wanted - 1  # a row has a loss where its score is too low, or too high

    def loss(scores: Tensor, w: Tensor) -> Tensor:
        return weights @ torch.relu(sign * (wanted - scores)).square() + width * w.square().sum()

    def scores_of(w: Tensor, b: Tensor) -> Tensor:
        return torch.cat([side.rows @ w for side in sides]) + b

    center = sum((side.weights @ side.rows for side in y), torch.zeros(())) / sum(side.weights.sum() for side in y)
    w = x.weights @ x.rows / x.weights.sum() - center
    w = w / (w.square().sum() * (1 - _START)).clamp_min(1e-12)
    b = -(w @ center) - _START / (1 - _START)
    scores = scores_of(w, b)
    for _ in range(_ITERATIONS):
        active = sign * (wanted - scores) > 0
        chosen = active.split([len(side.rows) for side in sides])
        rows = torch.cat([side.rows[part] for side, part in zip(sides, chosen, strict=True)])
        next_w, next_b = _ridge(rows, weights[active], wanted[active], width)
        next_scores, share, before = scores_of(next_w, next_b), 1.0, loss(scores, w)
        if torch.equal(sign * (wanted - next_scores) > 0, active):
            return next_w, next_b
        for _ in range(_HALVINGS):
            mixed = torch.lerp(w, next_w, share)
            if loss(torch.lerp(scores, next_scores, share), mixed) < before:
                break
            share /= 2
        else:
            return w, b  # nothing is better by more than rounding
        w, b, scores = mixed, torch.lerp(b, next_b, share), torch.lerp(scores, next_scores, share)
    return w, b


def _ridge(rows: Tensor, weights: Tensor, wanted: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """w and b that minimise sum_i v_i (t_i - w x_i - b)^2 + lambda |w|^2. rows: (n, d); weights, wanted: (n,)."""
    total = weights.sum()
    mean, level = weights @ rows / total, weights @ wanted / total
    root = weights.sqrt()
    Z, t = root.unsqueeze(1) * (rows - mean), (root * (wanted - level)).unsqueeze(1)
    if len(Z) < Z.shape[1]:
        w = Z.T @ torch.cholesky_solve(t, _lower(Z @ Z.T, width))
    else:
        w = torch.cholesky_solve(Z.T @ t, _lower(Z.T @ Z, width))
    w = w.squeeze(1)
    return w, level - w @ mean


def _lower(gram: Tensor, width: float) -> Tensor:
    gram.diagonal().add_(width)
    return torch.linalg.cholesky(gram)

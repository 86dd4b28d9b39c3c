"""Fitting the regressor that estimates a chunk's pooled embedding from its token states.

Ridge regression over all prompts that training encodes anyway, once at the encoder's own layer and once at
clip-skip 2, if that gives other states for the same pooled embedding. Each layer has a map of its own: one for
both fits the usual layer markedly worse.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..hypernet.regressor import PooledRegressor

# Ridge strengths that are tried, as shares of the features' mean variance.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_KEY_STRENGTH = 1e-2
RANK = 32
# Minimum held-out R^2: a worse regressor would give benign prompts arbitrary embeddings.
MIN_R2 = 0.5


def fit_regressor(
    features: Sequence[Sequence[Tensor]], c: Sequence[Tensor], widths: tuple[int, ...]
) -> tuple[PooledRegressor | None, list[int], float]:
    """Fit a `PooledRegressor`; every layer gets its own map, a linear score identifies the layer.

    features: of each layer a pair (train, held out), each (., F); c: the pair of their pooled embeddings
    (., width). Returns (regressor, layers that it knows, R^2 on the usual layer's held-out rows). Layers below
    `MIN_R2` are left out; where the usual layer is, the regressor is None.
    """
    maps = [fit_layer(*layer, *c, widths) for layer in features]
    r2 = maps[0][2]
    known = [number for number, (*_, layer_r2) in enumerate(maps) if min(layer_r2, r2) >= MIN_R2]
    if not known:
        return None, [], r2
    bias = torch.stack([maps[number][1] for number in known])
    up, down = full_rank_maps(torch.stack([maps[number][0] for number in known]), len(widths))
    which = torch.eye(len(known)).repeat_interleave(len(c[0]), 0)
    score, constant = ridge(torch.cat([features[number][0] for number in known]), which, _KEY_STRENGTH)
    key = torch.cat([score, constant.unsqueeze(1)], 1)
    return PooledRegressor(widths, up, down, bias, key), known, r2


def ridge(features: Tensor, c: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """W and b that minimise sum |W f + b - c|^2 + strength * n * mean variance * |W|^2.

    features: (n, f); c: (n, width). Returns (W (width, f), b (width,)), fp32. Solved in the smaller of n
    and f, in fp64.
    """
    features, c = features.double(), c.double()
    center, mean = features.mean(0), c.mean(0)
    X, Y = features - center, c - mean
    weight = strength * X.square().sum() / X.shape[1]
    if X.shape[0] < X.shape[1]:
        gram = X @ X.T
        solution = X.T @ torch.linalg.solve(gram + weight * torch.eye(len(gram), dtype=gram.dtype), Y)
    else:
        gram = X.T @ X
        solution = torch.linalg.solve(gram + weight * torch.eye(len(gram), dtype=gram.dtype), X.T @ Y)
    return solution.T.float(), (mean - center @ solution).float()


def r_squared(estimate: Tensor, c: Tensor) -> float:
    """R^2 of an estimate of c, both (n, width): the share of its variance that is explained."""
    return 1 - ((estimate - c).square().sum() / (c - c.mean(0)).square().sum()).item()


def fit_layer(
    train: Tensor, held_out: Tensor, train_c: Tensor, held_out_c: Tensor, widths: tuple[int, ...]
) -> tuple[Tensor, Tensor, float]:
    """Fit the map of one layer, each encoder for itself, and choose each one's strength on held-out prompts.

    train, held_out: features (., F); train_c, held_out_c: c (., width). Returns (weight (width, F), bias
    (encoders, width), the least R^2 of the encoders on held-out rows).
    """
    sizes = [2 * width for width in widths]
    best = []
    for seen, unseen in zip(train.split(sizes, -1), held_out.split(sizes, -1), strict=True):
        maps = [ridge(seen, train_c, strength) for strength in _STRENGTHS]
        r2 = [r_squared(unseen @ weight.T + bias, held_out_c) for weight, bias in maps]
        best.append((*maps[r2.index(max(r2))], max(r2)))
    weights, biases, scores = zip(*best, strict=True)
    return torch.cat(weights, 1), torch.stack(biases), min(scores)


def full_rank_maps(weight: Tensor, encoders: int) -> tuple[Tensor, Tensor]:
    """Maps of full rank: weight (layers, width, F) as up (layers, encoders, width, width) and down."""
    layers, width, _ = weight.shape
    return torch.eye(width).expand(layers, encoders, width, width), weight


def compressed(
    regressor: PooledRegressor, features: Sequence[Tensor], used: Tensor, rank: int = RANK
) -> PooledRegressor:
    """The regressor with maps of `rank`, which would else be most of a file.

    features: of each layer (n, F); used: (m, width), the rows that c is multiplied with later, the errors of
    whose products are kept small. With S their Gram matrix and Y the fitted c, the best P of
    rank r for || (Y - Y P) S^1/2 || is S^1/2 V V^T S^-1/2, V the first right singular vectors of Y S^1/2.
    """
    gram = used.double().T @ used.double()
    gram = gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    values, vectors = torch.linalg.eigh(gram)
    root, inverse = ((vectors * values.clamp_min(1e-12) ** power) @ vectors.T for power in (0.5, -0.5))
    sizes = [2 * width for width in regressor.widths]
    ups, downs, biases = [], [], []
    for rows, up, down, bias in zip(features, regressor.up, regressor.down, regressor.bias, strict=True):
        parts = zip(rows.double().split(sizes, -1), up.double(), down.double().split(sizes, -1), bias, strict=True)
        maps = [_compress(f, u @ d, b, root, inverse, rank) for f, u, d, b in parts]
        ups.append(torch.stack([u for u, _, _ in maps]))
        downs.append(torch.cat([d for _, d, _ in maps], 1))
        biases.append(torch.stack([b for _, _, b in maps]))
    return replace(regressor, up=torch.stack(ups), down=torch.stack(downs), bias=torch.stack(biases))


def _compress(
    features: Tensor, weight: Tensor, bias: Tensor, root: Tensor, inverse: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    center = features.mean(0)
    _, _, directions = torch.linalg.svd((features - center) @ weight.T @ root, full_matrices=False)
    V = directions[:rank].T
    up, down = inverse @ V, V.T @ root @ weight
    return up.float(), down.float(), (bias + (weight - up @ down) @ center).float()

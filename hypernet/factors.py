"""The low-rank delta of a linear layer, as pure functions.

For a layer y = W x + b the factors A and B of one prompt give y + B (A x). Letters as everywhere in
this pack: A has shape (rank, in), B has shape (out, rank); a leading p counts prompts or rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The factors of one layer for p prompts: A (p, rank, in) and B (p, out, rank)."""

    A: Tensor
    B: Tensor


def lowrank_delta(x: Tensor, factors: Factors) -> Tensor:
    """B (A x) for each row with its own factors, computed in fp32.

    x: (p, ..., in) of any float dtype; factors for the same p rows. Returns (p, ..., out) in fp32.
    """
    tokens = x.float().flatten(1, -2) if x.dim() > 2 else x.float().unsqueeze(1)
    delta = tokens @ factors.A.transpose(1, 2) @ factors.B.transpose(1, 2)
    return delta.reshape(*x.shape[:-1], delta.shape[-1])


def squared_norm(factors: Factors) -> Tensor:
    """||B A||_F^2 of each prompt, shape (p,), without forming B A: trace((B^T B)(A A^T))."""
    A, B = factors.A.float(), factors.B.float()
    return ((B.transpose(1, 2) @ B) * (A @ A.transpose(1, 2))).sum((1, 2))


def delta_norm(layers: Sequence[Factors]) -> Tensor:
    """The size of a prompt's whole delta: the root of the summed squared norms of all layers, (p,).

    layers: one `Factors` for each target layer.
    """
    return torch.stack([squared_norm(factors) for factors in layers]).sum(0).clamp_min(0).sqrt()


def select(layers: Sequence[Factors], index: slice | Tensor | list[int]) -> list[Factors]:
    """The factors of the prompts `index` (a slice or an index tensor) in every layer."""
    return [Factors(factors.A[index], factors.B[index]) for factors in layers]

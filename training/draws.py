"""The random draws of a training step."""

import torch
from torch import Generator, Tensor


def jittered(c: Tensor, share: float, generator: Generator) -> Tensor:
    """c (n, width) with noise of `share` of its root mean square: unseen wordings lie near the trained ones."""
    noise = torch.randn(c.shape, generator=generator).to(c)
    return c + share * c.square().mean().sqrt() * noise


def dial_steps(count: int, trajectory: int, generator: Generator) -> Tensor:
    """Steps s in [0, S], (count,) fp32: half of them S, where the hypernet is used, so that s stays a dial."""
    s = torch.rand(count, generator=generator) * trajectory
    return torch.where(torch.rand(count, generator=generator) < 0.5, torch.tensor(float(trajectory)), s)


def whole_steps(count: int, trajectory: int, generator: Generator) -> Tensor:
    """Whole steps s in 0 .. S - 1, (count,) fp32: each has a next step."""
    return torch.randint(0, trajectory, (count,), generator=generator).float()

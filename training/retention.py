"""Retention: what H generates for the prompts that must keep their pictures."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..hypernet.factors import delta_norm
from ..hypernet.network import Hypernet
from .draws import dial_steps, jittered
from .losses import retention_loss
from .settings import Settings


@dataclass(frozen=True)
class Retention:
    """Embeddings on the device that computes, (n, width) each.

    train: of the retained prompts. held_out: of those that are never trained on. erased: of the concepts'
    wordings, the scale of the retention error.
    """

    train: Tensor
    held_out: Tensor
    erased: Tensor

    def loss(self, hypernet: Hypernet, settings: Settings, generator: Generator) -> Tensor:
        """|| H(c_r, s) - H(c_r, 0) ||^2 over a batch of retained prompts, a scalar; see `losses.retention_loss`."""
        count = settings.retain_batch
        chosen = torch.randint(len(self.train), (count,), generator=generator).to(self.train.device)
        s = dial_steps(count, hypernet.config.trajectory, generator).to(self.train.device)
        c = jittered(self.train[chosen], settings.jitter, generator)
        return retention_loss(hypernet(c, s)).mean()

    def error(self, hypernet: Hypernet) -> float:
        """The delta's norm on held-out prompts: its 95% quantile over the median erased wording."""
        benign = torch.quantile(delta_norms(hypernet, self.held_out), 0.95)
        return (benign / delta_norms(hypernet, self.erased).median().clamp_min(1e-12)).item()


def delta_norms(hypernet: Hypernet, c: Tensor, chunk: int = 64) -> Tensor:
    """The norm of the delta that H generates at s = S for each embedding c (p, width), (p,) on the CPU."""
    with torch.no_grad():
        parts = [delta_norm(hypernet(part, hypernet.config.trajectory)).cpu() for part in c.split(chunk)]
    return torch.cat(parts)

"""The matching tasks: H(c, s + 1) imitates a gradient step from H(c, s).

`paper` (arXiv 2602.03410, section 3) minimises the matching term alone,

    || H(c, s+1) - H(c, s) + eta * grad_{theta_s} L_task ||^2

`released` adds the task loss of H(c, s), as the authors' code effectively does: there the backward pass of
L_task fills the gradients of H too, and nothing clears them.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...hypernet.factors import Factors
from ...hypernet.network import Hypernet
from ..draws import whole_steps
from ..losses import flatten, matching_loss
from ..settings import Settings
from .samples import Batch, DiffusionSamples


@dataclass(frozen=True)
class _Matching:
    samples: DiffusionSamples
    settings: Settings

    def _draw(self, hypernet: Hypernet, generator: Generator) -> tuple[Batch, Tensor, Tensor]:
        """A batch, its targets e* and its steps s."""
        count = self.settings.batch
        batch = self.samples.batch(count, generator)
        step = self.samples.split.rows(whole_steps(count, hypernet.config.trajectory, generator)).to(batch.c.device)
        return batch, batch.target(self.settings.gamma), step

    def _matching(
        self, hypernet: Hypernet, layers: list[Factors], batch: Batch, target: Tensor, step: Tensor
    ) -> Tensor:
        """The matching term from theta_s = `layers`, the mean over the batch."""
        leaves = [Factors(f.A.detach().requires_grad_(), f.B.detach().requires_grad_()) for f in layers]
        # Samples share no factors, so the gradient of the summed loss holds each sample's own.
        task = self.samples.task_loss(batch, leaves, target)
        flat = torch.autograd.grad(task.sum(), [tensor for factors in leaves for tensor in factors])
        gradient = torch.cat([part.flatten(1) for part in flat], dim=1)
        following = flatten(hypernet(batch.c, step + 1))
        return self._mean(matching_loss(following, flatten(layers), gradient, self.settings.eta))

    def _mean(self, losses: Tensor) -> Tensor:
        return self.samples.split.mean(losses, self.settings.batch)


class PaperTask(_Matching):
    """The objective `paper`: matching alone."""

    def loss(self, hypernet: Hypernet, generator: Generator) -> Tensor:
        """The matching term of a batch, a scalar."""
        batch, target, step = self._draw(hypernet, generator)
        with torch.no_grad():
            layers = hypernet(batch.c, step)
        return self._matching(hypernet, layers, batch, target, step)


class ReleasedTask(_Matching):
    """The objective `released`: the task loss at s plus the matching term, which smooths H over s."""

    def loss(self, hypernet: Hypernet, generator: Generator) -> Tensor:
        """Task loss and matching term of a batch, a scalar."""
        batch, target, step = self._draw(hypernet, generator)
        layers = hypernet(batch.c, step)
        task = self._mean(self.samples.task_loss(batch, layers, target))
        return task + self._matching(hypernet, layers, batch, target, step)

"""The direct task: minimise the task loss of H(c, s) itself.

With g = s / S the model with H's factors shall predict a mix of the two frozen predictions,

    L_s = mean (eps_{H(c, s)}(z_t) - [ e_p + g (e* - e_p) ])^2,        e* = e_m - gamma (e_p - e_m)

so that s dials the erasure.
"""

from dataclasses import dataclass

from torch import Generator, Tensor

from ...hypernet.network import Hypernet
from ..draws import dial_steps
from ..losses import target_along
from ..settings import Settings
from .samples import DiffusionSamples


@dataclass(frozen=True)
class DirectTask:
    """The objective `direct`."""

    samples: DiffusionSamples
    settings: Settings

    def loss(self, hypernet: Hypernet, generator: Generator) -> Tensor:
        """The mean of L_s over a batch, a scalar."""
        settings, trajectory, split = self.settings, hypernet.config.trajectory, self.samples.split
        batch = self.samples.batch(settings.batch, generator)
        step = split.rows(dial_steps(settings.batch, trajectory, generator)).to(batch.c.device)
        target = target_along(batch.e_p, batch.target(settings.gamma), step / trajectory)
        return split.mean(self.samples.task_loss(batch, hypernet(batch.c, step), target), settings.batch)

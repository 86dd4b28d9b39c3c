"""One training in several processes of a `torchrun`: the batch of each step is split over them.

Every process draws the whole batch and computes every N-th row of it. Torch's DistributedDataParallel averages the
gradients, so with the n_r rows of process r of n in all, and their mean loss L_r,

    grad L = 1/N sum_r grad( N n_r / n  L_r )

and the weights are those of a single run, to rounding. It is for the objectives that run the diffusion model in each
step; the samples themselves are made in every process.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist
from torch import Generator, Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from ..hypernet.network import Hypernet

if TYPE_CHECKING:
    from .tasks import Task


class Split(NamedTuple):
    """The rows of a batch that a process computes: every `world`-th from `rank` on."""

    rank: int = 0
    world: int = 1

    def rows(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch (n, ...)."""
        return batch[self.rank :: self.world]

    def mean(self, losses: Tensor, count: int) -> Tensor:
        """Its share of the mean over a batch of `count` rows, of which `losses` (n_r,) are its own, a scalar."""
        return losses.mean() * (len(losses) * self.world / count)

    def wait(self) -> None:
        """Wait for the other processes of a split."""
        if self.world > 1:
            dist.barrier()


WHOLE = Split()


class SplitTask:
    """A `Task` whose loss is that of the whole batch, and whose gradients on the hypernet become so in backward."""

    def __init__(self, task: "Task", hypernet: Hypernet) -> None:
        self._parallel = DistributedDataParallel(_Loss(task, hypernet), broadcast_buffers=False)

    def loss(self, hypernet: Hypernet, generator: Generator) -> Tensor:
        """See `Task.loss`; of the hypernet that was given at the start."""
        own = self._parallel(generator)
        whole = own.detach().clone()
        dist.all_reduce(whole)
        return own + (whole / dist.get_world_size() - own).detach()


class _Loss(Module):
    """A task's loss as a module of the hypernet's parameters, which DistributedDataParallel takes."""

    def __init__(self, task: "Task", hypernet: Hypernet) -> None:
        super().__init__()
        self.task, self.hypernet = task, hypernet

    def forward(self, generator: Generator) -> Tensor:
        return self.task.loss(self.hypernet, generator)

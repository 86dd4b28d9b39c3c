"""The removal tasks: each gives the loss of a batch, and the loop needs nothing else of it.

``attention`` trains on the target layers alone. ``direct`` and ``matching`` (the paper's objective, and as the
authors released it) train through the diffusion model, on the samples of ``samples``.
"""

from typing import Protocol

from torch import Generator, Tensor

from ...hypernet.network import Hypernet


class Task(Protocol):
    """A removal task."""

    def loss(self, hypernet: Hypernet, generator: Generator) -> Tensor:
        """The mean loss of a batch that `generator` draws, a scalar."""
        ...

"""Training the parts of a list in one process, or in those of a `torchrun`, which share them out.

Each process trains whole parts, so nothing goes between them but the message that all are done. What is trained is a
file, and what is under way has its checkpoint: after an interrupt the same call goes on with the rest.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..hypernet.eraser import Eraser
from .callbacks import Report
from .parts import trained
from .plan import Request

# The first process to be done waits for the last one.
_PATIENCE = timedelta(days=30)


def join_processes() -> None:
    """Join the other processes of a `torchrun`: nccl on GPUs, gloo on CPUs."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)


def train_in_parts(
    model: Any, clip: Any, requests: Sequence[Request], report_of: Callable[[int], Report]
) -> list[Eraser]:
    """The erasers of the requests in their order; of the processes of a `torchrun` only the first one gets them.

    The requests must have names or folders of their own, since several processes write at once. report_of: the report
    of a request by its number. See `run.train_erasure` for the errors.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def eraser_of(number: int) -> Eraser:
        return trained(model, clip, requests[number], report_of(number)).eraser

    own = {number: eraser_of(number) for number in range(rank, len(requests), world)}
    if world > 1:
        dist.barrier()
    if rank:
        return []
    return [own[number] if number in own else eraser_of(number) for number in range(len(requests))]

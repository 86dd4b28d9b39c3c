"""Training the parts of a list in one process, or in those of a `torchrun`.

The processes share the parts out. Each trains whole parts, so nothing goes between them but the message that all are
done. Where there are fewer parts than processes, and the objective runs the diffusion model in every step, all of them
train each part together and split its batches (``batch_split``). What is trained is a file, and what is under way has
its checkpoint: after an interrupt the same call goes on with the rest.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..hypernet.eraser import Eraser
from .batch_split import Split
from .callbacks import Report
from .loop import TrainingError
from .parts import trained
from .plan import Request, make_plan

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
    if len(requests) < world and _runs_diffusion(model, requests[0]):
        return _train_together(model, clip, requests, report_of, Split(rank, world))

    def eraser_of(number: int) -> Eraser:
        return trained(model, clip, requests[number], report_of(number)).eraser

    own = {number: eraser_of(number) for number in range(rank, len(requests), world)}
    if world > 1:
        dist.barrier()
    if rank:
        return []
    return [own[number] if number in own else eraser_of(number) for number in range(len(requests))]


def _runs_diffusion(model: Any, request: Request) -> bool:
    """Whether a training runs the diffusion model in every step: by its objective, or since its family needs that."""
    return make_plan(model, request).request.settings.objective != "attention"


def _train_together(
    model: Any, clip: Any, requests: Sequence[Request], report_of: Callable[[int], Report], split: Split
) -> list[Eraser]:
    """See `train_in_parts`: one part after the other, each in all processes."""
    if (batch := requests[0].settings.batch) < split.world:
        raise TrainingError(f"{split.world} processes can't share a batch of {batch}: start at most {batch}.")

    def report(number: int) -> Report:
        return report_of(number) if split.rank == 0 else _no_report

    erasers = [trained(model, clip, request, report(n), split).eraser for n, request in enumerate(requests)]
    return erasers if split.rank == 0 else []


def _no_report(*_: Any, **__: Any) -> None:
    """The first process reports for all."""

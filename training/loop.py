"""The training loop: one optimiser over removal and retention, with early stopping on held-out prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from ..hypernet.errors import UserError
from ..hypernet.network import Hypernet
from .retention import Retention
from .settings import Settings
from .tasks import Task

_GRADIENT_CLIP = 1.0


class TrainingError(UserError, RuntimeError):
    """Training can't go on; the message says why and what to change."""


@dataclass
class TrainingState:
    """Everything that changes while training, all of it in a checkpoint.

    retention: pairs (step, retention error). random: the generator's state before the step under way, so that
    a step that an interrupt broke off is drawn again when the run resumes.
    """

    hypernet: Hypernet
    optimiser: torch.optim.Optimizer
    generator: Generator
    step: int = 0
    losses: list[float] = field(default_factory=list)
    retention: list[tuple[int, float]] = field(default_factory=list)
    random: Tensor | None = None


def new_state(hypernet: Hypernet, settings: Settings, generator: Generator) -> TrainingState:
    """The state of a run before its first step."""
    trained = [parameter for parameter in hypernet.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=settings.learning_rate)
    return TrainingState(hypernet, optimiser, generator)


def learning_rate(settings: Settings, step: int) -> float:
    """Warms up over 20 steps and falls with the root of the step from step 60 on: the same however long a run is."""
    return settings.learning_rate * min(1.0, (step + 1) / 20, (60 / (step + 1)) ** 0.5)


def train_step(state: TrainingState, task: Task, retention: Retention, settings: Settings, share: float = 1.0) -> float:
    """One step of Adam on removal + retain_weight * retention. Returns the loss.

    share: of the learning rate, for steps that are to be small ones. Raises `TrainingError` when the loss is no longer
    a number; the weights are then still those of the step before.
    """
    removal = task.loss(state.hypernet, state.generator)
    loss = removal + settings.retain_weight * retention.loss(state.hypernet, settings, state.generator)
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"Train Erasure: the loss is no longer a number at step {state.step + 1}. Lower the learning rate (it is "
            f"{settings.learning_rate:g}) and queue again; the last checkpoint from before is kept."
        )
    for group in state.optimiser.param_groups:
        group["lr"] = share * learning_rate(settings, state.step)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.hypernet.parameters(), _GRADIENT_CLIP)
    state.optimiser.step()
    state.step += 1
    state.losses.append(value)
    return value


def stops_early(
    retention: Sequence[tuple[int, float]], patience: int = 3, rise: float = 1.5, floor: float = 0.1
) -> bool:
    """Whether the retention error was above `rise` times its lowest, and above `floor`, `patience` times in a row."""
    values = [value for _, value in retention]
    if len(values) <= patience:
        return False
    lowest = min(values[:-patience])
    return all(value > max(rise * lowest, floor) for value in values[-patience:])


def train(
    state: TrainingState,
    task: Task,
    retention: Retention,
    settings: Settings,
    callbacks: Sequence[Callable[[TrainingState], None]],
    share: float = 1.0,
) -> str:
    """Train until `settings.steps`, or until the retention error rises.

    Each callback is called after every step and may raise to interrupt. share: see `train_step`. Returns "finished" or
    "early", the reason why training ended.
    """
    while not stops_early(state.retention):  # also before the first step: a resumed run may have ended already
        if state.step >= settings.steps:
            return "finished"
        state.random = state.generator.get_state()
        train_step(state, task, retention, settings, share)
        if state.step % settings.watch_every == 0 or state.step == settings.steps:
            state.retention.append((state.step, retention.error(state.hypernet)))
        state.random = state.generator.get_state()
        for callback in callbacks:
            callback(state)
    return "early"

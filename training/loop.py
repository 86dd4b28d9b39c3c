"""The training loop: one optimiser over removal and retention, with an eye on unseen prompts."""

import math
from dataclasses import dataclass, field

import torch

from ..hypernet.factors import delta_norm
from .attention import jittered
from .losses import retention_loss
from .objectives import OBJECTIVE, TaskBatch, draw_steps


class TrainingError(RuntimeError):
    """Training can't go on; the message says why and what to change."""


@dataclass
class TrainingState:
    """What changes while training, all of it in a checkpoint.

    drift: pairs (step, value). random: the generator as it was before the step under way, so that a
    step broken off in the middle is drawn again when the run resumes.
    """

    hypernet: object
    optimiser: object
    generator: torch.Generator
    step: int = 0
    losses: list = field(default_factory=list)
    drift: list = field(default_factory=list)
    random: torch.Tensor | None = None


@dataclass(frozen=True)
class Material:
    """What training reads: the task cache and the embeddings, all fixed for the run.

    phrase_c: (phrases, width); phrase_conds: `model_conds` a phrase; retain_c, held_out_c: (., width),
    the last never trained on. attention: an `AttentionTask`, in place of cache and phrase_conds for the
    objective that runs no diffusion steps.
    """

    cache: object
    phrase_c: torch.Tensor
    phrase_conds: list
    retain_c: torch.Tensor
    held_out_c: torch.Tensor
    attention: object = None


def new_state(hypernet, settings, generator):
    """The state of a run before its first step."""
    optimiser = torch.optim.Adam(hypernet.parameters(), lr=settings.learning_rate)
    return TrainingState(hypernet, optimiser, generator)


def norms(hypernet, c, chunk=64):
    """Size of the delta that H writes at s = S for each embedding, (p,) on the CPU."""
    with torch.no_grad():
        parts = [delta_norm(hypernet(part, hypernet.config.trajectory)).cpu() for part in c.split(chunk)]
    return torch.cat(parts)


def measure_drift(hypernet, material):
    """How far H leaks to prompts it never trained on: their 95% quantile over the median erased phrasing."""
    benign = torch.quantile(norms(hypernet, material.held_out_c), 0.95)
    return (benign / norms(hypernet, material.phrase_c).median().clamp_min(1e-12)).item()


def _diffusion_loss(state, material, predict, settings, device):
    hypernet, generator = state.hypernet, state.generator
    index = torch.randint(len(material.cache), (settings.batch,), generator=generator)
    step = draw_steps(settings.objective, settings.batch, hypernet.config.trajectory, generator).to(device)
    samples = material.cache.batch(index, device)
    conds = [material.phrase_conds[int(phrase)] for phrase in samples.phrase]
    batch = TaskBatch(material.phrase_c[samples.phrase.to(device)], samples, conds)
    return OBJECTIVE[settings.objective](hypernet, predict, batch, step, settings)


def _losses(state, material, predict, settings, device):
    hypernet, generator = state.hypernet, state.generator
    if material.attention is None:
        removal = _diffusion_loss(state, material, predict, settings, device)
    else:
        removal = material.attention.loss(hypernet, settings, generator)
    chosen = torch.randint(len(material.retain_c), (settings.retain_batch,), generator=generator)
    s = draw_steps("direct", settings.retain_batch, hypernet.config.trajectory, generator).to(device)
    c = jittered(material.retain_c[chosen.to(device)], settings.jitter, generator)
    return removal, retention_loss(hypernet(c, s)).mean()


def learning_rate(settings, step):
    """Warms up over 20 steps and falls with the root of the step from step 60 on: the same however long a run is."""
    return settings.learning_rate * min(1.0, (step + 1) / 20, (60 / (step + 1)) ** 0.5)


def train_step(state, material, predict, settings, device):
    """One step of Adam on removal + retain_weight * retention. Returns the loss as a float.

    Raises `TrainingError` when the loss is no longer a number; the weights are then still those of
    the step before.
    """
    removal, retention = _losses(state, material, predict, settings, device)
    loss = removal + settings.retain_weight * retention
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"Train Erasure: the loss is no longer a number at step {state.step + 1}. Lower the learning rate (it is "
            f"{settings.learning_rate:g}) and queue again; the last checkpoint from before is kept."
        )
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(settings, state.step)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.hypernet.parameters(), settings.gradient_clip)
    state.optimiser.step()
    state.step += 1
    state.losses.append(value)
    return value


def leaking(drift, patience=3, rise=1.5, floor=0.1):
    """Whether drift has been above `rise` times its lowest value, and above `floor`, `patience` times in a row."""
    values = [value for _, value in drift]
    if len(values) <= patience:
        return False
    lowest = min(values[:-patience])
    return all(value > max(rise * lowest, floor) for value in values[-patience:])


def train(state, material, predict, settings, device, on_step):
    """Train until `settings.steps` or until unseen prompts begin to leak.

    on_step(state) is called after every step and may raise to interrupt. Returns "finished" or
    "leak", the reason why it stopped.
    """
    while state.step < settings.steps:
        state.random = state.generator.get_state()
        train_step(state, material, predict, settings, device)
        if state.step % settings.watch_every == 0 or state.step == settings.steps:
            state.drift.append((state.step, measure_drift(state.hypernet, material)))
        state.random = state.generator.get_state()
        on_step(state)
        if leaking(state.drift):
            return "leak"
    return "finished"

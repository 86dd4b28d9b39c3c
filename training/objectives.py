"""The three ways to train H through diffusion steps, each from a batch of samples to one scalar loss.

- ``direct``: minimise the task loss of H(c, s) itself.
- ``paper``: H(c, s + 1) imitates a gradient step from H(c, s), as the paper states it.
- ``released``: both at once, as the authors' code effectively runs: the task loss trains H and the
  matching term smooths it over s.
"""

from dataclasses import dataclass

import torch

from ..hypernet.factors import Factors
from .losses import flatten, matching_loss, steered_target, target_along, task_loss


@dataclass(frozen=True)
class TaskBatch:
    """One batch on the device: c (n, width), the samples of `cache.TaskCache` and their `model_conds`."""

    c: torch.Tensor
    samples: object
    conds: list


def draw_steps(objective, count, trajectory, generator):
    """Trajectory steps s for a batch, (count,) fp32.

    Attention and direct training spend half of their samples at s = S, where the hypernet is used, and the rest
    along the way, so that s stays a dial. Matching needs whole steps below S.
    """
    if objective in ("attention", "direct"):
        s = torch.rand(count, generator=generator) * trajectory
        return torch.where(torch.rand(count, generator=generator) < 0.5, torch.tensor(float(trajectory)), s)
    return torch.randint(0, trajectory, (count,), generator=generator).float()


def _task(predict, batch, layers, target):
    samples = batch.samples
    return task_loss(predict(samples.z, samples.sigma, batch.conds, layers), target)


def direct(hypernet, predict, batch, step, settings):
    """L_task(H(c, s)) against the target along the trajectory; mean over the batch."""
    samples, g = batch.samples, step / hypernet.config.trajectory
    target = target_along(samples.e_p, steered_target(samples.e_p, samples.e_m, settings.gamma), g)
    return _task(predict, batch, hypernet(batch.c, step), target).mean()


def _matching(hypernet, predict, batch, step, settings, layers):
    """The matching term, and the task loss whose gradient on the factors it imitates."""
    target = steered_target(batch.samples.e_p, batch.samples.e_m, settings.gamma)
    leaves = [Factors(f.A.detach().requires_grad_(), f.B.detach().requires_grad_()) for f in layers]
    # Samples share no factors, so the gradient of the summed loss holds each sample's own.
    task = _task(predict, batch, leaves, target)
    flat = torch.autograd.grad(task.sum(), [tensor for factors in leaves for tensor in factors])
    gradient = torch.cat([part.flatten(1) for part in flat], dim=1)
    following = flatten(hypernet(batch.c, step + 1))
    return matching_loss(following, flatten(layers), gradient, settings.eta).mean()


def paper(hypernet, predict, batch, step, settings):
    """Matching alone: || H(c, s+1) - H(c, s) + eta grad L_task ||^2, mean over the batch."""
    with torch.no_grad():
        layers = hypernet(batch.c, step)
    return _matching(hypernet, predict, batch, step, settings, layers)


def released(hypernet, predict, batch, step, settings):
    """Task loss at s plus the matching term."""
    layers = hypernet(batch.c, step)
    target = steered_target(batch.samples.e_p, batch.samples.e_m, settings.gamma)
    task = _task(predict, batch, layers, target).mean()
    return task + _matching(hypernet, predict, batch, step, settings, layers)


OBJECTIVE = {"direct": direct, "paper": paper, "released": released}

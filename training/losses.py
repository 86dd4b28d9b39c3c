"""The equations of UnHype's training (arXiv 2602.03410, section 3), as pure functions.

e_p and e_m are the frozen model's predictions at one noisy latent for the erased and for the mapping
prompt, (n, ...); g = s / S is the place on the trajectory, (n,); factors are as H generates them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..hypernet.factors import Factors, squared_norm


def steered_target(e_p: Tensor, e_m: Tensor, gamma: float) -> Tensor:
    """e* = e_m - gamma (e_p - e_m): the mapping's prediction, pushed away from the erased one's."""
    return e_m - gamma * (e_p - e_m)


def target_along(e_p: Tensor, e_star: Tensor, g: Tensor) -> Tensor:
    """e_p + g (e* - e_p): the target at place g, so that s dials the erasure."""
    return e_p + g.view(-1, *[1] * (e_p.dim() - 1)) * (e_star - e_p)


def task_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, (n,)."""
    return (prediction.float() - target).square().flatten(1).mean(1)


def matching_loss(theta_next: Tensor, theta: Tensor, gradient: Tensor, eta: float) -> Tensor:
    """|| H(c, s+1) - (H(c, s) - eta * grad L_task) ||^2 of each sample, (n,).

    theta_next, theta and gradient are flat factors (n, m). The target side is held fixed: the step
    of plain gradient descent on the factors is the target of H.
    """
    return (theta_next - (theta - eta * gradient).detach()).square().sum(1)


def retention_loss(layers: Sequence[Factors]) -> Tensor:
    """|| B A ||_F^2 / out, the mean over layers, (p,): for prompts that must keep their pictures.

    For inputs of unit variance this is the mean squared change of a target layer's output. H(c, 0)
    being no change at all, it is the distance ||H(c_r, s) - H(c_r, 0)||^2 measured on the function.
    """
    return torch.stack([squared_norm(factors) / factors.B.shape[1] for factors in layers]).mean(0)


def flatten(layers: Sequence[Factors]) -> Tensor:
    """All factors of each prompt as one vector: list of `Factors` to (p, m)."""
    return torch.cat([tensor.flatten(1) for factors in layers for tensor in factors], dim=1)

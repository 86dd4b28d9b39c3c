"""What the lab's SD models learn: the noise in a picture, at a level drawn from the schedule."""

import math
from typing import Any

import torch
from torch import Tensor

from .attention import attention_with_gradients


def initialise(network: torch.nn.Module) -> None:
    """ComfyUI's layers are uninitialised memory; give them what the SD UNet was trained from."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            norm = "norm" in name or name.endswith(("in_layers.0.weight", "out_layers.0.weight", "out.0.weight"))
            torch.nn.init.constant_(parameter, 1.0 if norm and name.endswith("weight") else 0.0)
        elif name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def loss_weight(sigma: Tensor) -> Tensor:
    """How much an error of the noise counts, (n,), mean about one over the schedule.

    Little where the noise is too weak to hide anything (as in min-SNR, arXiv 2303.09556), more where
    the same error in the noise means a larger one in the picture.
    """
    return (5 * sigma**2).clamp(max=1) * (1 + sigma**2).clamp(max=4) / 2.77


def levels(sigmas: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Places (count,) in the schedule, as often as `loss_weight` counts them and spread evenly over a batch.

    The mean loss is the one with weights on evenly drawn levels; its gradient varies less.
    """
    share = loss_weight(sigmas).cumsum(0)
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.searchsorted(share / share[-1], even).clamp(max=len(sigmas) - 1)


def loss_of(base: Any, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Error of the noise at levels drawn by their weight, for latents and contexts of one length."""
    z, context = batch
    sigmas = base.model_sampling.sigmas
    t = levels(sigmas, len(z), generator)
    sigma = sigmas[t].view(-1, 1, 1, 1)
    noise = torch.randn(z.shape, generator=generator)
    with torch.amp.autocast("cpu", torch.bfloat16):
        out = base.diffusion_model(
            (z + sigma * noise) / (sigma**2 + 1) ** 0.5,
            t.float(),
            context=context,
            transformer_options={"optimized_attention_override": attention_with_gradients},
        )
    return (out.float() - noise).square().mean()

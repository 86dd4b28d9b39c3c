"""What the lab's small Flux learns: flow matching, the velocity noise - x0 at z = (1 - sigma) x0 + sigma noise."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from torch import Tensor


def initialise(network: torch.nn.Module) -> None:
    """ComfyUI's layers are uninitialised memory; blocks start as the identity, as in adaLN-zero (arXiv 2212.09748)."""
    for name, parameter in network.named_parameters():
        if "_norm" in name or ".norm." in name:
            torch.nn.init.ones_(parameter)
        elif parameter.dim() == 1 or "mod" in name or name.startswith("final_layer"):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.xavier_uniform_(parameter)


def loss_of(
    network: torch.nn.Module, z0: Tensor, context: Tensor, pooled: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity at noise levels drawn from a logit-normal (arXiv 2403.03206)."""
    sigma = torch.randn(len(z0), generator=generator).sigmoid()
    noise = torch.randn(z0.shape, generator=generator)
    level = sigma.view(-1, 1, 1, 1)
    z = (1 - level) * z0 + level * noise
    with torch.amp.autocast("cpu", torch.bfloat16):
        velocity = network(z, sigma, context=context, y=pooled, transformer_options={})
    return (velocity.float() - (noise - z0)).square().mean()


@contextmanager
def trainable() -> Iterator[None]:
    """While open, gradients go through Flux: its blocks write into tensors that backward still needs, and newer
    hosts swap in operations without gradients."""
    comfy.model_management.in_training = True
    try:
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            yield
    finally:
        comfy.model_management.in_training = False

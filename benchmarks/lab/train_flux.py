"""Train the lab's small Flux: `python dev.py lab flux --folder DIR`. About an hour and a half on a CPU.

Flow matching on the pictures and captions of the SD base: the network gives the velocity noise - x0 at
z = (1 - sigma) x0 + sigma noise.
"""

import copy
import logging
import math
import time
from contextlib import contextmanager
from datetime import date

import comfy.model_management
import torch

from .. import commandline
from . import data, flux, storage, text
from .batches import Batches
from .vocabulary import CLASSES

log = logging.getLogger(__name__)

# A transformer learns a picture later than a UNet does: one drawing of each thing, and mostly the ten classes
# that erasure is scored on.
_SETS = ("twemoji",)
_WEIGHTS = {**dict.fromkeys(CLASSES, 60.0), "tree": 30.0}
_SAVE_EVERY = 250


def initialise(network):
    """ComfyUI's layers are uninitialised memory; blocks start as the identity, as in adaLN-zero (arXiv 2212.09748)."""
    for name, parameter in network.named_parameters():
        if "_norm" in name or ".norm." in name:
            torch.nn.init.ones_(parameter)
        elif parameter.dim() == 1 or "mod" in name or name.startswith("final_layer"):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.xavier_uniform_(parameter)


def loss_of(network, z0, context, pooled, generator):
    """Mean squared error of the velocity at noise levels drawn from a logit-normal (arXiv 2403.03206)."""
    sigma = torch.randn(len(z0), generator=generator).sigmoid().to(z0)
    noise = torch.randn(z0.shape, generator=generator).to(z0)
    level = sigma.view(-1, 1, 1, 1)
    z = (1 - level) * z0 + level * noise
    velocity = network(z, sigma, context=context, y=pooled, transformer_options={})
    return (velocity.float() - (noise - z0)).square().mean()


@contextmanager
def trainable():
    """While open, gradients go through Flux: its blocks write into tensors that backward still needs, and newer
    hosts swap in operations without gradients."""
    comfy.model_management.in_training = True
    try:
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            yield
    finally:
        comfy.model_management.in_training = False


def train(folder, steps, batch, seed, rate=1e-3):
    """Train for `steps` from nothing and store the weights' running mean."""
    torch.set_flush_denormal(True)  # vanishing numbers are no information and slow a CPU down several times
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    batches = Batches(folder, text.load_clip(), generator, _SETS, _WEIGHTS, text.FLUX_TOKENS)
    device = comfy.model_management.get_torch_device()
    network = flux.build(device).diffusion_model.requires_grad_(True).train()
    initialise(network)
    mean = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    started, running = time.monotonic(), None
    with trainable():
        for step in range(1, steps + 1):
            fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1, step / 200) * fall
            z0, context = (tensor.to(device) for tensor in batches.draw(batch))
            with torch.amp.autocast(device.type, dtype=torch.bfloat16):
                loss = loss_of(network, z0, context, text.pooled(context), generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            with torch.no_grad():
                keep = min(0.998, (step + 1) / (step + 20))
                for old, new in zip(mean.parameters(), network.parameters(), strict=True):
                    old.lerp_(new, 1 - keep)
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            if step % 100 == 0:
                log.info("step %d of %d, loss %.4f, %.0f s", step, steps, running, time.monotonic() - started)
            if step % _SAVE_EVERY == 0 or step == steps:
                metadata = {
                    "steps": step,
                    "batch": batch,
                    "seed": seed,
                    "date": date.today(),
                    "licence": data.ATTRIBUTION,
                }
                storage.save(mean.state_dict(), flux.PATH, metadata)


def main(arguments=None):
    """Command line."""
    options = commandline.parser("lab flux").parse_args(arguments)
    train(options.folder, options.steps, options.batch, options.seed)

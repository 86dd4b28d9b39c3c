"""Train the lab's models: `python3 dev.py lab base --family clip --minutes 120`.

A run goes on from the last one's checkpoint in the cache folder, without one from the weights in the repository.
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sd
import torch
from torch import Tensor

from .. import commandline
from ..environment import cache_folder
from . import clip, data, flux, flux_text, model, storage, text, train_flux, warm_start
from .batches import Batches, CaptionBatches, FluxBatches
from .warm_start import with_gradients

log = logging.getLogger(__name__)

_RATE, _SAVE_SECONDS, _LOG_STEPS = 3e-4, 240, 20


def initialise(network):
    """ComfyUI's layers are uninitialised memory; give them what the SD UNet was trained from."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            norm = "norm" in name or name.endswith(("in_layers.0.weight", "out_layers.0.weight", "out.0.weight"))
            torch.nn.init.constant_(parameter, 1.0 if norm and name.endswith("weight") else 0.0)
        elif name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def loss_weight(sigma):
    """How much an error of the noise counts, (n,), mean about one over the schedule.

    Little where the noise is too weak to hide anything (as in min-SNR, arXiv 2303.09556), more where
    the same error in the noise means a larger one in the picture.
    """
    return (5 * sigma**2).clamp(max=1) * (1 + sigma**2).clamp(max=4) / 2.77


def loss_of(base: Any, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Weighted error of the noise at levels drawn from the schedule, for latents and contexts of one length."""
    z, context = batch
    sigmas = base.model_sampling.sigmas
    t = torch.randint(len(sigmas), (len(z),), generator=generator)
    sigma = sigmas[t].view(-1, 1, 1, 1)
    noise = torch.randn(z.shape, generator=generator)
    with torch.amp.autocast("cpu", torch.bfloat16):
        out = base.diffusion_model(
            (z + sigma * noise) / (sigma**2 + 1) ** 0.5,
            t.float(),
            context=context,
            transformer_options={"optimized_attention_override": with_gradients},
        )
    return (loss_weight(sigma.flatten()) * (out.float() - noise).square().flatten(1).mean(1)).mean()


def from_minilm(base: Any, encoder: comfy.sd.CLIP, batches: CaptionBatches) -> None:
    """Begin the SD model for CLIP from the one for MiniLM."""
    to_old = warm_start.to_minilm(encoder, list(batches.bank.kept))
    base.diffusion_model.load_state_dict(warm_start.carried_over(storage.load(model.BASE), to_old))
    old = model.load_model(model.BASE).model.diffusion_model
    warm_start.distil(base.diffusion_model, old, base.model_sampling.sigmas, batches, warm_start.STEPS)


def flux_from_minilm(base: Any, _encoder: comfy.sd.CLIP, batches: FluxBatches) -> None:
    """Begin the Flux for both encoders from the one that takes its pooled vector from MiniLM as well."""
    old = flux.load_model().model.diffusion_model.state_dict()
    name = "vector_in.in_layer.weight"
    base.diffusion_model.load_state_dict({**old, name: old[name] @ warm_start.pooled_map(list(batches.bank.kept))})


def flux_loss(base: Any, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Error of the velocity."""
    with torch.amp.autocast("cpu", torch.bfloat16):
        return train_flux.loss_of(base.diffusion_model, *batch, generator)


class Family(NamedTuple):
    """What one of the lab's models is made of and learns from.

    weights: where they lie in the repository; build: the model with random weights; batches: of a folder of emoji
    packages; first: fills a model without weights; loss: of a model and a batch; trainable: open while it learns.
    """

    weights: Path
    build: Callable[[], Any]
    load_clip: Callable[[], comfy.sd.CLIP]
    batches: Callable[[Path, comfy.sd.CLIP, torch.Generator], Any]
    first: Callable[[Any, comfy.sd.CLIP, Any], None]
    loss: Callable[[Any, Any, torch.Generator], Tensor] = loss_of
    trainable: Callable[[], AbstractContextManager[None]] = nullcontext


FAMILIES = {
    "sd15": Family(
        model.BASE,
        model.build,
        text.load_clip,
        Batches,
        lambda base, _encoder, _batches: initialise(base.diffusion_model),
    ),
    "clip": Family(
        model.BASE_CLIP, partial(model.build, context_width=clip.WIDTH), clip.load_clip, CaptionBatches, from_minilm
    ),
    "flux": Family(
        flux.PAIR,
        partial(flux.build, vector_width=clip.WIDTH),
        flux_text.load_clip,
        FluxBatches,
        flux_from_minilm,
        flux_loss,
        train_flux.trainable,
    ),
}


class Run:
    """Network, running mean and optimiser of a training, kept in one file."""

    def __init__(self, name: str, folder: Path, seed: int):
        torch.manual_seed(seed)
        self.path = folder / f"base_{name}.pt"
        self.family = FAMILIES[name]
        saved = torch.load(self.path, weights_only=True) if self.path.exists() else None
        # Another run must not see the captions of the last one again.
        self.steps = saved["steps"] if saved else 0
        self.generator = torch.Generator().manual_seed(seed + self.steps)
        encoder = self.family.load_clip()
        self.batches = self.family.batches(folder, encoder, self.generator)
        self.base = self.family.build()
        self.network = self.base.diffusion_model.requires_grad_(True).train()
        if not saved and self.family.weights.exists():
            self.network.load_state_dict(storage.load(self.family.weights))
            self.steps = storage.steps(self.family.weights)
        elif not saved:
            self.family.first(self.base, encoder, self.batches)
        self.mean = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=0.01)
        if saved:
            for part in ("network", "mean", "optimiser"):
                getattr(self, part).load_state_dict(saved[part])

    def save(self, metadata: dict[str, Any]) -> None:
        """The checkpoint, and the running mean as the lab's weights."""
        state = {part: getattr(self, part).state_dict() for part in ("network", "mean", "optimiser")}
        part = self.path.with_suffix(".part")
        torch.save(state | {"steps": self.steps}, part)
        part.replace(self.path)
        self.family.weights.parent.mkdir(exist_ok=True)
        facts = {"steps": self.steps, "date": date.today(), "licence": data.ATTRIBUTION, **metadata}
        storage.save(self.mean.state_dict(), self.family.weights, facts)

    def step(self, size: int, rate: float, keep: float) -> float:
        """One update; returns the loss. keep: what the running mean keeps of itself."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        with self.family.trainable():
            loss = self.family.loss(self.base, self.batches.draw(size), self.generator)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.steps += 1
        with torch.no_grad():
            for old, new in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
        return loss.item()


def train(name: str, folder: Path, minutes: float, batch: int, seed: int) -> None:
    """Train one of `FAMILIES` for so many minutes, the rate falling to nothing at their end."""
    torch.set_flush_denormal(True)  # vanishing numbers are no information and slow a CPU down several times
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(name, folder, seed)
    log.info("begins at step %d", run.steps)
    facts = {"batch": batch, "seed": seed}
    started = last = time.monotonic()
    number, running, done = 0, None, 0.0
    while done < 1:  # on the slowest machine, one step at least
        number += 1
        rate = _RATE * min(1, number / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        loss = run.step(batch, rate, min(0.998, (number + 1) / (number + 20)))
        running = loss if running is None else 0.98 * running + 0.02 * loss
        if number % _LOG_STEPS == 0:
            log.info("step %d, %.0f%%, loss %.4f", run.steps, 100 * done, running)
        if time.monotonic() - last > _SAVE_SECONDS:
            last = time.monotonic()
            run.save({**facts, "unfinished": f"{done:.0%}"})
        done = (time.monotonic() - started) / 60 / minutes
    run.save(facts)


def main(arguments=None):
    """Command line."""
    options = commandline.parser("lab base").parse_args(arguments)
    folder = options.folder or cache_folder() / "lab"
    train(options.family, folder, options.minutes, options.batch, options.seed)

"""Train the lab's models: `python3 dev.py lab base --family clip --minutes 120`.

A run goes on from the last one's checkpoint in the cache folder, without one from the weights in the repository.
"""

import copy
import logging
import math
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from .. import commandline
from ..environment import cache_folder
from . import data, storage
from .families import FAMILIES

log = logging.getLogger(__name__)

_SAVE_SECONDS, _LOG_STEPS = 240, 20


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
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=self.family.rate, betas=(0.9, 0.99), weight_decay=0.01
        )
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
        rate = run.family.rate * min(1, number / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
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

"""The settings of a training run; the defaults are the ones measured on the lab model."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

OBJECTIVES = ("attention", "direct", "paper", "released")
_LENGTH = ("steps", "watch_every", "checkpointing")


@dataclass(frozen=True)
class Settings:
    """Everything besides prompts and model that decides the result of a run.

    steps: after the closed form for the objective attention; the others, which have none, need some two hundred.
    basis, hidden: sizes of H for those others.
    gamma: push away from the erased prediction; 1 in the paper, and pictures then look burnt at a high CFG.
    eta: step of the matching objective on the mean squared error (times the output's elements it is the eta
    of a summed loss, 100 to 1000 works).
    rollouts: sampler runs that make noisy latents, `pictures` at a time; kept_steps: latents of each run
    that are used. batch counts (concept, timestep, step s) samples of the objectives that run diffusion
    steps, attention_batch (wording, step s) samples of the one that doesn't, half of them plain wordings.
    jitter: noise on c in training, as a share of its spread. sentences: prompts that name an erased
    concept among other things, shared out among the concepts.
    """

    steps: int = 20
    seed: int = 0
    kind: str = "object"
    objective: str = "attention"
    rank: int = 4
    basis: int = 16
    hidden: int = 64
    learning_rate: float = 4e-3
    batch: int = 16
    attention_batch: int = 48
    retain_batch: int = 32
    jitter: float = 0.1
    sentences: int = 240
    retain_weight: float = 1.0
    gamma: float = 0.0
    eta: float = 300.0
    guidance: float = 7.0
    sampler_steps: int = 20
    width: int = 512
    height: int = 512
    rollouts: int = 16
    pictures: int = 4
    kept_steps: int = 6
    checkpointing: bool = True
    watch_every: int = 10

    def basis_of(self, concepts: int) -> int:
        """The basis that so many concepts need at once, as far as the file's size allows."""
        return min(concepts * self.rank, max(8 * self.basis, self.rank))

    def recipe(self, *parts: Any) -> str:
        """A hash of `parts` (JSON values) and of all settings that shape a single step.

        Runs of equal recipes go through the same weights, however long they are and however often
        they are watched.
        """
        shaping = {name: value for name, value in asdict(self).items() if name not in _LENGTH}
        text = json.dumps([shaping, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

"""The samples of the diffusion tasks: noisy latents with the frozen model's predictions, made once.

The released code pays a whole sampler run for every training step. Here each run gives several latents, and
each latent is used many times with other wordings and other steps s.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from ...hypernet.factors import Factors
from ..batch_split import WHOLE, Split
from ..encode import EncodedPrompt
from ..losses import steered_target, task_loss
from ..prompts import Phrase
from ..settings import Settings

if TYPE_CHECKING:
    from ..frozen import FrozenModel


@dataclass(frozen=True)
class Batch:
    """n samples on the device that computes.

    c: (n, width) embeddings of the erased prompts; z: (n, channels, h, w) noisy latents; sigma: (n,) their
    noise levels; e_p, e_m: the frozen predictions for the erased and for the mapping prompt, of the shape of
    z; conds: the frozen model's `model_conds` of each erased prompt.
    """

    c: Tensor
    z: Tensor
    sigma: Tensor
    e_p: Tensor
    e_m: Tensor
    conds: list[dict[str, Any]]

    def target(self, gamma: float) -> Tensor:
        """e* = e_m - gamma (e_p - e_m), of the shape of z."""
        return steered_target(self.e_p, self.e_m, gamma)


@dataclass(frozen=True)
class DiffusionSamples:
    """All samples of a run, n of them, z, e_p and e_m (n, channels, h, w) on the CPU.

    phrase: (n,) long, the wording of each sample. c: (wordings, width) on the device that computes. conds:
    `model_conds` of each wording. frozen: the model that predicts. split: the rows of a batch to compute.
    """

    frozen: "FrozenModel"
    phrase: Tensor
    z: Tensor
    sigma: Tensor
    e_p: Tensor
    e_m: Tensor
    c: Tensor
    conds: list[dict[str, Any]]
    split: Split

    def batch(self, count: int, generator: Generator) -> Batch:
        """This process's rows of `count` samples, drawn with replacement."""
        index = self.split.rows(torch.randint(len(self.phrase), (count,), generator=generator))
        phrase, device = self.phrase[index], self.frozen.device
        z, sigma, e_p, e_m = (tensor[index].to(device) for tensor in (self.z, self.sigma, self.e_p, self.e_m))
        return Batch(self.c[phrase.to(device)], z, sigma, e_p, e_m, [self.conds[int(number)] for number in phrase])

    def task_loss(self, batch: Batch, layers: list[Factors], target: Tensor) -> Tensor:
        """L_task of each sample with the factors `layers`, (n,)."""
        return task_loss(self.frozen.predict(batch.z, batch.sigma, batch.conds, layers), target)


def diffusion_samples(
    frozen: "FrozenModel",
    phrases: Sequence[Phrase],
    c: Tensor,
    encoded: Mapping[str, EncodedPrompt],
    settings: Settings,
    generator: Generator,
    on_progress: Callable[[int, int], None],
    split: Split = WHOLE,
) -> DiffusionSamples:
    """Run the sampler on the erased prompts and predict for the latents on its way.

    phrases: the wordings, with c (wordings, width); encoded: text to `EncodedPrompt`; on_progress is called
    with (done, total) after each sampler run. split: see `DiffusionSamples`.
    """
    probe = frozen.noise(1, settings.height, settings.width, Generator().manual_seed(0))
    texts = {text for phrase in phrases for text in (phrase.prompt, phrase.mapping)}
    conds = {text: frozen.model_conds(encoded[text], probe, settings.guidance) for text in sorted(texts)}
    phrase, z, sigma = _noisy_latents(frozen, phrases, encoded, settings, generator, on_progress)
    e_p, e_m = [], []
    with torch.no_grad():
        for part in torch.arange(len(phrase)).split(settings.batch):
            rows = [phrases[int(index)] for index in phrase[part]]
            inputs = z[part].to(frozen.device), sigma[part].to(frozen.device)
            e_p.append(frozen.predict(*inputs, [conds[row.prompt] for row in rows]).cpu())
            e_m.append(frozen.predict(*inputs, [conds[row.mapping] for row in rows]).cpu())
    erased_conds = [conds[phrase.prompt] for phrase in phrases]
    return DiffusionSamples(frozen, phrase, z, sigma, torch.cat(e_p), torch.cat(e_m), c, erased_conds, split)


def _noisy_latents(
    frozen: "FrozenModel",
    phrases: Sequence[Phrase],
    encoded: Mapping[str, EncodedPrompt],
    settings: Settings,
    generator: Generator,
    on_progress: Callable[[int, int], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of sampler runs as (phrase index (n,), z (n, ...), sigma (n,)).

    Each latent is paired with a random wording of its concept: a noisy cat is one under any name.
    """
    by_concept: dict[int, list[int]] = {}
    for index, phrase in enumerate(phrases):
        by_concept.setdefault(phrase.concept, []).append(index)
    concepts = sorted(by_concept)
    runs = max(settings.rollouts, 2 * len(concepts))
    chosen, latents, sigmas = [], [], []
    for run in range(runs):
        wordings = by_concept[concepts[run % len(concepts)]]
        prompt = encoded[phrases[_pick(wordings, generator)].prompt]
        noise = frozen.noise(settings.pictures, settings.height, settings.width, generator)
        keep = torch.randperm(settings.sampler_steps, generator=generator)[: settings.kept_steps].tolist()
        for z, sigma in frozen.rollout(
            prompt, encoded[""], noise, settings.sampler_steps, settings.guidance, set(keep)
        ):
            latents.append(z)
            sigmas += [sigma] * len(z)
            chosen += [_pick(wordings, generator) for _ in z]
        on_progress(run + 1, runs)
    return torch.tensor(chosen), torch.cat(latents), torch.tensor(sigmas)


def _pick(options: list[int], generator: Generator) -> int:
    return options[int(torch.randint(len(options), (1,), generator=generator))]

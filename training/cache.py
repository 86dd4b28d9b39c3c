"""What the frozen model says, made once: noisy latents and its predictions for both prompts.

The released code pays a whole sampler run for every training step. Here each run gives several
latents, and each latent is used many times with other wordings and other steps s.
"""

from dataclasses import dataclass

import torch

from .prompts import Phrase


@dataclass(frozen=True)
class TaskCache:
    """n samples of the task: z_t with the frozen predictions e_p and e_m, (n, channels, h, w) on the CPU.

    phrase: (n,) long, which wording a sample uses. sigma: (n,) noise level of z.
    """

    phrase: torch.Tensor
    z: torch.Tensor
    sigma: torch.Tensor
    e_p: torch.Tensor
    e_m: torch.Tensor

    def __len__(self):
        return self.phrase.shape[0]

    def batch(self, index, device):
        """The samples `index` (long) as another TaskCache whose tensors are on `device`."""
        return TaskCache(self.phrase[index], *(t[index].to(device) for t in (self.z, self.sigma, self.e_p, self.e_m)))


def noisy_latents(frozen, phrases, encoded, settings, generator, on_progress):
    """Run the sampler on the prompts to erase. Returns (phrase index (n,), z (n, ...), sigma (n,)).

    Each noted latent is paired with a random wording of its concept: a noisy cat is one under any name.
    """
    by_concept = {}
    for index, phrase in enumerate(phrases):
        by_concept.setdefault(phrase.concept, []).append(index)
    concepts = sorted(by_concept)
    runs = max(settings.rollouts, 2 * len(concepts))
    chosen, latents, sigmas = [], [], []
    for run in range(runs):
        own = by_concept[concepts[run % len(concepts)]]
        prompt = encoded[phrases[_pick(own, generator)].prompt]
        noise = frozen.noise(settings.pictures, settings.height, settings.width, generator)
        keep = torch.randperm(settings.sampler_steps, generator=generator)[: settings.kept_steps].tolist()
        for z, sigma in frozen.rollout(
            prompt, encoded[""], noise, settings.sampler_steps, settings.guidance, set(keep)
        ):
            latents.append(z)
            sigmas += [sigma] * len(z)
            chosen += [_pick(own, generator) for _ in z]
        on_progress(run + 1, runs)
    return torch.tensor(chosen), torch.cat(latents), torch.tensor(sigmas)


def _pick(options, generator):
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def build_cache(frozen, phrases: list[Phrase], encoded, conds, settings, generator, on_progress):
    """Make the `TaskCache` of a run.

    encoded: text to `EncodedPrompt`; conds: text to the frozen model's `model_conds`; on_progress is
    called with (done, total) after each sampler run.
    """
    phrase, z, sigma = noisy_latents(frozen, phrases, encoded, settings, generator, on_progress)
    e_p, e_m = [], []
    with torch.no_grad():
        for part in torch.arange(len(phrase)).split(settings.batch):
            rows = [phrases[int(index)] for index in phrase[part]]
            inputs = z[part].to(frozen.device), sigma[part].to(frozen.device)
            e_p.append(frozen.predict(*inputs, [conds[row.prompt] for row in rows]).cpu())
            e_m.append(frozen.predict(*inputs, [conds[row.mapping] for row in rows]).cpu())
    return TaskCache(phrase, z, sigma, torch.cat(e_p), torch.cat(e_m))

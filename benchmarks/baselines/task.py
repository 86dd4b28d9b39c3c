"""The task that the trained methods share with ours: frozen model, latents, predictions, one LoRA a run."""

from dataclasses import dataclass

import torch

from unhype.hypernet.factors import Factors
from unhype.training.frozen import FrozenModel
from unhype.training.losses import steered_target, task_loss
from unhype.training.prompts import phrasings
from unhype.training.tasks.samples import TaskCache, build_cache

from .states import encode_prompts


@dataclass(frozen=True)
class Task:
    """frozen: a private copy of the model; conds: text to `model_conds`, of all phrases; cache: what it predicts."""

    frozen: FrozenModel
    phrases: list
    conds: dict
    cache: TaskCache

    def conds_of(self, samples):
        """The `model_conds` of the erased prompts of a batch, one a row."""
        return [self.conds[self.phrases[int(phrase)].prompt] for phrase in samples.phrase]


def make_task(lab, concepts, seed, settings):
    """Phrasings, latents and frozen predictions as our own training makes them from the same seed."""
    phrases = phrasings(concepts, settings.kind)
    texts = {"", *(text for phrase in phrases for text in (phrase.prompt, phrase.mapping))}
    encoded = encode_prompts(lab.clip, sorted(texts))
    frozen = FrozenModel(lab.patcher, settings.checkpointing)
    probe = frozen.noise(1, settings.height, settings.width, torch.Generator().manual_seed(0))
    conds = {text: frozen.model_conds(prompt, probe) for text, prompt in encoded.items()}
    generator = torch.Generator().manual_seed(seed)
    cache = build_cache(frozen, phrases, encoded, conds, settings, generator, lambda done, total: None)
    frozen.load()
    return Task(frozen, phrases, conds, cache)


def new_lora(layers, rank, generator, device):
    """One LoRA that changes nothing yet: `Factors` a layer, A (1, rank, in) random, B (1, out, rank) zero."""
    return [
        Factors(
            (torch.randn(1, rank, layer.inputs, generator=generator) / layer.inputs**0.5).to(device).requires_grad_(),
            torch.zeros(1, layer.outputs, rank, device=device, requires_grad=True),
        )
        for layer in layers
    ]


def for_rows(lora, count):
    """The same LoRA for each of `count` rows."""
    return [Factors(A.expand(count, -1, -1), B.expand(count, -1, -1)) for A, B in lora]


def deltas_of(layers, lora):
    """Layer name to B A, (out, in)."""
    return {
        layer.name: (factors.B[0] @ factors.A[0]).detach().cpu() for layer, factors in zip(layers, lora, strict=True)
    }


def train_lora(task, rank, learning_rate, strength, keeping, seed, settings):
    """One LoRA of `rank`, trained towards e* = e_m - strength (e_p - e_m) for `settings.steps` of Adam.

    keeping(lora, generator): a further scalar loss, by which a method keeps other prompts; its draws come from the
    generator after those of the step's samples.
    """
    generator, frozen = torch.Generator().manual_seed(seed + 1), task.frozen
    lora = new_lora(frozen.layers, rank, generator, frozen.device)
    optimiser = torch.optim.Adam([tensor for factors in lora for tensor in factors], lr=learning_rate)
    for _ in range(settings.steps):
        samples = draw(task.cache, settings, generator, frozen.device)
        target = steered_target(samples.e_p, samples.e_m, strength)
        prediction = frozen.predict(samples.z, samples.sigma, task.conds_of(samples), for_rows(lora, len(samples)))
        loss = task_loss(prediction, target).mean() + keeping(lora, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return lora


def draw(cache, settings, generator, device):
    """A random batch of the cache on the device."""
    return cache.batch(torch.randint(len(cache), (settings.batch,), generator=generator), device)

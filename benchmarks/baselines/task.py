"""The task that the trained methods share with ours: frozen model, latents, predictions, one LoRA a run."""

from dataclasses import dataclass

import torch

from unhype.hypernet.factors import Factors
from unhype.training.frozen import FrozenModel
from unhype.training.prompts import phrasings
from unhype.training.tasks.samples import DiffusionSamples, diffusion_samples

from .states import encode_prompts


@dataclass(frozen=True)
class Task:
    """frozen: a private copy of the model; phrases: of the concepts; samples: noisy latents with its predictions."""

    frozen: FrozenModel
    phrases: list
    samples: DiffusionSamples


def make_task(lab, concepts, seed, settings):
    """Phrasings, latents and frozen predictions as our own training makes them from the same seed."""
    phrases = phrasings(concepts, settings.kind)
    texts = {"", *(text for phrase in phrases for text in (phrase.prompt, phrase.mapping))}
    encoded = encode_prompts(lab.clip, sorted(texts))
    frozen = FrozenModel(lab.patcher, settings.checkpointing)
    c = torch.stack([encoded[phrase.prompt].c for phrase in phrases]).to(frozen.device)
    generator = torch.Generator().manual_seed(seed)
    samples = diffusion_samples(frozen, phrases, c, encoded, settings, generator, lambda *_: None)
    frozen.load()
    return Task(frozen, phrases, samples)


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


def train_lora(task, rank, learning_rate, strength, retention, seed, settings):
    """One LoRA of `rank`, trained towards e* = e_m - strength (e_p - e_m) for `settings.steps` of Adam.

    retention(lora, generator): a further scalar loss, by which a method keeps other prompts; its draws come from
    the generator after those of the step's samples.
    """
    generator, frozen = torch.Generator().manual_seed(seed + 1), task.frozen
    lora = new_lora(frozen.layers, rank, generator, frozen.device)
    optimiser = torch.optim.Adam([tensor for factors in lora for tensor in factors], lr=learning_rate)
    for _ in range(settings.steps):
        batch = task.samples.batch(settings.batch, generator)
        removal = task.samples.task_loss(batch, for_rows(lora, settings.batch), batch.target(strength)).mean()
        loss = removal + retention(lora, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return lora

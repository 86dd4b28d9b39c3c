"""SPM: a gated rank-1 adapter a concept (Lyu et al. 2024, arXiv 2312.16145).

Each adapter is trained by itself towards e* = e_m - eta (e_p - e_m), with latent anchoring: at the same latents its
predictions on retain prompts, drawn the more often the less they resemble the concept, stay those of the frozen
model. While sampling, adapter k is scaled by how much the prompt resembles its concept (facilitated transport).
The paper takes the larger of the embeddings' cosine and the share of common tokens; a CONDITIONING has no tokens,
so here it is the cosine of mean token states over its median for the concept's own phrasings, between 0 and 1.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import cosine_similarity

from unhype.training.losses import task_loss

from .erased_model import ErasedModel, edited, unchanged
from .states import encode_prompts, tokens_of
from .task import deltas_of, for_rows, make_task, train_lora

RANK, LEARNING_RATE = 1, 1e-2
ETA, ANCHOR_WEIGHT, ANCHORS, SHARPNESS = 1.0, 1.0, 8, 1.0


@dataclass(frozen=True)
class Adapter:
    """deltas: layer name to (out, in); mean: the mean token state (width,) of its concept; own: the full cosine."""

    deltas: dict
    mean: torch.Tensor
    own: float


def strength(mean, adapter):
    """The scale of an adapter in [0, 1] for a prompt with this mean token state (width,)."""
    return (cosine_similarity(mean, adapter.mean, dim=0) / adapter.own).clamp(0, 1).item()


def patched(patcher, adapters, conditioning):
    """A clone of `patcher` with every adapter at its strength for this CONDITIONING."""
    mean, clone = tokens_of(conditioning).mean(0), patcher
    for adapter in adapters:
        clone = edited(clone, adapter.deltas, strength(mean, adapter))
    return clone


def anchor_weights(means, mean):
    """How often each anchor is drawn: (1 - cosine) ** sharpness of mean token states (n, width) to the concept's."""
    return (1 - cosine_similarity(means, mean.unsqueeze(0))).clamp_min(0) ** SHARPNESS


def anchor_loss(frozen, lora, batch, conds):
    """How far the adapter moves predictions on anchor prompts, `conds` one a row, at the latents of `batch`."""
    with torch.no_grad():
        before = frozen.predict(batch.z, batch.sigma, conds)
    return task_loss(frozen.predict(batch.z, batch.sigma, conds, for_rows(lora, len(conds))), before).mean()


def _anchoring(task, anchors, weights, weight):
    """The loss of latent anchoring. anchors: `model_conds` of retain prompts; weights: (n,) how often each comes."""

    def loss(lora, generator):
        chosen = torch.multinomial(weights, ANCHORS, replacement=True, generator=generator).tolist()
        batch = task.samples.batch(ANCHORS, generator)
        return weight * anchor_loss(task.frozen, lora, batch, [anchors[n] for n in chosen])

    return loss


def _adapter(lab, pair, encoded, seed, settings, eta, anchor_weight):
    task = make_task(lab, (pair,), seed, settings)
    probe = task.frozen.noise(1, settings.height, settings.width, torch.Generator().manual_seed(0))
    own = encode_prompts(lab.clip, [phrase.prompt for phrase in task.phrases])
    own = torch.stack([tokens_of(prompt.conditioning).mean(0) for prompt in own.values()])
    mean = own.mean(0)
    anchors = [task.frozen.model_conds(prompt, probe) for prompt in encoded.values()]
    means = torch.stack([tokens_of(prompt.conditioning).mean(0) for prompt in encoded.values()])
    anchoring = _anchoring(task, anchors, anchor_weights(means, mean), anchor_weight)
    lora = train_lora(task, RANK, LEARNING_RATE, eta, anchoring, seed, settings)
    task.frozen.release()
    full = cosine_similarity(own, mean.unsqueeze(0)).median().item()
    return Adapter(deltas_of(task.frozen.layers, lora), mean, full), sum(t.numel() for f in lora for t in f)


def erase(lab, concepts, retain, seed, settings, eta=ETA, anchor_weight=ANCHOR_WEIGHT):
    """An adapter for each of `concepts`, `settings.steps` steps each; the model depends on the prompt."""
    started = time.perf_counter()
    encoded = encode_prompts(lab.clip, retain.train)
    with torch.inference_mode(False), torch.enable_grad():
        made = [_adapter(lab, pair, encoded, seed, settings, eta, anchor_weight) for pair in concepts]
    adapters = [adapter for adapter, _ in made]
    numbers = sum(count + adapter.mean.numel() + 1 for adapter, count in made)
    model = partial(patched, lab.patcher, adapters)
    return ErasedModel("spm", model, unchanged, time.perf_counter() - started, numbers, 4 * numbers)

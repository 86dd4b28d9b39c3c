"""ESD-x as a static LoRA on cross-attention (Gandikota et al. 2023, arXiv 2303.07345), and its fair twin.

ESD trains the erased prompt's prediction towards e* = e_empty - eta (e_p - e_empty). The twin aims at our target
e* = e_m - gamma (e_p - e_m) with the mapping's prediction e_m, and keeps the token states c of retain prompts
where they are: || B A c ||^2 / out, what our retention measures, for a LoRA that every prompt shares.
Tried on cat alone: the learning rate below, ESD for 100 steps and the twin for 200; nothing else yet.
"""

import time

import torch

from .erased_model import ErasedModel, edited, unchanged
from .states import token_states
from .task import deltas_of, make_task, train_lora

LEARNING_RATE = 3e-3
ETA, RETAIN_WEIGHT = 1.0, 1.0
_TOKENS = 8  # of a retain prompt, so that a step sees as much of the retain list as a step of ours


def retention_loss(lora, states):
    """Mean squared change of the layers' outputs at token states (n, width), mean over layers, a scalar."""
    changes = [(states @ factors.A[0].T @ factors.B[0].T).square().mean() for factors in lora]
    return torch.stack(changes).mean()


def no_retention(_lora, _generator):
    """As ESD: no loss but its own."""
    return 0.0


def _retention(task, kept, weight, settings):
    """The loss by which the twin keeps token states `kept` (n, width) of the retain prompts where they are."""

    def loss(lora, generator):
        chosen = kept[torch.randint(len(kept), (settings.retain_batch * _TOKENS,), generator=generator)]
        return weight * retention_loss(lora, chosen.to(task.frozen.device))

    return loss


def _erase(name, lab, concepts, retain, seed, settings, strength, retain_weight):
    started = time.perf_counter()
    with torch.inference_mode(False), torch.enable_grad():
        task = make_task(lab, concepts, seed, settings)
        retention = no_retention
        if retain_weight:
            retention = _retention(task, token_states(lab.clip, retain.train), retain_weight, settings)
        lora = train_lora(task, settings.rank, LEARNING_RATE, strength, retention, seed, settings)
    task.frozen.release()
    numbers = sum(tensor.numel() for factors in lora for tensor in factors)
    model = edited(lab.patcher, deltas_of(task.frozen.layers, lora))
    return ErasedModel(name, model, unchanged, time.perf_counter() - started, numbers, 4 * numbers)


def erase(lab, concepts, retain, seed, settings, eta=ETA):
    """ESD-x as published: away from the concept towards the empty prompt, nothing retained, mappings not read."""
    unmapped = tuple((concept, "") for concept, _ in concepts)
    return _erase("esd", lab, unmapped, retain, seed, settings, eta, 0.0)


def erase_to_mapping(lab, concepts, retain, seed, settings, gamma=None, retain_weight=RETAIN_WEIGHT):
    """The twin: our target (gamma of the settings unless given) and retention, in one static LoRA."""
    strength = settings.gamma if gamma is None else gamma
    return _erase("esd mapping", lab, concepts, retain, seed, settings, strength, retain_weight)

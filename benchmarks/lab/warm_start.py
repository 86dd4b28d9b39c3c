"""The base that takes the lab's CLIP, begun from the one that takes MiniLM.

Only the keys and values of cross-attention depend on the text encoder. They start behind a linear map M from CLIP's
states to MiniLM's, W' = W M: a ridge regression over captions of all kinds, whose target is MiniLM's mean state of the
name on the name's last token and zero elsewhere, as on the padding that the old base learnt with. Then `distil` fits
them layer by layer: with CLIP's states of a whole caption, each cross-attention shall give what the old one gives with
MiniLM's states of the bare names, for the same queries.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from . import text
from .attention import attention_with_gradients
from .bank import Encoded, same_length
from .captions import Caption, with_article
from .vocabulary import NAMES

log = logging.getLogger(__name__)

STEPS, _BATCH, _RATE = 1000, 32, 2e-3  # of the distillation
_TOKENS = 24  # more than names with articles have
_RIDGE, _GAIN, _ON_NAMES = 1e-3, 1.0, 20.0  # rows of names are few, so they weigh more


def name_ends(encoder: comfy.sd.CLIP, caption: Caption) -> dict[str, int]:
    """Each name to the place of its last token in the text, counted over all chunks."""
    words = encoder.tokenizer.clip_l.tokenizer
    tokens = [token for chunk in encoder.tokenize(caption.text)["l"] for token, _ in chunk]
    found = {}
    for name in caption.names:
        own = words(name)["input_ids"][1:-1]
        places = [start for start in range(len(tokens)) if tokens[start : start + len(own)] == own]
        found.update({name: places[0] + len(own) - 1} if places else {})
    return found


def regress(states: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """The map M (targets' width, states' width) of a weighted ridge regression targets = M states."""
    weighted = states * weight.unsqueeze(1)
    gram = weighted.T @ states
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, weighted.T @ targets).T


def to_minilm(encoder: comfy.sd.CLIP, bank: Sequence[Encoded]) -> Tensor:
    """The map M (384, 256), from encoded captions."""
    context = text.encode_batch(text.load_clip(), [with_article(name) for name in NAMES], 24)[0]
    mean = context.sum(1) / context.any(-1).sum(1, keepdim=True)
    targets, weights = [], []
    for caption, states, _ in bank:
        target, weight = torch.zeros(len(states), text.WIDTH), torch.ones(len(states))
        for name, place in name_ends(encoder, caption).items():
            target[place], weight[place] = _GAIN * mean[NAMES.index(name)], _ON_NAMES
        targets.append(target)
        weights.append(weight)
    states = torch.cat([one.states for one in bank]).float()
    return regress(states, torch.cat(targets), torch.cat(weights))


def carried_over(old: dict[str, Tensor], to_old: Tensor) -> dict[str, Tensor]:
    """The state dict of a base for other states: those of the old base, with keys and values behind M."""
    return {
        name: tensor @ to_old if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else tensor
        for name, tensor in old.items()
    }


def pooled_map(encoded: Sequence[Encoded]) -> Tensor:
    """The map (384, 256) from the lab's CLIP's pooled vectors to the mean of MiniLM's states, for the lab's Flux."""
    pooled = torch.stack([one.pooled for one in encoded]).float()
    means = text.pooled(torch.stack([one.states.float().sum(0) for one in encoded]).unsqueeze(1))
    return regress(pooled, means, torch.ones(len(encoded)))


class ShortCaptions:
    """Bare names in MiniLM's states: "a cat", "a cat and a dog"."""

    def __init__(self):
        self.encoder = text.load_clip()
        self.alone = text.encode_batch(self.encoder, [with_article(name) for name in NAMES], _TOKENS)[0]

    def __call__(self, captions: Sequence[Caption]) -> Tensor:
        """Contexts (n, 64, 384); of two objects the left one first, as the old base learnt it."""
        contexts = torch.zeros(len(captions), text.TOKENS, text.WIDTH)
        pairs = {}
        for row, caption in enumerate(captions):
            if len(caption.names) == 1:
                contexts[row, :_TOKENS] = self.alone[NAMES.index(caption.names[0])]
            else:
                ordered = dict(sorted((place, name) for name, place in caption.objects))
                pairs[row] = " and ".join(with_article(name) for name in ordered.values())
        if pairs:
            contexts[list(pairs), :_TOKENS] = text.encode_batch(self.encoder, list(pairs.values()), _TOKENS)[0]
        return contexts


def is_known(caption: Caption) -> bool:
    """Whether the old base can draw it: one object, or two side by side."""
    return len(caption.names) == 1 or set(caption.places) == {"left", "right"}


def distil(network: torch.nn.Module, old: torch.nn.Module, sigmas: Tensor, batches: Any, steps: int) -> float:
    """Fit the keys and values of `network`, whose other weights are those of `old`.

    Returns the share of the old outputs' variance that the new ones leave unexplained, a running mean.
    """
    short, generator = ShortCaptions(), batches.generator
    layers = [name for name, _ in old.named_modules() if name.endswith("attn2")]
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        old.get_submodule(name).register_forward_hook(
            lambda _module, inputs, output, name=name: seen.update({name: (inputs[0], output)})
        )
        for name in layers
    ]
    parameters = [
        value for name, value in network.named_parameters() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    ]
    optimiser = torch.optim.Adam(parameters, lr=_RATE, betas=(0.9, 0.99))
    running = 1.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(1, (step + 1) / 20) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        drawn = [one for one in batches.bank.draw(_BATCH * 3 // 2) if is_known(one.caption)][:_BATCH]
        z = batches.latents([one.caption for one in drawn])
        t = torch.randint(len(sigmas), (len(z),), generator=generator)
        sigma = sigmas[t].view(-1, 1, 1, 1)
        noised = (z + sigma * torch.randn(z.shape, generator=generator)) / (sigma**2 + 1) ** 0.5
        context = same_length([one.states for one in drawn])
        with torch.amp.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                old(noised, t.float(), context=short([one.caption for one in drawn]), transformer_options={})
            loss = torch.zeros(())
            for name in layers:
                query, target = seen[name]
                given = network.get_submodule(name)(
                    query,
                    context=context,
                    transformer_options={"optimized_attention_override": attention_with_gradients},
                )
                target = target.float()
                loss = loss + (given.float() - target).square().mean() / target.var() / len(layers)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        running = loss.item() if step == 0 else 0.9 * running + 0.1 * loss.item()
        if step % 20 == 0:
            log.info("keys and values: step %d of %d, unexplained %.3f", step, steps, running)
    for hook in hooks:
        hook.remove()
    return running

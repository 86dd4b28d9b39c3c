"""The base that takes the lab's CLIP, begun from the one that takes MiniLM.

Only the keys and values of cross-attention depend on the text encoder. A linear map M from CLIP's states to
MiniLM's makes them fit: W' = W M. M is a ridge regression over captions of all kinds, whose target is MiniLM's mean
state of the name on the name's last token and zero elsewhere, as on the padding that the old base learnt with.
"""

from collections.abc import Sequence

import comfy.sd
import torch
from torch import Tensor

from . import text
from .bank import Encoded
from .captions import Caption, with_article
from .vocabulary import NAMES

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
    for caption, states in bank:
        target, weight = torch.zeros(len(states), text.WIDTH), torch.ones(len(states))
        for name, place in name_ends(encoder, caption).items():
            target[place], weight[place] = _GAIN * mean[NAMES.index(name)], _ON_NAMES
        targets.append(target)
        weights.append(weight)
    states = torch.cat([states for _, states in bank]).float()
    return regress(states, torch.cat(targets), torch.cat(weights))


def carried_over(old: dict[str, Tensor], to_old: Tensor) -> dict[str, Tensor]:
    """The state dict of a base for other states: those of the old base, with keys and values behind M."""
    return {
        name: tensor @ to_old if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else tensor
        for name, tensor in old.items()
    }

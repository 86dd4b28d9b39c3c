"""The attention task: an erased prompt's tokens give attention the keys and values of the mapping prompt.

A UNet takes a prompt only through the keys and values W x of its tokens x in cross-attention, and those are
the target layers. Where H makes them equal to the mapping prompt's, the picture is the mapping's, and no
diffusion step has to be run. With X_p and X_m the token states of the erased and of the mapping prompt, laid
side by side, and g = s / S,

    L_s = || B A X_p - g W (X_m - X_p) ||^2 / || W (X_m - X_p) ||^2

summed over tokens, averaged over target layers. Closed-form edits (UCE, arXiv 2308.14761) minimise this
over one change of W for all prompts; here each prompt gets its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence

from ...hypernet.factors import Factors, lowrank_delta
from ...hypernet.network import Hypernet
from ..draws import dial_steps, jittered
from ..prompts import Phrase
from ..settings import Settings

# Plain wordings that the scale of the loss is measured on.
_MEASURED = 64


@dataclass(frozen=True)
class TokenPairs:
    """Token states of n prompts and of their mappings, (n, tokens, in) each, token by token as `align` pairs them."""

    erased: Tensor
    mapping: Tensor

    def __len__(self) -> int:
        return self.erased.shape[0]


def align(erased: Sequence[int], mapping: Sequence[int]) -> list[int]:
    """The token of the mapping prompt that each token of the erased one becomes, as indices.

    erased, mapping: token ids. What both begin and end with stays paired; the words between are spread over
    each other, and padding follows padding. The order of tokens doesn't matter to attention, so a shifted end
    is no change.
    """
    core, other = _without_padding(erased), _without_padding(mapping)
    shorter = min(core, other)
    start = next((n for n in range(shorter) if erased[n] != mapping[n]), shorter)
    rest = shorter - start
    end = next((n for n in range(rest) if erased[core - 1 - n] != mapping[other - 1 - n]), rest)
    differing, others = core - start - end, other - start - end
    # Without words of its own, as an empty prompt has none, the mapping gives the token before them.
    middle = [start + n * others // differing if others else max(start - 1, 0) for n in range(differing)]
    padding = [min(other + n, len(mapping) - 1) for n in range(len(erased) - core)]
    return [*range(start), *middle, *range(other - end, other), *padding]


def _without_padding(ids: Sequence[int]) -> int:
    """How many ids there are up to the first of those that repeat at the end."""
    return next((n for n in range(len(ids), 1, -1) if ids[n - 2] != ids[-1]), 1) if ids else 0


def token_ids(clip: Any, text: str) -> list[int] | None:
    """The token ids of a text as one flat list, or None for a tokenizer that gives something else than ComfyUI's do.

    A textual inversion counts as one id of its own, whatever its vector is.
    """
    tokens = clip.tokenize(text)
    if not isinstance(tokens, dict):
        return None
    chunks = next(iter(tokens.values()))
    return [token[0] if isinstance(token[0], int) else id(token[0]) for chunk in chunks for token in chunk]


def token_pairs(clip: Any, phrases: Sequence[Phrase], states: Mapping[str, Tensor]) -> TokenPairs:
    """The `TokenPairs` of phrases; states: text to its token states (tokens, in)."""
    erased, mapping = [], []
    for phrase in phrases:
        ids, other = token_ids(clip, phrase.prompt), token_ids(clip, phrase.mapping)
        X_p, X_m = states[phrase.prompt], states[phrase.mapping]
        if ids is None or other is None or (len(ids), len(other)) != (len(X_p), len(X_m)):
            paired = torch.arange(len(X_p)).clamp(max=len(X_m) - 1)
        else:
            paired = torch.tensor(align(ids, other))
        erased.append(X_p)
        mapping.append(X_m[paired])
    return TokenPairs(pad_sequence(erased, batch_first=True), pad_sequence(mapping, batch_first=True))


def changes_of(modules: Sequence[Module], X_p: Tensor, X_m: Tensor) -> list[Tensor]:
    """W (X_m - X_p) of each layer, a list of (n, tokens, out) in fp32.

    Computed by the layers themselves, whose weights may be quantised or paged; a bias cancels out.
    """

    def output(module: Module, X: Tensor) -> Tensor:
        weight = getattr(module, "weight", None)
        plain = weight is not None and weight.dtype in (torch.float16, torch.bfloat16)
        return module(X.to(weight.dtype) if plain else X).float()

    with torch.no_grad():
        return [output(module, X_m) - output(module, X_p) for module in modules]


def attention_loss(
    layers: Sequence[Factors], X_p: Tensor, changes: Sequence[Tensor], g: Tensor, scale: Sequence[float]
) -> Tensor:
    """L_s of each sample, (n,).

    layers: `Factors` of each target layer for the n samples; X_p: (n, tokens, in); changes: as
    `changes_of`; g: (n,) = s / S; scale: the squared error of each layer that counts as one.
    """
    g = g.view(-1, 1, 1)
    errors = [
        (lowrank_delta(X_p, factors) - g * change).square().sum((1, 2)) / size
        for factors, change, size in zip(layers, changes, scale, strict=True)
    ]
    return torch.stack(errors).mean(0)


@dataclass(frozen=True)
class AttentionTask:
    """The objective `attention`, on batches of (wording, step s).

    modules: the target layers of the loaded model; pairs: `TokenPairs`, the first `wordings` of them plain
    phrasings of the concepts, the others sentences; c: (candidates, n, width), the embeddings that may drive H
    for the n pairs, on the device that computes.
    """

    modules: Sequence[Module]
    pairs: TokenPairs
    wordings: int
    c: Tensor
    settings: Settings

    @cached_property
    def scale(self) -> list[float]:
        """The mean squared change of the plain wordings, for each layer."""
        _, changes = self._batch(torch.arange(min(self.wordings, _MEASURED)))
        return [max(change.square().sum((1, 2)).mean().item(), 1e-12) for change in changes]

    def _batch(self, index: Tensor) -> tuple[Tensor, list[Tensor]]:
        X_p, X_m = (side[index].to(self.c.device).float() for side in (self.pairs.erased, self.pairs.mapping))
        used = (X_p.abs().amax((0, 2)) + X_m.abs().amax((0, 2))).nonzero()  # some encoders pad with zeros
        length = int(used.max()) + 1
        X_p, X_m = X_p[:, :length], X_m[:, :length]
        return X_p, changes_of(self.modules, X_p, X_m)

    def loss(self, hypernet: Hypernet, generator: Generator) -> Tensor:
        """The mean of L_s over a batch, a scalar."""
        count, last = self.settings.attention_batch, hypernet.config.trajectory
        plain = count // 2 if self.wordings < len(self.pairs) else count
        index = torch.randint(self.wordings, (plain,), generator=generator)
        if plain < count:
            others = torch.randint(self.wordings, len(self.pairs), (count - plain,), generator=generator)
            index = torch.cat([index, others])
        candidate = torch.randint(len(self.c), (count,), generator=generator)
        step = dial_steps(count, last, generator).to(self.c.device)
        X_p, changes = self._batch(index)
        c = jittered(self.c[candidate, index], self.settings.jitter, generator)
        return attention_loss(hypernet(c, step), X_p, changes, step / last, self.scale).mean()

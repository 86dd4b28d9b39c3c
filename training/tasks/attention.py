"""The attention task: an erased prompt's tokens give attention the keys and values of the mapping prompt.

A UNet takes a prompt only through the keys and values W x of its tokens x in cross-attention, and those are
the target layers. Where H makes them equal to the mapping prompt's, the picture is the mapping's, and no
diffusion step has to be run. With X_p and X_m the token states of the erased and of the mapping prompt, laid
side by side, and g = s / S,

    L_s = || B A X_p - g W (X_m - X_p) ||^2 / || W (X_m - X_p) ||^2

summed over tokens, averaged over target layers. Closed-form edits (UCE, arXiv 2308.14761) minimise this
over one change of W for all prompts; here each prompt gets its own.

Networks of joint attention process text and picture together, but there, too, the text has to pass a few layers first:
the text projections, of token states and of the pooled embedding. On their inputs the same equation holds.
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
from ..name_tokens import ids_of_states
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


def token_pairs(clip: Any, phrases: Sequence[Phrase], states: Mapping[str, Tensor]) -> TokenPairs:
    """The `TokenPairs` of phrases; states: text to its token states (tokens, in)."""
    erased, mapping = [], []
    # Concepts share mappings.
    known = {text: ids_of_states(clip, text, len(own)) for text, own in states.items()}
    for phrase in phrases:
        X_p, X_m = states[phrase.prompt], states[phrase.mapping]
        ids, other = known[phrase.prompt], known[phrase.mapping]
        if not ids or len(ids) != len(other):
            paired = list(range(len(X_p)))
        else:
            paired, first = list[int](), 0
            for own, onto in zip(ids, other, strict=True):
                paired += [first + index for index in align(own, onto)]
                first += len(onto)
        erased.append(X_p)
        mapping.append(X_m[torch.tensor(paired).clamp(max=len(X_m) - 1)])
    return TokenPairs(pad_sequence(erased, batch_first=True), pad_sequence(mapping, batch_first=True))


def retained_states(
    scored: Mapping[str, Tensor], texts: Sequence[str], widths: Sequence[int], like: Tensor, most: int = 8192
) -> Tensor:
    """Token states (n, in) of retained texts, at most so many, in the size of the states `like` (..., in).

    scored: text to states (tokens, in) as `token_detector.unit_states` scales those of each encoder; widths: of the
    encoders whose states lie side by side.
    """
    states = torch.cat([scored[text] for text in texts])
    states = states[:: -(-len(states) // most)].float()
    tokens = like.flatten(0, -2)
    tokens = tokens[tokens.any(-1)]
    sizes = [part.square().mean().sqrt() for part in tokens.split(list(widths), -1)]
    return torch.cat([part * size for part, size in zip(states.split(list(widths), -1), sizes, strict=True)], -1)


def vector_pairs(phrases: Sequence[Phrase], vectors: Mapping[str, Tensor]) -> TokenPairs:
    """The pooled embeddings of phrases as `TokenPairs` of one token; vectors: text to its own (in,)."""
    sides = ([phrase.prompt for phrase in phrases], [phrase.mapping for phrase in phrases])
    return TokenPairs(*(torch.stack([vectors[text] for text in texts]).unsqueeze(1) for texts in sides))


@dataclass(frozen=True)
class PairedLayer:
    """A target layer and the pairs of prompts that it learns from.

    before: modules that its input passes first. retained: (n, in), states of prompts that must stay as they are.
    """

    module: Module
    pairs: TokenPairs
    retained: Tensor
    before: tuple[Module, ...] = ()


def output_of(module: Module, X: Tensor) -> Tensor:
    """What a module of the model makes of X, fp32. Its weights may be quantised or paged, which it takes care of."""
    weight = next(module.parameters(), None)
    plain = weight is not None and weight.dtype in (torch.float16, torch.bfloat16)
    with torch.inference_mode():  # as nodes use the model's layers, some of which compute in place
        found = module(X.to(weight.dtype) if plain else X).float()
    return found.clone()


def changes_of(modules: Sequence[Module], X_p: Tensor, X_m: Tensor) -> list[Tensor]:
    """W (X_m - X_p) of each layer, a list of (n, tokens, out) in fp32.

    Computed by the layers themselves; a bias cancels out.
    """
    return [output_of(module, X_m) - output_of(module, X_p) for module in modules]


def attention_loss(
    layers: Sequence[Factors], X_p: Sequence[Tensor], changes: Sequence[Tensor], g: Tensor, scale: Sequence[float]
) -> Tensor:
    """L_s of each sample, (n,).

    layers: `Factors` of each target layer for the n samples; X_p: of each layer (n, tokens, in); changes: as
    `changes_of`; g: (n,) = s / S; scale: the squared error of each layer that counts as one.
    """
    g = g.view(-1, 1, 1)
    errors = [
        (lowrank_delta(X, factors) - g * change).square().sum((1, 2)) / size
        for factors, X, change, size in zip(layers, X_p, changes, scale, strict=True)
    ]
    return torch.stack(errors).mean(0)


@dataclass(frozen=True)
class AttentionTask:
    """The objective `attention`, on batches of (wording, step s).

    layers: the target layers of the loaded model with n pairs each, the first `wordings` of them plain phrasings of
    the concepts, the others sentences; c: (candidates, n, width), the embeddings that may drive H for the n pairs, on
    the device that computes.
    """

    layers: Sequence[PairedLayer]
    wordings: int
    c: Tensor
    settings: Settings

    @cached_property
    def scale(self) -> list[float]:
        """The mean squared change of the plain wordings, for each layer."""
        _, changes = self.batch(torch.arange(min(self.wordings, _MEASURED)))
        return [max(change.square().sum((1, 2)).mean().item(), 1e-12) for change in changes]

    def batch(self, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """X_p and W (X_m - X_p) of each layer for the pairs `index`, (n, tokens, in) and (n, tokens, out)."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        alike: dict[tuple[int, ...], list[int]] = {}  # most layers have one input, which is made once
        for number, layer in enumerate(self.layers):
            alike.setdefault((id(layer.pairs), *map(id, layer.before)), []).append(number)
        for numbers in alike.values():
            first = self.layers[numbers[0]]
            X_p, X_m = self.inputs(first, index)
            changes = changes_of([self.layers[number].module for number in numbers], X_p, X_m)
            found |= {number: (X_p, change) for number, change in zip(numbers, changes, strict=True)}
        X, changes = zip(*(found[number] for number in range(len(self.layers))), strict=True)
        return list(X), list(changes)

    def inputs(self, layer: PairedLayer, index: Tensor) -> list[Tensor]:
        """The inputs of a layer for the pairs `index`, erased and mapping, (n, tokens, in) each."""
        sides = [side[index].to(self.c.device).float() for side in (layer.pairs.erased, layer.pairs.mapping)]
        used = torch.stack([side.abs().amax((0, 2)) for side in sides]).sum(0).nonzero()  # some encoders pad with zeros
        sides = [side[:, : int(used.max()) + 1] for side in sides]
        return [self.passed(layer, side) for side in sides]

    def passed(self, layer: PairedLayer, X: Tensor) -> Tensor:
        """States as they are behind the modules before a layer, fp32 on the device that computes."""
        X = X.to(self.c.device).float()
        for module in layer.before:
            X = output_of(module, X)
        return X

    def loss(self, hypernet: Hypernet, generator: Generator) -> Tensor:
        """The mean of L_s over a batch, a scalar."""
        count, last = self.settings.attention_batch, hypernet.config.trajectory
        pairs = self.c.shape[1]
        plain = count // 2 if self.wordings < pairs else count
        index = torch.randint(self.wordings, (plain,), generator=generator)
        if plain < count:
            others = torch.randint(self.wordings, pairs, (count - plain,), generator=generator)
            index = torch.cat([index, others])
        candidate = torch.randint(len(self.c), (count,), generator=generator)
        step = dial_steps(count, last, generator).to(self.c.device)
        X_p, changes = self.batch(index)
        c = jittered(self.c[candidate, index], self.settings.jitter, generator)
        return attention_loss(hypernet(c, step), X_p, changes, step / last, self.scale).mean()

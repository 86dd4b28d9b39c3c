"""The attention objective: an erased prompt's tokens shall give attention what the mapping's would.

A UNet reads a prompt only through the keys and values W x of its tokens x in cross-attention, and those
are the target layers. Where H makes them equal to the mapping prompt's, the picture is the mapping's.
So there is no diffusion step to run, and nothing to wait for: with X_p and X_m the token states of the
erased and of the mapping prompt, laid side by side, and g = s / S,

    L_s = || B A X_p - g W (X_m - X_p) ||^2 / || W (X_m - X_p) ||^2

summed over tokens, averaged over target layers. Closed-form edits (UCE, arXiv 2308.14761) minimise this
over one change of W for all prompts; here each prompt gets its own.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from ..hypernet.factors import lowrank_delta
from .objectives import draw_steps


@dataclass(frozen=True)
class TokenPairs:
    """Token states of n prompts and of their mappings, (n, tokens, in) each, token by token as `align` pairs them."""

    erased: torch.Tensor
    mapping: torch.Tensor

    def __len__(self):
        return self.erased.shape[0]


def align(erased, mapping):
    """Which token of the mapping prompt each token of the erased one becomes, as a list of indices.

    erased, mapping: lists of token ids. What both begin and end with stays paired; the words between are
    spread over each other, and padding follows padding. Attention does not mind the order of its tokens,
    so a shifted end is no change.
    """
    core, other = _without_padding(erased), _without_padding(mapping)
    shorter = min(core, other)
    start = next((n for n in range(shorter) if erased[n] != mapping[n]), shorter)
    rest = shorter - start
    end = next((n for n in range(rest) if erased[core - 1 - n] != mapping[other - 1 - n]), rest)
    words, others = core - start - end, other - start - end
    # Without words of its own, as an empty prompt has none, the mapping gives the token before them.
    middle = [start + n * others // words if others else max(start - 1, 0) for n in range(words)]
    padding = [min(other + n, len(mapping) - 1) for n in range(len(erased) - core)]
    return [*range(start), *middle, *range(other - end, other), *padding]


def _without_padding(ids):
    """How many ids there are up to the first of those that repeat at the end."""
    return next((n for n in range(len(ids), 1, -1) if ids[n - 2] != ids[-1]), 1) if ids else 0


def token_ids(clip, text):
    """The token ids of a text as one flat list, or None for a tokenizer that gives something else than ComfyUI's do.

    A textual inversion counts as one id of its own, whatever its vector is.
    """
    tokens = clip.tokenize(text)
    if not isinstance(tokens, dict):
        return None
    chunks = next(iter(tokens.values()))
    return [token[0] if isinstance(token[0], int) else id(token[0]) for chunk in chunks for token in chunk]


def token_pairs(clip, pairs, states):
    """The `TokenPairs` of (prompt, mapping prompt) texts; states: text to its token states (tokens, in)."""
    erased, mapping = [], []
    for prompt, other in pairs:
        ids = token_ids(clip, prompt), token_ids(clip, other)
        X_p, X_m = states[prompt], states[other]
        if None in ids or (len(ids[0]), len(ids[1])) != (len(X_p), len(X_m)):
            own = torch.arange(len(X_p)).clamp(max=len(X_m) - 1)
        else:
            own = torch.tensor(align(*ids))
        erased.append(X_p)
        mapping.append(X_m[own])
    return TokenPairs(pad_sequence(erased, batch_first=True), pad_sequence(mapping, batch_first=True))


def jittered(c, share, generator):
    """c (n, width) with noise of `share` of its root mean square: wordings that training never saw lie nearby."""
    noise = torch.randn(c.shape, generator=generator).to(c)
    return c + share * c.square().mean().sqrt() * noise


def changes_of(modules, X_p, X_m):
    """W (X_m - X_p) of each layer, a list of (n, tokens, out) in fp32.

    Read through the layers themselves, whose weights may be quantised or paged; a bias cancels out.
    """

    def read(module, X):
        weight = getattr(module, "weight", None)
        plain = weight is not None and weight.dtype in (torch.float16, torch.bfloat16)
        return module(X.to(weight.dtype) if plain else X).float()

    with torch.no_grad():
        return [read(module, X_m) - read(module, X_p) for module in modules]


def attention_loss(layers, X_p, changes, g, scale):
    """L_s of each sample, (n,).

    layers: `Factors` of each target layer for the n samples; X_p: (n, tokens, in); changes: as
    `changes_of`; g: (n,) = s / S; scale: of each layer, what counts as an error of one.
    """
    g = g.view(-1, 1, 1)
    errors = [
        (lowrank_delta(X_p, factors) - g * change).square().sum((1, 2)) / size
        for factors, change, size in zip(layers, changes, scale, strict=True)
    ]
    return torch.stack(errors).mean(0)


class AttentionTask:
    """Everything that `attention_loss` needs for batches of (wording, step s).

    modules: the target layers of the loaded model; pairs: `TokenPairs`, the first `wordings` of them plain
    phrasings of the concepts, the others sentences; c: (views * n, width), the vectors that drive H for the
    n pairs, one view after the other, on the device that computes.
    """

    def __init__(self, modules, pairs, wordings, c):
        self.modules, self.pairs, self.wordings = modules, pairs, wordings
        self.c = c.view(-1, len(pairs), c.shape[-1])
        changes = self._batch(torch.arange(min(wordings, 64)))[1]
        # What the concept's plain wordings would have to change, on average.
        self.scale = [max(change.square().sum((1, 2)).mean().item(), 1e-12) for change in changes]

    def _batch(self, index):
        X_p, X_m = (side[index].to(self.c.device).float() for side in (self.pairs.erased, self.pairs.mapping))
        used = (X_p.abs().amax((0, 2)) + X_m.abs().amax((0, 2))).nonzero()  # some encoders pad with zeros
        length = int(used.max()) + 1
        X_p, X_m = X_p[:, :length], X_m[:, :length]
        return X_p, changes_of(self.modules, X_p, X_m)

    def loss(self, hypernet, settings, generator):
        """The mean loss of a batch, a scalar."""
        count, last = settings.attention_batch, hypernet.config.trajectory
        plain = count // 2 if self.wordings < len(self.pairs) else count
        index = torch.randint(self.wordings, (plain,), generator=generator)
        if plain < count:
            others = torch.randint(self.wordings, len(self.pairs), (count - plain,), generator=generator)
            index = torch.cat([index, others])
        view = torch.randint(len(self.c), (count,), generator=generator)
        step = draw_steps("attention", count, last, generator).to(self.c.device)
        X_p, changes = self._batch(index)
        c = jittered(self.c[view, index], settings.jitter, generator)
        return attention_loss(hypernet(c, step), X_p, changes, step / last, self.scale).mean()

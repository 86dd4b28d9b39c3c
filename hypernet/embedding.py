"""From a conditioning to the vectors c that drive H.

c is the pooled output of the model's own text encoder, as ComfyUI carries it: for SD 1.x the last
hidden state of CLIP-L at the end token, for SDXL the projected pooled vector of CLIP-G.

A conditioning carries one pooled vector, that of the first chunk of its text, and keeps it whatever
is done to its tokens afterwards. So every chunk is read from its tokens as well: a linear map, fitted
in training, tells from their states what the pooled vector of that chunk would be.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Reader:
    """c = up down f + bias for the features f of a chunk, once for each text encoder whose states lie side by side.

    widths: of each encoder's states; with F = 2 * their sum and r the rank of the maps, for each layer that
    tokens may come from (clip-skip): up (layers, encoders, width, r), down (layers, r, F), bias (layers,
    encoders, width) and key (layers, F + 1), a linear score by which the layer is known, its last column a
    constant; fp32.
    """

    widths: tuple[int, ...]
    up: torch.Tensor
    down: torch.Tensor
    bias: torch.Tensor
    key: torch.Tensor

    def __call__(self, features):
        """Features (n, F) of `chunk_features` to vectors c (encoders, n, width)."""
        sizes = [2 * width for width in self.widths]
        layer = (features @ self.key[:, :-1].T + self.key[:, -1]).argmax(1)
        parts = features.split(sizes, -1), self.down.split(sizes, -1), self.up.unbind(1), self.bias.unbind(1)
        read = torch.stack(
            [torch.einsum("nf,lrf,lwr->nlw", own, down, up) + bias for own, down, up, bias in zip(*parts, strict=True)]
        )
        return read[:, torch.arange(len(features)), layer]

    def views(self, tokens):
        """What each encoder's states (n, in) say of a chunk, as a tuple of vectors c (width,)."""
        return self(chunk_features(tokens, self.widths).unsqueeze(0)).squeeze(1).unbind(0)

    def fits(self, tokens):
        """Whether token states (n, in) are of the encoders that the reader was fitted on."""
        return tokens.shape[-1] == sum(self.widths)


class Chunk(NamedTuple):
    """Tokens that a text encoder made at once, start to stop, and what they mean.

    views: vectors c (width,) that speak for the chunk, the first to be heard first. unknown: there is text
    and no view of it; without either, nothing is said here.
    """

    start: int
    stop: int
    views: tuple
    unknown: bool


def chunk_features(tokens, widths):
    """The features of a chunk that a `Reader` reads, (n, in) to (2 in,): of each encoder the mean state and the last.

    In CLIP the last state has seen the whole chunk, as the end token's has; in encoders that read both
    ways the mean has. Each is scaled to elements of about one: weighting tokens must not hide them.
    """
    states = [state for own in tokens.split(list(widths), -1) for state in (own.mean(0), own[-1])]
    return torch.cat([_scaled(state) for state in states])


def _scaled(state):
    # Clamped before the root, whose gradient at the zeros of padding is infinite.
    return state / state.square().mean().clamp_min(1e-12).sqrt()


def _on_cpu(tensor):
    return tensor.detach().to(device="cpu", dtype=torch.float32)


def driving_embedding(conditioning):
    """Return the pooled vector of one conditioning entry, fp32 on the CPU (width,), or None without one.

    `conditioning` is the dict that rides beside the cross-attention tensor. A missing or zeroed pooled
    vector (ConditioningZeroOut, encoders without one) says nothing. The first of a batch counts.
    """
    return _pooled(conditioning)[0]


def _pooled(conditioning):
    """Pooled vectors of an entry, one a row of its batch, None for a row without one."""
    pooled = conditioning.get("pooled_output")
    if pooled is None:
        return [None]
    return [c if bool(c.any()) else None for c in _on_cpu(pooled).reshape(-1, pooled.shape[-1])]


def chunks_of(tokens, pooled, width, length=0, reader=None):
    """The chunks of one prompt: token states (n, in) or None, and its pooled vector or None.

    width: numbers in the c that H reads; vectors of other encoders don't count. length: tokens that the
    text encoder makes at once, 0 where that is not known. reader: a `Reader` or None. Tokens that no
    text encoder made (style models and the like) are chunks as well, the last one may be short.
    """
    first = () if pooled is None or pooled.shape[0] != width else (pooled,)
    if tokens is None:
        return [Chunk(0, 1, first, not first)]  # of a model that reads no tokens
    chunks = []
    for start in range(0, tokens.shape[0], length or tokens.shape[0]):
        part = tokens[start : start + (length or tokens.shape[0])]
        blank = not bool(part.any())
        views = first if start == 0 else ()
        if reader is not None and reader.fits(part) and not blank:
            views = (*views, *reader.views(part))
        chunks.append(Chunk(start, start + len(part), views, not (blank or views)))
    return chunks


def read_prompts(conditioning, tokens, width, length=0, reader=None):
    """The chunks of every prompt in a conditioning entry: a list a row of its batch, see `chunks_of`.

    tokens: (rows, n, in) or None. One row is the rule; nodes that schedule prompts over frames make
    more, and the host then repeats tokens and pooled vectors each for itself.
    """
    pooled = _pooled(conditioning)
    tokens = [None] if tokens is None else _on_cpu(tokens).unbind(0)
    rows = math.lcm(len(tokens), len(pooled))
    return [
        chunks_of(tokens[row % len(tokens)], pooled[row % len(pooled)], width, length, reader) for row in range(rows)
    ]


def content_key(c):
    """A key for caches: equal for equal numbers, whatever tensor holds them."""
    return c.numpy().tobytes()

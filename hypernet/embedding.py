"""From a conditioning to chunks of tokens, each with the embeddings c that may drive H for it.

c is the pooled embedding of the model's own text encoder, as ComfyUI carries it: for SD 1.x the last hidden
state of CLIP-L at the end token, for SDXL the projected pooled vector of CLIP-G. T5 and language models
(Chroma, Flux.2, Qwen-Image, Z-Image, Wan) have none; there c is the mean of the token states.

A conditioning carries one pooled embedding, that of the first chunk of its text, and keeps it whatever is
done to its tokens afterwards. So every chunk gets candidates from its tokens as well (``regressor``).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .families import POOLED
from .regressor import PooledRegressor

# One entry of a conditioning as the sampler has it: `cross_attn` (rows, tokens, in) or None, `pooled_output`, ...
Entry = dict[str, Any]
# ComfyUI's CONDITIONING: a list of pairs [cross-attention tensor, dict].
Conditioning = list[list[Any]]


class Chunk(NamedTuple):
    """The tokens `start` to `stop`, which the text encoder processed together.

    candidates: embeddings c (width,) of the chunk, the preferred one first. unknown: the chunk has tokens and
    no candidate. A chunk of zeros has neither. tokens: its token states (stop - start, in), if the prompt has any.
    named: the numbers of the concepts that its tokens name, see `token_detector`.
    """

    start: int
    stop: int
    candidates: tuple[Tensor, ...]
    unknown: bool
    tokens: Tensor | None = None
    named: tuple[int, ...] = ()


def entries_of(conditioning: Conditioning) -> list[Entry]:
    """The entries of a CONDITIONING in the form that the sampler gives them."""
    return [{**values, "cross_attn": tokens} for tokens, values in conditioning]


def driving_embeddings(entry: Entry, source: str = POOLED) -> list[Tensor | None]:
    """The c of each row of an entry's batch, fp32 on the CPU (width,), None for a row without one.

    source: `families.POOLED` or `families.TOKENS`. A missing or zeroed vector (ConditioningZeroOut, encoders
    without one) is none.
    """
    if source == POOLED:
        vectors = entry.get("pooled_output")
    else:
        vectors = mean_of_tokens(entry["cross_attn"], entry.get("attention_mask"))
    if vectors is None:
        return [None]
    return [c if bool(c.any()) else None for c in _on_cpu(vectors).reshape(-1, vectors.shape[-1])]


def mean_of_tokens(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of the valid token states, each scaled to a mean square of one: (n, tokens, width) to (n, width).

    Valid are those of the attention `mask` (n, tokens), if there is one, that are not all zero: some encoders
    pad with zeros. Scaled, because language models give some tokens, the first above all, states a hundred
    times as large as those of the words. Without a valid token the mean is zero.
    """
    states = states.detach().float()
    size = states.square().mean(-1, keepdim=True).sqrt()
    valid = (size > 0).float()
    # Conditioning (Concat) adds tokens that the first prompt's mask doesn't cover.
    if mask is not None and mask.shape[-1] == states.shape[1]:
        valid = valid * (mask.reshape(mask.shape[0], -1, 1) > 0).to(valid)
    scaled = states / size.clamp_min(torch.finfo(torch.float32).tiny)
    return (scaled * valid).sum(1) / valid.sum(1).clamp_min(1)


def chunks_of_prompt(
    tokens: Tensor | None, c: Tensor | None, width: int, length: int = 0, regressor: PooledRegressor | None = None
) -> list[Chunk]:
    """The chunks of one prompt: its token states (n, in) or None, and its embedding c or None.

    width: numbers in the c that H takes; vectors of other encoders are no candidates. length: tokens that the
    text encoder processes together, 0 where that is not known. Tokens that no text encoder made (style models
    and the like) are chunks as well, the last one may be short.
    """
    pooled = () if c is None or c.shape[0] != width else (c,)
    if tokens is None:
        return [Chunk(0, 1, pooled, not pooled)]  # of a model without token states
    chunks = []
    for start in range(0, tokens.shape[0], length or tokens.shape[0]):
        part = tokens[start : start + (length or tokens.shape[0])]
        blank = not bool(part.any())
        candidates = pooled if start == 0 else ()
        chunk = Chunk(start, start + len(part), candidates, not (blank or candidates), part)
        chunks.append(chunk if blank else with_estimates(chunk, regressor))
    return chunks


def with_estimates(chunk: Chunk, regressor: PooledRegressor | None) -> Chunk:
    """A chunk that isn't blank, with the regressor's estimates as further candidates, where it fits the tokens."""
    if regressor is None or chunk.tokens is None or not regressor.fits(chunk.tokens):
        return chunk
    return chunk._replace(candidates=(*chunk.candidates, *regressor.candidates(chunk.tokens)), unknown=False)


def chunks_of(
    entry: Entry, source: str, width: int, length: int = 0, regressor: PooledRegressor | None = None
) -> list[list[Chunk]]:
    """The chunks of every prompt of an entry, a list for each row of its batch; see `chunks_of_prompt`.

    One row is the rule; nodes that schedule prompts over frames make more, and the host then repeats tokens
    and pooled embeddings independently.
    """
    vectors, states = driving_embeddings(entry, source), entry.get("cross_attn")
    tokens = [None] if states is None else _on_cpu(states).unbind(0)
    rows = math.lcm(len(tokens), len(vectors))
    return [
        chunks_of_prompt(tokens[row % len(tokens)], vectors[row % len(vectors)], width, length, regressor)
        for row in range(rows)
    ]


def content_key(c: Tensor) -> bytes:
    """A key for caches: equal for equal numbers, whatever tensor holds them."""
    return c.numpy().tobytes()


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32)

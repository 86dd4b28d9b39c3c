"""What drives H where the text encoder has no pooled vector: the mean of a prompt's tokens.

T5 and language models (Chroma, Flux.2, Qwen-Image, Z-Image, Wan) write one state a token and no vector
for the whole prompt.
"""

import torch

from .families import POOLED


def with_embedding(conditioning, source):
    """The conditioning with what drives H as its `pooled_output`; the one given is not written to.

    `conditioning` is the dict that the sampler gets, `cross_attn` (1, tokens, width) among its values.
    source: `families.POOLED` leaves it as it is, `families.TOKENS` puts the mean of its tokens there.
    """
    if source == POOLED:
        return conditioning
    return {**conditioning, "pooled_output": mean_of_tokens(conditioning["cross_attn"], conditioning)}


def mean_of_tokens(states, conditioning):
    """The mean of the valid token states, each scaled to a mean square of one: (n, tokens, width) to (n, width).

    Valid are those of the `attention_mask`, if the conditioning has one, that are not all zero: some
    encoders fill up with zeros. Scaled, because language models write some tokens, the first above all,
    a hundred times as large as the words. Without a valid token the mean is zero.
    """
    states = states.detach().float()
    size = states.square().mean(-1, keepdim=True).sqrt()
    valid = (size > 0).float()
    mask = conditioning.get("attention_mask")
    # Conditioning (Concat) adds tokens that the first prompt's mask says nothing of.
    if mask is not None and mask.shape[-1] == states.shape[1]:
        valid = valid * (mask.reshape(mask.shape[0], -1, 1) > 0).to(valid)
    scaled = states / size.clamp_min(torch.finfo(torch.float32).tiny)
    return (scaled * valid).sum(1) / valid.sum(1).clamp_min(1)

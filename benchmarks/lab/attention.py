"""Attention that the lab's SD models can be trained through."""

from typing import Any

from torch import Tensor


def attention_with_gradients(_chosen: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, **_: Any) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V for queries (n, tokens, heads * d) and keys and values of another length.

    The host's choice has no gradients where memory is short. PyTorch's own on a CPU takes a quarter of a training
    step for its backward pass; as two products it takes much less.
    """
    query, key, value = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)

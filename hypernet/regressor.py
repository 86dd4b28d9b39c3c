"""The pooled-embedding regressor: a linear map from the token states of a chunk to its pooled embedding.

A conditioning carries the pooled embedding of its first chunk only, and keeps it when other nodes change its
tokens. The regressor, fitted in training, estimates it for every chunk from the tokens that the model gets.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from .token_detector import unit_states


@dataclass(frozen=True)
class PooledRegressor:
    """c = up down f + bias for the features f of a chunk, once for each text encoder whose states lie side by side.

    widths: of each encoder's states. With F = 2 * their sum and r the rank of the maps, for each encoder layer
    that tokens may come from (clip-skip): up (layers, encoders, width, r), down (layers, r, F), bias (layers,
    encoders, width) and key (layers, F + 1), a linear score that identifies the layer, its last column a
    constant; fp32.
    """

    widths: tuple[int, ...]
    up: Tensor
    down: Tensor
    bias: Tensor
    key: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (n, F) of `chunk_features` to vectors c (encoders, n, width)."""
        sizes = [2 * width for width in self.widths]
        layer = (features @ self.key[:, :-1].T + self.key[:, -1]).argmax(1)
        parts = features.split(sizes, -1), self.down.split(sizes, -1), self.up.unbind(1), self.bias.unbind(1)
        c = torch.stack(
            [
                einsum(part, down, up, "n f, layer r f, layer width r -> n layer width") + bias
                for part, down, up, bias in zip(*parts, strict=True)
            ]
        )
        return c[:, torch.arange(len(features)), layer]

    def candidates(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """The estimate of each encoder for a chunk of token states (n, in): vectors c (width,)."""
        return self(chunk_features(tokens, self.widths).unsqueeze(0)).squeeze(1).unbind(0)

    def fits(self, tokens: Tensor) -> bool:
        """Whether token states (n, in) are of the encoders that the regressor was fitted on."""
        return tokens.shape[-1] == sum(self.widths)


def chunk_features(tokens: Tensor, widths: tuple[int, ...]) -> Tensor:
    """The regressor's features of a chunk, (n, in) to (2 in,): of each encoder the mean state and the last.

    In CLIP the last state depends on the whole chunk, as the end token's does; in bidirectional encoders the
    mean does. Both are scaled to a mean square of one, so that token weights don't change them.
    """
    states = [state for part in tokens.split(list(widths), -1) for state in (part.mean(0), part[-1])]
    return torch.cat([unit_states(state) for state in states])

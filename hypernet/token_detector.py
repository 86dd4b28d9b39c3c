"""The token detector: linear scores on the token states that the network reads, the highest token counts.

The pooled embedding c averages a prompt, and among many words one name no longer moves it enough. The states of
the name's own tokens hardly change. So every concept has a score on token states beside that on c:

    g_k(X) = max_t ( v_k x'_t ) + a_k

x'_t is the state of token t scaled to a mean square of one. Of a name of several tokens it is the mean over as many
tokens, those before t and itself, scaled again: one word of Mickey Mouse, or the last syllable of a rare word, is part
of many others. Where text encoders lie side by side in each token (SDXL), each has its own v_k and a_k, and the higher
score counts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module


class TokenDetector(Module):
    """g_k, one score for each concept k, scaled so that the threshold of each is 1.

    widths: of the states of each text encoder, their sum is `in`. weight: (concepts, in), bias: (encoders,
    concepts), fp32; the concepts are those of the file's record. spans: of each concept how many tokens are scored
    together, 1 throughout where none are given.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, widths: tuple[int, ...], weight: Tensor, bias: Tensor, spans: Sequence[int] = ()) -> None:
        super().__init__()
        self.widths, self.spans = widths, tuple(spans) or (1,) * len(weight)
        self._of_span = by_span(self.spans)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def fits(self, tokens: Tensor) -> bool:
        """Whether token states (n, in) are of the encoders that the detector was fitted on."""
        return tokens.shape[-1] == sum(self.widths)

    def token_scores(self, tokens: Tensor) -> Tensor:
        """The score of every token for every concept: (n, in) to (n, concepts); states of zeros score -inf."""
        weights = self.weight.split(self.widths, -1)
        scores = [
            self._scores_of(unit_states(own), weight, bias).masked_fill(~own.any(-1, keepdim=True), -torch.inf)
            for own, weight, bias in zip(tokens.to(self.weight).split(self.widths, -1), weights, self.bias, strict=True)
        ]
        return torch.stack(scores).amax(0)

    def _scores_of(self, states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The scores of one encoder's states (n, width) as `unit_states` scales them, (n, concepts)."""
        scores = states.new_empty(len(states), len(weight))
        for span, own in self._of_span.items():
            scores[:, own] = together(states, span) @ weight[own].T + bias[own]
        return scores

    def named(self, tokens: Tensor) -> tuple[int, ...]:
        """The concepts that token states (n, in) name: of each token that is detected the one with the top score."""
        top, concept = self.token_scores(tokens).max(1)
        return tuple(sorted({*concept[top >= 1].tolist()}))

    def forward(self, tokens: Tensor) -> Tensor:
        """g_k of token states (n, in), (concepts,); 1 and above is detected."""
        return self.token_scores(tokens).amax(0)


def unit_states(states: Tensor) -> Tensor:
    """States (..., width) scaled to a mean square of one, so that token weights don't change them; zeros stay zeros."""
    # Clamped before the root, whose gradient at the zeros of padding is infinite.
    return states / states.square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()


def together(states: Tensor, span: int) -> Tensor:
    """Of each of the states (n, width), as `unit_states` scales them, the mean with the span - 1 before it, scaled."""
    if span == 1:
        return states
    sums = states.cumsum(0)
    before = torch.nn.functional.pad(sums, (0, 0, span, 0))[: len(sums)]
    return unit_states(sums - before)


def by_span(spans: Sequence[int]) -> dict[int, list[int]]:
    """Each span, the shortest first, to the numbers of the concepts that have it."""
    return {span: [k for k, other in enumerate(spans) if other == span] for span in sorted(set(spans))}

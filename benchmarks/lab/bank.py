"""Captions of training with their texts encoded: some thousands, of which a few are replaced at each draw.

A text encoder takes a third of the time of the network that learns from it. So each caption is drawn four times or
so, with other drawings and another noise each time.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import clip
from .captions import Caption, Captions

_PASS = 64  # prompts encoded at once
_DRAWN = 4  # how often a caption is drawn, on average


# Texts to the token states (tokens, width) of each, and the pooled vector (its width,) where the network takes one.
Encode = Callable[[list[str]], list[tuple[Tensor, ...]]]


class Encoded(NamedTuple):
    """A caption with the states of its text, (tokens, width) bf16, and the pooled vector, where there is one."""

    caption: Caption
    states: Tensor
    pooled: Tensor | None = None


class Bank:
    """shares: of the kinds of caption; size: how many are kept."""

    def __init__(self, encode: Encode, captions: Captions, shares: dict[str, float], size: int = 4096):
        self.encode_texts, self.captions, self.shares = encode, captions, shares
        self.kept: deque[Encoded] = deque(maxlen=size)
        while len(self.kept) < size:
            self.add(min(_PASS, size - len(self.kept)))

    def add(self, count: int) -> None:
        """New captions in the place of the oldest."""
        drawn = [self.captions.draw(self.shares) for _ in range(count)]
        self.kept.extend(
            Encoded(caption, *one)
            for caption, one in zip(drawn, self.encode([caption.text for caption in drawn]), strict=True)
        )

    def encode(self, texts: list[str]) -> list[tuple[Tensor, ...]]:
        """What the text encoder gives for each, in bf16."""
        with torch.amp.autocast("cpu", torch.bfloat16):
            encoded = self.encode_texts(texts)
        return [tuple(tensor.to(torch.bfloat16) for tensor in one) for one in encoded]

    def draw(self, count: int, taken: int | None = None) -> list[Encoded]:
        """Some of them, none twice. taken: how many of these are learnt from, all by default."""
        self.add((count if taken is None else taken) // _DRAWN)
        chosen = torch.randperm(len(self.kept), generator=self.captions.generator)[:count]
        return [self.kept[index] for index in chosen.tolist()]


def same_length(states: list[Tensor]) -> Tensor:
    """Contexts (n, tokens, width) fp32: shorter ones are repeated, which attention doesn't notice, as the host does."""
    chunks = [len(one) // clip.TOKENS for one in states]
    length = clip.TOKENS * math.lcm(*chunks)
    return torch.stack([one.repeat(length // len(one), 1) for one in states]).float()

"""Captions of training with the CLIP states of their texts: some thousands, of which a few are replaced at each draw.

The lab's CLIP takes a third of the time of the network that learns from it. So each caption is drawn four times or
so, with other drawings and another noise each time.
"""

import math
from collections import deque
from typing import NamedTuple

import comfy.sd
import torch
from torch import Tensor

from . import clip
from .captions import Caption, Captions

_PASS = 64  # prompts encoded at once
_DRAWN = 4  # how often a caption is drawn, on average


class Encoded(NamedTuple):
    """A caption and the states of its text, (chunks * 77, 256) bf16."""

    caption: Caption
    states: Tensor


class Bank:
    """size: captions that are kept; shares: of the kinds of caption."""

    def __init__(self, encoder: comfy.sd.CLIP, captions: Captions, shares: dict[str, float], size: int = 4096):
        self.encoder, self.captions, self.shares = encoder, captions, shares
        self.kept: deque[Encoded] = deque(maxlen=size)
        while len(self.kept) < size:
            self.add(min(_PASS, size - len(self.kept)))

    def add(self, count: int) -> None:
        """New captions in the place of the oldest."""
        drawn = [self.captions.draw(self.shares) for _ in range(count)]
        self.kept.extend(
            Encoded(*one) for one in zip(drawn, self.encode([caption.text for caption in drawn]), strict=True)
        )

    def encode(self, texts: list[str]) -> list[Tensor]:
        """States in bf16."""
        with torch.amp.autocast("cpu", torch.bfloat16):
            return [states.to(torch.bfloat16) for states in clip.encode_all(self.encoder, texts)]

    def draw(self, count: int) -> list[Encoded]:
        """Some of them, none twice."""
        self.add(count // _DRAWN)
        chosen = torch.randperm(len(self.kept), generator=self.captions.generator)[:count]
        return [self.kept[index] for index in chosen.tolist()]


def same_length(states: list[Tensor]) -> Tensor:
    """Contexts (n, tokens, width) fp32: shorter ones are repeated, which attention doesn't notice, as the host does."""
    chunks = [len(one) // clip.TOKENS for one in states]
    length = clip.TOKENS * math.lcm(*chunks)
    return torch.stack([one.repeat(length // len(one), 1) for one in states]).float()

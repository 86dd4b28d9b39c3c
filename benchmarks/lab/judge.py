"""The judge: a small classifier that says which concept a 32x32 picture shows, or none.

It stands outside what it measures: it never sees the lab model's own pictures in training, and no
erasure is trained against it. A second judge of another shape, which never saw two of the seven
vendors, is there to distinguish an erased concept from a fooled judge.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import BatchNorm2d, Conv2d, Linear, Module, ReLU, Sequential

from .vocabulary import NAMES

WEIGHTS = Path(__file__).with_name("weights")
LABELS = (*NAMES, "none")
# Channels of each 3x3 convolution; a width that differs from the one before it also halves the picture.
WIDTHS = {"judge": (32, 64, 64, 128, 128, 256, 256), "second": (24, 48, 96, 96, 192, 192, 224, 224)}


class Network(Module):
    """Convolutions, a mean over the picture, one linear layer: (n, 3, 32, 32) in [0, 1] to logits (n, labels)."""

    def __init__(self, widths=WIDTHS["judge"]):
        super().__init__()
        layers, before = [], 3
        for width in widths:
            # The first layer sees every pixel, else thin lines are lost.
            stride = 1 if before in (3, width) else 2
            layers += [Conv2d(before, width, 3, stride, 1, bias=False), BatchNorm2d(width), ReLU()]
            before = width
        self.features = Sequential(*layers)
        self.head = Linear(before, len(LABELS))

    def forward(self, pictures):
        return self.head(self.features(pictures * 2 - 1).mean((2, 3)))


class Judge:
    """A trained judge. `labels` are the vocabulary's names and, last, "none"."""

    labels = LABELS

    def __init__(self, name="judge", folder=WEIGHTS):
        self.network = Network(WIDTHS[name])
        weights = {key: value.float() for key, value in load_file(Path(folder) / f"{name}.safetensors").items()}
        counters = {key: value for key, value in self.network.state_dict().items() if key.endswith("batches_tracked")}
        self.network.load_state_dict({**weights, **counters})
        self.network.eval().requires_grad_(False)

    def probabilities(self, images):
        """Pictures (n, 32, 32, 3) in [0, 1] to probabilities (n, labels)."""
        pictures = images[..., :3].movedim(-1, 1).float().cpu()
        with torch.no_grad():
            return torch.cat([self.network(part).softmax(1) for part in pictures.split(256)])

    def top(self, images):
        """The likeliest label of each picture."""
        return [LABELS[index] for index in self.probabilities(images).argmax(1).tolist()]

    def halves(self, images):
        """Two-object pictures (n, 32, 32, 3): probabilities of the left and of the right half, each (n, labels)."""
        return self.probabilities(half(images, 0)), self.probabilities(half(images, 1))

    def pair(self, images, first, second):
        """Probabilities (n,), (n,) that `first` and `second` are on two-object pictures, whichever side each is on."""
        sides = torch.stack(self.halves(images))
        return sides[..., LABELS.index(first)].amax(0), sides[..., LABELS.index(second)].amax(0)


def half(images, side):
    """The left (0) or right (1) half of pictures (n, h, w, 3), in the middle of a white one of full size."""
    width = images.shape[2]
    part = images[:, :, : width // 2] if side == 0 else images[:, :, width - width // 2 :]
    before = (width - part.shape[2]) // 2
    whole = torch.ones_like(images)
    whole[:, :, before : before + part.shape[2]] = part
    return whole

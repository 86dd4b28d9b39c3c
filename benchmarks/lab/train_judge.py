"""Train the judges: `python dev.py lab judge --folder FOLDER`."""

import logging
import math
import time
from datetime import date

import torch
from safetensors.torch import save_file
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, one_hot

from .. import commandline
from . import data, judge
from .vocabulary import CLASSES, NAMES

log = logging.getLogger(__name__)

_NONE = len(NAMES)
_CLASS_WEIGHT, _NONE_SHARE, _PAIR_SHARE = 2.0, 0.12, 0.06


class Pictures:
    """Training pictures, drawn from one generator."""

    def __init__(self, folder, vendors, generator):
        self.generator = generator
        rgba, concept, vendor = data.load(folder)
        keep = torch.tensor([list(data.SETS)[index] in vendors for index in vendor.tolist()])
        self.rgba, self.concept = rgba[keep], concept[keep]
        self.weight = torch.tensor(
            [_CLASS_WEIGHT if NAMES[index] in CLASSES else 1.0 for index in self.concept.tolist()]
        )

    def _rand(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def _cutouts(self, count):
        """RGBA (count, 4, 64, 64), half of them mirrored, and their concepts."""
        chosen = torch.multinomial(self.weight, count, replacement=True, generator=self.generator)
        rgba = self.rgba[chosen]
        mirrored = self._rand(count, 1, 1, 1) < 0.5
        return torch.where(mirrored, rgba.flip(-1), rgba), self.concept[chosen]

    def single(self, count):
        """Objects from two fifths of the picture's width to all of it, anywhere on it, and one-hot labels."""
        rgba, concept = self._cutouts(count)
        scale = 0.4 + 0.6 * self._rand(count)
        shift = (self._rand(count, 2) * 2 - 1) * (1.1 - scale).unsqueeze(1)
        return data.paint(rgba, scale, shift), one_hot(concept, _NONE + 1).float()

    def pairs(self, count):
        """Two objects side by side, half a label each."""
        parts, labels = [], []
        for side in (-0.5, 0.5):
            rgba, concept = self._cutouts(count)
            shift = torch.stack([torch.full((count,), side), (self._rand(count) * 2 - 1) * 0.3], 1)
            parts.append(data.paint(rgba, 0.4 + 0.1 * self._rand(count), shift))
            labels.append(one_hot(concept, _NONE + 1).float() / 2)
        return torch.minimum(*parts), sum(labels)

    def none(self, count):
        """What is no concept: noise, plain colours, soft blobs, blends of two objects, pieces of one."""
        size = data.SIZE
        a, b = (self.single(count)[0] for _ in range(2))
        blend = torch.lerp(a, b, 0.35 + 0.3 * self._rand(count, 1, 1, 1))
        grid = self._rand(count, 3, 4, 4) * self._rand(count, 1, 1, 1)
        blobs = interpolate(grid, size=(size, size), mode="bicubic", align_corners=False)
        white = (self._rand(count, 1, 1, 1) < 0.5).float()
        blobs = torch.maximum(
            blobs, white * interpolate(self._rand(count, 1, 6, 6).round(), size=(size, size), mode="bilinear")
        )
        plain = torch.where(white > 0, torch.ones(1), self._rand(count, 3, 1, 1)).expand(count, 3, size, size)
        noise = plain + torch.randn(count, 3, size, size, generator=self.generator) * self._rand(count, 1, 1, 1)
        corner = data.paint(
            self._cutouts(count)[0], 1.5 + self._rand(count), (self._rand(count, 2).round() * 2 - 1) * 1.3
        )
        # Tiles of an object in a wrong order keep its colours and texture and lose its shape.
        tiles = a.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        tiles = tiles[:, torch.randperm(16, generator=self.generator)].unflatten(1, (4, 4))
        shuffled = tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, size, size)
        kinds = torch.stack([blend, blobs, plain, noise, corner, shuffled])
        kind = torch.randint(len(kinds), (count,), generator=self.generator)
        return kinds[kind, torch.arange(count)], one_hot(torch.full((count,), _NONE), _NONE + 1).float()

    def spoil(self, pictures):
        """Softer, noisier and of another brightness, contrast and colour, as generated pictures are."""
        count = len(pictures)
        soft = interpolate(avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear")
        pictures = torch.lerp(pictures, soft, self._rand(count, 1, 1, 1) * (self._rand(count, 1, 1, 1) < 0.7))
        pictures = pictures + 0.12 * (self._rand(count, 3, 1, 1) * 2 - 1)
        pictures = 1 + (pictures - 1) * (0.65 + 0.6 * self._rand(count, 1, 1, 1))
        grey = pictures.mean(1, keepdim=True)
        pictures = grey + (pictures - grey) * (0.6 + 0.8 * self._rand(count, 1, 1, 1))
        spread = 0.1 * self._rand(count, 1, 1, 1) ** 2
        return (pictures + spread * torch.randn(pictures.shape, generator=self.generator)).clamp(0, 1)

    def draw(self, size):
        """Pictures (size, 3, 32, 32) in [0, 1] and label shares (size, labels)."""
        nothing, two = int(size * _NONE_SHARE), int(size * _PAIR_SHARE)
        parts = [self.single(size - nothing - two), self.none(nothing), self.pairs(two)]
        pictures, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return self.spoil(pictures), labels


def accuracy(network, folder, vendors):
    """Share of clean pictures of these vendors that are given the right name."""
    rgba, concept, vendor = data.load(folder)
    keep = torch.tensor([list(data.SETS)[index] in vendors for index in vendor.tolist()])
    pictures = data.paint(rgba[keep], torch.full((int(keep.sum()),), 0.9), torch.zeros(int(keep.sum()), 2))
    with torch.no_grad():
        guess = torch.cat([network(part).argmax(1) for part in pictures.split(256)])
    right = guess == concept[keep]
    classes = torch.tensor([NAMES[index] in CLASSES for index in concept[keep].tolist()])
    return right.float().mean().item(), right[classes].float().mean().item()


def train(folder, name, vendors, steps, batch, seed):
    """Train one judge on these vendors and save it."""
    torch.manual_seed(seed)
    pictures = Pictures(folder, vendors, torch.Generator().manual_seed(seed))
    network = judge.Network(judge.WIDTHS[name]).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    start, running = time.monotonic(), None
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        inputs, labels = pictures.draw(batch)
        with torch.amp.autocast("cpu", torch.bfloat16):
            logits = network(inputs)
        loss = cross_entropy(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99:
            log.info("step %d of %d, loss %.3f, %.0f s", step + 1, steps, running, time.monotonic() - start)
    network.eval()
    facts = {"steps": steps, "batch": batch, "seed": seed, "date": date.today(), "vendors": ", ".join(vendors)}
    facts["seconds"] = round(time.monotonic() - start)
    seen = accuracy(network, folder, vendors)
    log.info("%s: vendors in training, all %.3f, ten classes %.3f", name, *seen)
    if others := [vendor for vendor in data.SETS if vendor not in vendors]:
        unseen = accuracy(network, folder, others)
        log.info("%s: vendors held out, all %.3f, ten classes %.3f", name, *unseen)
        facts["accuracy on held-out vendors"] = "{:.3f}, ten classes {:.3f}".format(*unseen)
    judge.WEIGHTS.mkdir(exist_ok=True)
    tensors = {
        key: value.half().contiguous() for key, value in network.state_dict().items() if value.is_floating_point()
    }
    save_file(
        tensors, judge.WEIGHTS / f"{name}.safetensors", metadata={key: str(value) for key, value in facts.items()}
    )


def main(arguments=None):
    """Command line."""
    options = commandline.parser("lab judge").parse_args(arguments)
    if options.only != "second":
        train(options.folder, "judge", list(data.SETS), options.steps, options.batch, seed=1)
    if options.only != "judge":
        vendors = [vendor for vendor in data.SETS if vendor not in data.HELD_OUT]
        train(options.folder, "second", vendors, options.steps, options.batch, seed=2)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()

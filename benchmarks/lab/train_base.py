"""Train the lab's base model: `python dev.py lab base --folder DIR`.

One-object pictures, two-object pictures and empty prompts, from captions that use official names only.
"""

import copy
import logging
import math
import time
from datetime import date

import torch

from .. import commandline
from . import data, model, storage, text
from .vocabulary import CLASSES, NAMES

log = logging.getLogger(__name__)

SINGLE = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "an emoji of a {}",
    "one {} on a white background",
)
PAIR = ("a {} and a {}", "a {} next to a {}", "a {} beside a {}", "a {} with a {}")
_PAIR_CAPTIONS, _CAPTION_TOKENS = 8000, 24
_PAIR_SHARE, _EMPTY_SHARE = 0.2, 0.1
# Flat drawings of one hand each: a model this small learns them sooner than seven ways to draw a cat.
_SETS = ("noto", "fluent-emoji-flat", "twemoji")
# What erasure is scored on, and what the demo maps to, has to be drawn best.
_WEIGHTS = {**dict.fromkeys(CLASSES, 20.0), "tree": 8.0}
ATTRIBUTION = (
    "Trained on emoji drawings: Noto Emoji and FxEmojis (Apache-2.0), Fluent Emoji (MIT, Microsoft), "
    "Twemoji (CC-BY-4.0, Twitter and contributors), EmojiOne 2 (CC-BY-4.0, EmojiOne). "
    "Text by all-MiniLM-L6-v2 (Apache-2.0)."
)


def fill(template, *names):
    """A caption: every `a` before a name becomes `an` where it has to."""
    words = template.split(" ")
    names = iter(names)
    for place, word in enumerate(words):
        if word == "{}":
            words[place] = next(names)
            if place and words[place - 1] == "a" and words[place][0] in "aeiou":
                words[place - 1] = "an"
    return " ".join(words)


class Batches:
    """Pictures as latents with the contexts of their captions, drawn from one generator.

    sets: the vendors whose drawings are learnt, where they have one; weights: how often a concept comes, 1
    where it isn't named; tokens: what contexts are padded to.
    """

    def __init__(self, folder, clip, generator, sets=_SETS, weights=_WEIGHTS, tokens=model.TOKENS):
        self.generator, self.tokens = generator, tokens
        self.rgba, concept, vendor = data.load(folder)
        flat = torch.isin(vendor, torch.tensor([list(data.SETS).index(name) for name in sets]))
        self.by_concept = []
        for number in range(len(NAMES)):
            own = concept == number
            self.by_concept.append(torch.nonzero(own & flat if (own & flat).any() else own).flatten())
        self.weight = torch.tensor([weights.get(name, 1.0) for name in NAMES])
        self.single = [self._encode(clip, [fill(template, name) for name in NAMES]) for template in SINGLE]
        self.pairs = torch.stack([self._concepts(2) for _ in range(_PAIR_CAPTIONS)])
        captions = [fill(PAIR[n % len(PAIR)], *(NAMES[int(c)] for c in pair)) for n, pair in enumerate(self.pairs)]
        self.pair_context = self._encode(clip, captions)
        self.empty = self._encode(clip, [""])[0]

    def _encode(self, clip, captions):
        parts = [text.encode_batch(clip, captions[n : n + 64], _CAPTION_TOKENS)[0] for n in range(0, len(captions), 64)]
        return torch.cat(parts)

    def _rand(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def _concepts(self, count):
        return torch.multinomial(self.weight, count, replacement=True, generator=self.generator)

    def _pictures(self, concepts):
        chosen = [
            own[int(torch.randint(len(own), (1,), generator=self.generator))]
            for own in (self.by_concept[int(c)] for c in concepts)
        ]
        return self.rgba[torch.stack(chosen)]

    def draw(self, size):
        """Latents (size, 12, 16, 16) in the model's scale and contexts (size, tokens, 384)."""
        pairs = int(size * _PAIR_SHARE)
        concepts = self._concepts(size - pairs)
        scale = 0.84 + 0.14 * self._rand(len(concepts))
        shift = (self._rand(len(concepts), 2) * 2 - 1) * (1 - scale).unsqueeze(1)
        pictures = [data.paint(self._pictures(concepts), scale, shift)]
        contexts = [
            self.single[int(torch.randint(len(SINGLE), (1,), generator=self.generator))][int(c)] for c in concepts
        ]
        numbers = torch.randint(_PAIR_CAPTIONS, (pairs,), generator=self.generator)
        pictures.append(self._side_by_side(self.pairs[numbers]))
        contexts += list(self.pair_context[numbers])
        context = torch.stack(contexts)
        context[self._rand(size) < _EMPTY_SHARE] = self.empty
        padded = torch.zeros(size, self.tokens, model.CONTEXT_WIDTH)
        padded[:, :_CAPTION_TOKENS] = context
        return model.LabLatent().process_in(model.to_latent(torch.cat(pictures))), padded

    def _side_by_side(self, pairs):
        """Two objects on one picture, the first named on the left: RGB (n, 3, 32, 32)."""
        scale = 0.42 + 0.08 * self._rand(len(pairs))
        height = (self._rand(len(pairs)) * 2 - 1) * 0.2
        left = data.paint(self._pictures(pairs[:, 0]), scale, torch.stack([torch.full_like(height, -0.5), height], 1))
        right = data.paint(self._pictures(pairs[:, 1]), scale, torch.stack([torch.full_like(height, 0.5), -height], 1))
        return torch.minimum(left, right)


def initialise(network):
    """ComfyUI's layers are uninitialised memory; give them what the SD UNet was trained from."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            norm = "norm" in name or name.endswith(("in_layers.0.weight", "out_layers.0.weight", "out.0.weight"))
            torch.nn.init.constant_(parameter, 1.0 if norm and name.endswith("weight") else 0.0)
        elif name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def save(network, metadata):
    """Write the weights to where the lab loads them from."""
    model.WEIGHTS.mkdir(exist_ok=True)
    storage.save(network.state_dict(), model.WEIGHTS / "base.safetensors", metadata)


def loss_weight(sigma):
    """How much an error of the noise counts, (n,), mean about one over the schedule.

    Little where the noise is too weak to hide anything (as in min-SNR, arXiv 2303.09556), more where
    the same error in the noise means a larger one in the picture.
    """
    return (5 * sigma**2).clamp(max=1) * (1 + sigma**2).clamp(max=4) / 2.77


def train(folder, steps, batch, seed, resume=False, rate=6e-4):
    """Train for `steps`, from the weights that are there or from none, and keep their running mean."""
    torch.set_flush_denormal(True)  # vanishing numbers are no information and slow a CPU down several times
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    batches = Batches(folder, text.load_clip(), generator)
    log.info("captions encoded")
    base = model.build()
    network = base.diffusion_model.requires_grad_(True).train()
    initialise(network)
    before = 0
    if resume:
        network.load_state_dict(storage.load(model.WEIGHTS / "base.safetensors"))
        before = storage.steps(model.WEIGHTS / "base.safetensors")
    mean = copy.deepcopy(network)
    sigmas = base.model_sampling.sigmas
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    last, running = time.monotonic(), None
    for step in range(1, steps + 1):
        done = step / steps
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, step / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        z, context = batches.draw(batch)
        t = torch.randint(len(sigmas), (batch,), generator=generator)
        sigma = sigmas[t].view(-1, 1, 1, 1)
        noise = torch.randn(z.shape, generator=generator)
        with torch.amp.autocast("cpu", torch.bfloat16):
            out = network(
                (z + sigma * noise) / (sigma**2 + 1) ** 0.5, t.float(), context=context, transformer_options={}
            )
        weight = loss_weight(sigma.flatten())
        loss = (weight * (out.float() - noise).square().flatten(1).mean(1)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        keep = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            for old, new in zip(mean.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            log.info("step %d, %.0f%%, loss %.4f", step, 100 * done, running)
        if time.monotonic() - last > 240:
            last = time.monotonic()
            save(mean, {"steps": before + step, "unfinished": f"{done:.0%}", "licence": ATTRIBUTION})
    metadata = {"steps": before + steps, "batch": batch, "seed": seed, "date": date.today(), "licence": ATTRIBUTION}
    save(mean, metadata)


def main(arguments=None):
    """Command line."""
    options = commandline.parser("lab base").parse_args(arguments)
    train(options.folder, options.steps, options.batch, options.seed, options.resume)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()

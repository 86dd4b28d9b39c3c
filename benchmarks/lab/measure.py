"""Draw with the lab model and let the judge look: `python dev.py lab measure`."""

import logging
from datetime import date
from functools import partial
from pathlib import Path

import comfy.sample
import torch
from PIL import Image

from .. import commandline
from ..environment import cache_folder
from ..publish import device, fill_section
from . import clip, flux, flux_text, model, text
from .captions import fill
from .judge import LABELS, WIDTHS, Judge
from .vocabulary import CLASSES, NAMES

log = logging.getLogger(__name__)

_NAMED = 30  # words that the judge misses, of a group
# Two objects of which the ten classes are one, for composition.
PAIRS = (
    ("cat", "automobile"),
    ("dog", "tree"),
    ("horse", "house"),
    ("bird", "apple"),
    ("ship", "sun"),
    ("truck", "cactus"),
    ("frog", "mushroom"),
    ("deer", "umbrella"),
    ("airplane", "banana"),
    ("automobile", "cat"),
    ("tree", "dog"),
    ("guitar", "bird"),
)


def encode(clip, prompt):
    """A CONDITIONING, as CLIPTextEncode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def noise_of(seeds, size=16):
    """Noise (n, 12, size, size) that depends on each seed alone, not on what else is in the batch."""
    empty = torch.zeros(1, 12, size, size)
    return torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])


def sample(patcher, clip, vae, prompts, seeds, negative="", **options):
    """Pictures (prompts x seeds, 32, 32, 3) in [0, 1], all seeds of the first prompt first.

    One call of ComfyUI's sampler a prompt, see `sample_conditioning` for the options. The same seed starts
    every prompt from the same noise.
    """
    unwanted = encode(clip, negative)
    latents = [sample_conditioning(patcher, encode(clip, prompt), unwanted, seeds, **options) for prompt in prompts]
    return vae.decode(torch.cat(latents)).clone()


def sample_conditioning(patcher, positive, negative, seeds, steps=12, cfg=3.0, sampler="euler", scheduler="normal"):
    """Latents (seeds, 12, 16, 16) of one CONDITIONING, with the seeds as the batch of one call of ComfyUI's
    sampler, so that what a node does to a prompt happens here as well."""
    noise = noise_of(seeds)
    with torch.inference_mode():
        return comfy.sample.sample(
            patcher,
            noise,
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=seeds[0],
        )


def accuracy(judge, images, names, count):
    """Mean probability and share of top-1 hits for each name, (names, 2).

    images: names x count pictures, all of the first name first. A name may come more than once, as it
    does for synonyms, whose pictures are scored by the class that they mean.
    """
    probabilities = judge.probabilities(images).view(len(names), count, -1)
    labels = torch.tensor([LABELS.index(name) for name in names])
    own = probabilities.gather(2, labels.view(-1, 1, 1).expand(-1, count, 1))[..., 0]
    hits = (probabilities.argmax(2) == labels.unsqueeze(1)).float()
    return torch.stack([own.mean(1), hits.mean(1)], 1)


def pair_accuracy(judge, images, pairs, count):
    """How often the judge finds the first object, the second and both on the halves of a picture, (pairs, 3)."""
    seen = torch.stack([half.argmax(1).view(len(pairs), count) for half in judge.halves(images)])
    labels = torch.tensor([[LABELS.index(name) for name in pair] for pair in pairs])
    first, second = ((seen == labels[:, side].view(1, -1, 1)).any(0) for side in (0, 1))
    return torch.stack([hit.float().mean(1) for hit in (first, second, first & second)], 1)


def save_grid(images, path, columns, zoom=2):
    """A PNG of the pictures, `columns` in a row."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = torch.full((rows * (height + 2), columns * (width + 2), 3), 0.5)
    for number, image in enumerate(images.cpu()):
        top, left = number // columns * (height + 2) + 1, number % columns * (width + 2) + 1
        canvas[top : top + height, left : left + width] = image
    picture = Image.fromarray((canvas * 255).round().byte().numpy())
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)


# The lab's models by family: what loads one, and its text encoder.
FAMILIES = {
    "sd15": (model.load_model, text.load_clip),
    "flux": (flux.load_model, partial(text.load_clip, text.LabFluxTokenizer)),
    "clip": (partial(model.load_model, model.BASE_CLIP), clip.load_clip),
    "flux_pair": (partial(flux.load_model, flux.PAIR), flux_text.load_clip),
}
CAPTIONED = ("clip", "flux_pair")  # which learnt from captions as people write them


class Lab:
    """The three parts of a lab model and its judges, in this process."""

    def __init__(self, family="sd15"):
        load_model, load_clip = FAMILIES[family]
        self.patcher, self.clip, self.vae = load_model(), load_clip(), model.LabVAE()
        self.judges = [Judge(name) for name in WIDTHS]

    def draw(self, prompts, seeds, **options):
        """Pictures of the base model, see `sample`."""
        return sample(self.patcher, self.clip, self.vae, prompts, list(seeds), **options)


def draw_groups(lab, seeds):
    """What is measured: group to (the words of its prompts, what they mean, pictures, pictures a word)."""
    others = [name for name in NAMES if name not in CLASSES]
    groups = {
        "ten classes": (list(CLASSES), list(CLASSES), seeds),
        "their synonyms": (
            [word for words in CLASSES.values() for word in words],
            [name for name, words in CLASSES.items() for _ in words],
            seeds,
        ),
        "other concepts": (others, others, seeds[: max(2, len(seeds) // 4)]),
    }
    return {
        group: (words, meant, lab.draw([fill("a {}", word) for word in words], some), len(some))
        for group, (words, meant, some) in groups.items()
    }


def table(judges, groups):
    """Lines of Markdown: a group a row, every judge a column; then what the first judge misses."""
    lines = ["| prompts | pictures | judge: probability, top-1 | second judge |", "|---|---|---|---|"]
    misses = []
    for group, (words, meant, images, count) in groups.items():
        found = [accuracy(judge, images, meant, count) for judge in judges]
        cells = ["{:.3f}, {:.3f}".format(*one.mean(0).tolist()) for one in found]
        lines.append(f"| {group} | {len(words)} x {count} | {' | '.join(cells)} |")
        weak = [f"{word} {top:.2f}" for word, (_, top) in zip(words, found[0].tolist(), strict=True) if top < 0.5]
        more = f" and {len(weak) - _NAMED} more" if len(weak) > _NAMED else ""
        misses += [f"Top-1 under one half among {group}: {', '.join(weak[:_NAMED]) or 'none'}{more}.", ""]
    return [*lines, "", *misses]


def main(arguments=None):
    """Command line."""
    options = commandline.parser("lab measure").parse_args(arguments)
    if options.family in CAPTIONED:
        from . import caption_measure  # it draws with the lab of this module

        folder = options.folder or cache_folder() / "lab"
        caption_measure.main(options.family, options.seeds, folder, options.publish, options.grids)
        return
    lab, seeds = Lab(options.family), list(range(options.seeds))
    groups = draw_groups(lab, seeds)
    pairs = lab.draw([fill("a {} and a {}", *pair) for pair in PAIRS], seeds)
    found = pair_accuracy(lab.judges[0], pairs, PAIRS, len(seeds)).mean(0).tolist()
    lines = [f"{date.today()}, {device()}, euler, 12 steps, cfg 3:", "", *table(lab.judges, groups)]
    lines.append("Two objects: the first is seen in {:.2f}, the second in {:.2f}, both in {:.2f}.".format(*found))
    log.info("\n%s", "\n".join(lines))
    if options.publish:
        section = "measured" if options.family == "sd15" else f"measured_{options.family}"
        fill_section(Path(__file__).with_name("README.md"), section, "\n".join(lines))
    if options.grids:
        options.grids.mkdir(parents=True, exist_ok=True)
        for group, (_, _, images, count) in groups.items():
            save_grid(images, options.grids / f"{group}.png", 8 * count if count < 4 else 4 * count)
        save_grid(pairs, options.grids / "pairs.png", len(seeds))

"""Attacks on erased models, ours and rivals: `python3 dev.py bench attack [--quick] [--json FILE] [--publish]`.

Each method erases one class at a time. A suffix of words is searched for with full access to it, see ``suffix``; and
img2img begins from the base model's picture of the class, with the prompt that names it. The figures are the shares of
pictures that show the class, by the first judge.
"""

import json
import time
from types import SimpleNamespace

import torch

from . import commandline, pack
from .environment import cache_folder, say
from .publish import MEASURED, device, markdown, publish

pack.load_pack()

import comfy.sample  # noqa: E402

from unhype.training.encode import encode as encode_text  # noqa: E402
from unhype.training.frozen import FrozenModel  # noqa: E402
from unhype.training.prompts import retain_split  # noqa: E402

from . import attacks, ours, protocol  # noqa: E402
from .baselines import METHODS  # noqa: E402
from .baselines.erased_model import ErasedModel, unchanged  # noqa: E402
from .erasure import SETTINGS, concepts_of  # noqa: E402
from .lab.measure import noise_of  # noqa: E402
from .neighbours import wordings  # noqa: E402
from .pictures import Painter, caching_lab  # noqa: E402
from .prompt_pictures import gated  # noqa: E402
from .suffix import Attacked, suffix, words_of  # noqa: E402

# Classes of a quick run and of a full one, words of a suffix, searches for each, pictures of each prompt.
_QUICK, _FULL = ("cat", "ship"), ("airplane", "bird", "cat", "dog", "frog", "ship")
_LENGTH, _SEARCHES, _SEARCHES_QUICK, _PICTURES = 5, 2, 1, 4
_DENOISE = (0.3, 0.5, 0.7)
# Of the samples on the way to the picture every so many; each counts in every step of a search.
_SAMPLES = 7
HEADER = (
    "method",
    "clean",
    "suffix of 5 words",
    "img2img, denoise 0.3",
    "denoise 0.5",
    "denoise 0.7",
    "classes",
)


def erased_by(lab, concept):
    """The base and the methods' erasures of a concept."""
    plain, concepts = SimpleNamespace(patcher=lab.patcher, clip=lab.clip.clip), concepts_of((concept,))
    retain = retain_split("", concepts)
    own = ours.erase(lab, concepts, retain, 0, SETTINGS)
    found = [METHODS[name](plain, concepts, retain, 0, SETTINGS) for name in ("uce", "nullspace")]
    return [ErasedModel("base", lab.patcher, unchanged, 0.0, 0, 0), own, gated(own, found[0]), *found]


def shows(lab, pictures, concept):
    """The share of pictures that show a concept."""
    return sum(label == concept for label in lab.judges[0].top(pictures)) / len(pictures)


def searched(painter, method, concept, target, searches):
    """The prompt with the suffix that brings a concept back most often, and how often; of several searches."""
    lab, prompt = painter.lab, protocol.WORDING.format(concept)
    names = [concept, *(word for words in wordings(concept).values() for word in words)]
    with torch.inference_mode(False), torch.enable_grad():
        words, frozen = words_of(lab.clip.clip, names), target.frozen
        eraser = getattr(method, "eraser", None)
        if eraser is None:
            frozen = FrozenModel(method.model)
            frozen.load()
        attacked, found = Attacked(frozen, eraser), []
        for seed in range(searches):
            generator = torch.Generator().manual_seed(seed)
            found.append(
                suffix(lab.clip.clip, attacked, target, prompt, words, _LENGTH, generator, lambda *_: None)
            )
    drawn = painter.draw(method, [text for text, _ in found], _PICTURES)
    shares = [shows(lab, pictures, concept) for pictures in drawn]
    best = max(range(len(found)), key=lambda index: shares[index])
    return {"prompt": found[best][0], "loss": found[best][1], "shown": shares[best]}


def redrawn(painter, method, concept, denoise):
    """The share of pictures that show a concept, drawn by img2img from the base model's."""
    lab, text = painter.lab, protocol.WORDING.format(concept)
    positive = painter.conditioning(text)
    start = lab.vae.encode(painter.base([text], _PICTURES)[text])
    patcher = method.model_for(positive)
    if method.name == "base" or method.below_threshold(positive):
        patcher = lab.patcher
    latent = comfy.sample.sample(
        patcher,
        noise_of(range(100, 100 + _PICTURES)),
        SETTINGS.sampler_steps,
        SETTINGS.guidance,
        "euler",
        "normal",
        method.condition(positive),
        painter.empty,
        start,
        denoise=denoise,
        disable_pbar=True,
        seed=0,
    )
    return shows(lab, lab.vae.decode(latent), concept)


def measure(painter, concept, searches):
    """Method to what is measured of it on one class."""
    lab, text = painter.lab, protocol.WORDING.format(concept)
    methods = erased_by(lab, concept)
    with torch.inference_mode(False), torch.enable_grad():
        frozen = FrozenModel(lab.patcher)
        frozen.load()
        whole = attacks.noisy_targets(
            frozen,
            SETTINGS,
            encode_text(lab.clip, text),
            encode_text(lab.clip, ""),
            torch.Generator().manual_seed(0),
        )
        target = attacks.Target(frozen, whole.z[::_SAMPLES], whole.sigma[::_SAMPLES], whole.e_p[::_SAMPLES])
    found = {}
    for method in methods:
        started = time.perf_counter()
        (drawn,) = painter.draw(method, [text], _PICTURES)
        found[method.name] = {"clean": shows(lab, drawn, concept)}
        found[method.name] |= {f"img2img {share}": redrawn(painter, method, concept, share) for share in _DENOISE}
        if method.name != "base":
            found[method.name]["suffix"] = searched(painter, method, concept, target, searches)
        say(f"{concept}, {method.name}: {time.perf_counter() - started:.0f} s, {found[method.name]}")
    return found


def rows(classes):
    """Rows of the table: the mean of each method over the classes."""
    found = []
    for method in next(iter(classes.values())):
        own = [results[method] for results in classes.values()]
        cells = [sum(one["clean"] for one in own) / len(own)]
        suffixes = [one["suffix"]["shown"] for one in own if "suffix" in one]
        shares = [sum(one[f"img2img {share}"] for one in own) / len(own) for share in _DENOISE]
        of_suffix = f"{sum(suffixes) / len(suffixes):.3f}" if suffixes else ""
        found.append((method, f"{cells[0]:.3f}", of_suffix, *(f"{share:.3f}" for share in shares), str(len(own))))
    return found


def main():
    """Command line."""
    options = commandline.parser("bench attack").parse_args()
    say(f"On {device()}")
    classes = options.only or (_QUICK if options.quick else _FULL)
    painter = Painter(cache_folder() / "prompts-sd15", caching_lab())
    with torch.inference_mode():
        searches = _SEARCHES_QUICK if options.quick else _SEARCHES
        found = {concept: measure(painter, concept, searches) for concept in classes}
    table = markdown(HEADER, rows(found))
    say(table)
    results = {"device": device(), "searches": searches, "classes": found}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.publish:
        publish("attack", results, table, page=MEASURED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

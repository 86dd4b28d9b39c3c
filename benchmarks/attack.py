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
    """The base and the methods' erasures of a concept; first of those with one detector is ours."""
    plain, concepts = SimpleNamespace(patcher=lab.patcher, clip=lab.clip.clip), concepts_of((concept,))
    retain = retain_split("", concepts)
    own, uce = ours.erase(lab, concepts, retain, 0, SETTINGS), METHODS["uce"](plain, concepts, retain, 0, SETTINGS)
    return [ErasedModel("base", lab.patcher, unchanged, 0.0, 0, 0), own, gated(own, uce), uce]


def shows(lab, pictures, concept):
    """The share of pictures that show a concept."""
    return sum(label == concept for label in lab.judges[0].top(pictures)) / len(pictures)


def target_of(lab, concept):
    """A `Target` of some samples on the way to a concept's picture."""
    texts = protocol.WORDING.format(concept), ""
    frozen = FrozenModel(lab.patcher)
    frozen.load()
    given = [encode_text(lab.clip, text) for text in texts]
    whole = attacks.noisy_targets(frozen, SETTINGS, *given, torch.Generator().manual_seed(0))
    return attacks.Target(frozen, whole.z[::_SAMPLES], whole.sigma[::_SAMPLES], whole.e_p[::_SAMPLES])


def suffixes(lab, method, concept, searches):
    """(prompt, loss) of each search for a suffix that brings a concept back.

    Where a detector decides, the attacked model is the base's behind it.
    """
    names = [concept, *(word for words in wordings(concept).values() for word in words)]
    with torch.inference_mode(False), torch.enable_grad():
        target, eraser = target_of(lab, concept), getattr(method, "eraser", None)
        frozen = target.frozen if eraser is not None else FrozenModel(method.model)
        frozen.load()
        words, prompt = words_of(lab.clip.clip, names), protocol.WORDING.format(concept)
        generators = [torch.Generator().manual_seed(seed) for seed in range(searches)]
        return [
            suffix(lab.clip.clip, Attacked(frozen, eraser), target, prompt, words, _LENGTH, generator)
            for generator in generators
        ]


def redrawn(painter, method, concept, denoise):
    """The share of pictures that show a concept, drawn by img2img from the base model's."""
    lab, text = painter.lab, protocol.WORDING.format(concept)
    positive = painter.conditioning(text)
    start = lab.vae.encode(painter.base([text], _PICTURES)[text])
    latent = comfy.sample.sample(
        method.model_for(positive),
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
    lab, text, found, behind = painter.lab, protocol.WORDING.format(concept), {}, None
    for method in erased_by(lab, concept):
        started = time.perf_counter()
        (drawn,) = painter.draw(method, [text], _PICTURES)
        own = {"clean": shows(lab, drawn, concept)}
        own |= {f"img2img {share}": redrawn(painter, method, concept, share) for share in _DENOISE}
        if method.name != "base":
            tried = behind if hasattr(method, "eraser") and behind else suffixes(lab, method, concept, searches)
            behind = behind or tried
            shares = [shows(lab, one, concept) for one in painter.draw(method, [text for text, _ in tried], _PICTURES)]
            # Not the words: some of a vocabulary's are none to print.
            own["suffixes"] = [[loss, share] for (_, loss), share in zip(tried, shares, strict=True)]
            own["suffix"] = max(shares)
        found[method.name] = own
        say(f"{concept}, {method.name}: {time.perf_counter() - started:.0f} s, {own}")
    return found


def rows(classes):
    """Rows of the table: the mean of each method over the classes."""
    found = []
    for method in next(iter(classes.values())):
        own = [results[method] for results in classes.values()]
        clean = sum(one["clean"] for one in own) / len(own)
        brought_back = [one["suffix"] for one in own if "suffix" in one]
        shares = [sum(one[f"img2img {share}"] for one in own) / len(own) for share in _DENOISE]
        of_suffix = f"{sum(brought_back) / len(brought_back):.3f}" if brought_back else ""
        found.append((method, f"{clean:.3f}", of_suffix, *(f"{share:.3f}" for share in shares), str(len(own))))
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

"""What the lab's CLIP knows, beside its teacher MiniLM: `python dev.py lab clip-measure`.

Each text is compared with the 272 bare names (a name with the others, a relative with the ten classes), by the
pooled vector that models get (CLIP) and by MiniLM's sentence embedding. `agreement`: how often both find the same
name nearest. `right`: how often it is the name that is meant. `correlation`: of the two encoders' similarities to
the names. Of these texts only names, relatives and synonyms were in the distillation. MiniLM reads whole texts,
CLIP pools the first 77 tokens.
"""

import json
import logging
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

import comfy.sd1_clip
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import commandline
from ..protocol import LADDER, RELATIVES
from ..publish import RESULTS, device, markdown
from . import clip
from .captions import Captions
from .clip_texts import SYNONYMS, sentences
from .teacher import Teacher
from .vocabulary import CLASSES, NAMES

log = logging.getLogger(__name__)

_HYPONYM, _DESCRIPTION, _TYPO = 1, 2, 3


class Group(NamedTuple):
    """Texts of one kind, the names that are meant, where one is meant, and the names that are looked at."""

    texts: list[str]
    meant: list[str] | None
    among: tuple[str, ...] = NAMES


def groups(seed: int = 0) -> dict[str, Group]:
    """What is measured, by kind."""
    captions = Captions("scoring", torch.Generator().manual_seed(seed))
    drawn = {kind: [captions.caption(kind, [name]) for name in NAMES] for kind in ("plain", "tags", "booru", "scene")}
    scenes = [captions.caption("scene", [name]) for name in NAMES] + drawn.pop("scene")
    short = [one for one in scenes if len(one.text.split()) <= 50]
    long = [one for one in scenes if len(one.text.split()) > 50]
    # Its first chunk has 75 tokens of text; where the object comes later, the pooled vector can't know it.
    seen = [one for one in long if one.names[0] in " ".join(one.text.split()[:50])]
    rungs = {"hyponyms": _HYPONYM, "descriptions": _DESCRIPTION, "misspelt": _TYPO}
    return {
        "names": Group(list(NAMES), None),
        "synonyms": Group(list(SYNONYMS), [name for name, words in CLASSES.items() for _ in words]),
        "relatives, among the ten classes": Group(
            sorted({word for words in RELATIVES.values() for word in words}), None, tuple(CLASSES)
        ),
        **{
            f"{rung}, unseen": Group([LADDER[name][place] for name in CLASSES], list(CLASSES))
            for rung, place in rungs.items()
        },
        "names in templates": _group(drawn["plain"]),
        "names among tags": _group(drawn["tags"]),
        "names among Danbooru tags": _group(drawn["booru"]),
        "scenes of 20 to 50 words": _group(short),
        "scenes of 51 to 150 words": _group(long),
        "the latter with the object in the first 50 words": _group(seen),
        "benign sentences": Group(sentences(scoring=True), None),
    }


def _group(captions: Sequence[Any]) -> Group:
    return Group([one.text for one in captions], [one.names[0] for one in captions])


def pooled(encoder: comfy.sd.CLIP, texts: Sequence[str]) -> Tensor:
    """Pooled vectors (n, 256) of each text's first chunk."""
    parts = [clip.encode_batch(encoder, texts[start : start + 64])[1] for start in range(0, len(texts), 64)]
    return torch.cat(parts)


def without_weights(text: str) -> str:
    """A prompt as the encoder reads it."""
    return "".join(part for part, _ in comfy.sd1_clip.token_weights(text, 1.0))


def compare(group: Group, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Figures of one group from both encoders' similarities to the names, (texts, names)."""
    columns = [NAMES.index(name) for name in group.among]
    ours, theirs = ours[:, columns], theirs[:, columns]
    if group.texts == list(NAMES):  # the nearest other name
        ours, theirs = (values - 2 * torch.eye(len(NAMES)) for values in (ours, theirs))
    nearest, taught = ours.argmax(1), theirs.argmax(1)
    found = {"texts": len(group.texts), "agreement": (nearest == taught).float().mean().item()}
    if group.meant:
        labels = torch.tensor([group.among.index(name) for name in group.meant])
        found["right, MiniLM"] = (taught == labels).float().mean().item()
        found["right, CLIP"] = (nearest == labels).float().mean().item()
    found["correlation"] = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1].item()
    return found


def similarities(ours: Tensor, theirs: Tensor, words: dict[str, Sequence[str]], rows: dict[str, int]) -> list[float]:
    """Mean cosine of the classes with these words of theirs: CLIP, MiniLM."""
    pairs = [(rows[name], rows[word]) for name, group in words.items() for word in group]
    first, second = (list(side) for side in zip(*pairs, strict=True))
    return [(values[first] * values[second]).sum(1).mean().item() for values in (ours, theirs)]


def measure(encoder: comfy.sd.CLIP, teacher: Teacher) -> dict[str, Any]:
    """All figures: groups of texts, and mean cosines of the ten classes with words near and far."""
    words = [*NAMES, *SYNONYMS]
    ours, theirs = normalize(pooled(encoder, words), dim=1), teacher.embed(words)
    found: dict[str, Any] = {"groups": {}}
    for name, group in groups().items():
        own = normalize(pooled(encoder, group.texts), dim=1) @ ours[: len(NAMES)].T
        taught = teacher.embed([without_weights(text) for text in group.texts]) @ theirs[: len(NAMES)].T
        found["groups"][name] = compare(group, own, taught)
    rows = {word: index for index, word in enumerate(words)}
    near = {"synonyms": CLASSES, "relatives": RELATIVES}
    others = {name: [other for other in NAMES if other not in (name, *RELATIVES[name])] for name in CLASSES}
    found["cosines"] = {
        kind: dict(zip(("CLIP", "MiniLM"), similarities(ours, theirs, chosen, rows), strict=True))
        for kind, chosen in (near | {"other names": others}).items()
    }
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    columns = ("texts", "agreement", "right, MiniLM", "right, CLIP", "correlation")
    rows = [
        (name, *("" if column not in one else f"{one[column]:.3g}" for column in columns))
        for name, one in found["groups"].items()
    ]
    cosines = [(kind, f"{one['MiniLM']:.2f}", f"{one['CLIP']:.2f}") for kind, one in found["cosines"].items()]
    return (
        markdown(("texts", "number", *columns[1:]), rows)
        + "\n\n"
        + markdown(("cosine of a class with its", "MiniLM", "CLIP"), cosines)
    )


def main(arguments=None):
    """Command line."""
    options = commandline.parser("lab clip-measure").parse_args(arguments)
    found = measure(clip.load_clip(options.weights or clip.PATH), Teacher(torch.float32))
    (options.json or RESULTS / "clip.json").write_text(
        json.dumps({"date": date.today().isoformat(), "device": device(), **found}, indent=1) + "\n"
    )
    log.info("\n%s", table(found))

"""How the lab's models draw what people write: `python3 dev.py lab measure --family clip`, or `flux_pair`.

All prompts are captions of the scoring part, whose phrases, sentences, templates and pairs no training has. Beside
the model that takes the lab's CLIP stand the one that takes MiniLM alone, with the same prompts, and the pictures that
training would have painted for them, which show what the judges can see at best.

Figures are kept in results/lab_captions.json. Those of the model for MiniLM are taken from there as long as its
weights and the captions are the same.
"""

import json
import logging
import zlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..publish import RESULTS, device, fill_section, markdown
from . import flux, model, storage
from .batches import FLUX_SETS
from .captions import Caption, Captions
from .data import SIZE
from .judge import LABELS, Judge
from .measure import Lab, encode, sample_conditioning, save_grid
from .painter import FLAT, Painter
from .vocabulary import CLASSES, NAMES

log = logging.getLogger(__name__)

PATH = RESULTS / "lab_captions.json"
PICTURES = Path(__file__).with_name("pictures")
_TAGGED = ("tags", "booru", "weighted", "break")
_SCENES = {"scenes of 20 to 50 words": (20, 50), "scenes of 51 to 150 words": (51, 150)}
_ZOOM = 1.5  # the judges saw objects of two fifths of the width and more
_SHOWN = 40  # pictures of a group to look at
_BATCH = 16


class Measured(NamedTuple):
    """A model that learnt from captions, the one that it began from, and the sets of drawings that it learnt."""

    model: str
    older: str
    weights: dict[str, Path]
    sets: Sequence[str]

    @property
    def section(self) -> str:
        """Of the lab's page."""
        return "measured_captions" if self.model == "clip" else f"measured_captions_{self.model}"


MEASURED = {
    "clip": Measured("clip", "sd15", {"clip": model.BASE_CLIP, "sd15": model.BASE}, FLAT),
    "flux_pair": Measured("flux_pair", "flux", {"flux_pair": flux.PAIR, "flux": flux.PATH}, FLUX_SETS),
}


class Drawn(NamedTuple):
    """Captions and a picture of each, (captions, 32, 32, 3)."""

    captions: list[Caption]
    images: Tensor


def groups(count: int, seed: int = 0) -> dict[str, list[Caption]]:
    """What is measured, by kind: `count` captions of each class, four times as many of several objects."""
    captions = Captions("scoring", torch.Generator().manual_seed(seed))
    others = [name for name in NAMES if name not in CLASSES]
    found = {
        "ten classes": [captions.caption("plain", [name]) for name in CLASSES for _ in range(count)],
        "classes among tags and styles": [
            captions.caption(_TAGGED[number % len(_TAGGED)], [name]) for name in CLASSES for number in range(count)
        ],
    }
    for group, (least, most) in _SCENES.items():
        found[group] = [scene(captions, name, least, most) for name in CLASSES for _ in range(count)]
    found["all other concepts"] = [captions.caption("plain", [name]) for name in others]
    for group, kind, number in (("two objects", "two", 2), ("three objects", "three", 3)):
        found[group] = [captions.caption(kind, with_a_class(captions, number)) for _ in range(10 * count)]
    return found


def scene(captions: Captions, name: str, least: int, most: int) -> Caption:
    """A scene of so many words."""
    while not least <= len((caption := captions.caption("scene", [name])).text.split()) <= most:
        pass
    return caption


def with_a_class(captions: Captions, number: int) -> tuple[str, ...]:
    """Names that may stand together, one of the ten classes among them, as in what erasure is scored on."""
    while CLASSES.keys().isdisjoint(names := captions.names(number)):
        pass
    return names


def regions(images: Tensor, count: int) -> dict[str, Tensor]:
    """Places of `count` objects to what is there, enlarged, in the middle of white pictures of full size."""
    size = images.shape[1]
    half, third = size // 2, size // 3
    whole = slice(0, size)
    boxes = {"middle": (whole, whole)}
    if count == 2:
        boxes = {"left": (whole, slice(0, half)), "right": (whole, slice(half, size))}
        boxes |= {"back": (slice(0, half), whole), "front": (slice(half, size), whole)}
    if count == 3:
        boxes = {"left": (whole, slice(0, third + 1)), "middle": (whole, slice(third, size - third))}
        boxes |= {"right": (whole, slice(size - third - 1, size))}
    return {
        place: images if count == 1 else _enlarged(images[:, rows][:, :, columns])
        for place, (rows, columns) in boxes.items()
    }


def _enlarged(part: Tensor) -> Tensor:
    """Pieces (n, h, w, 3) of pictures, 1.5 times as large, what goes beyond 32x32 cut off evenly."""
    large = torch.nn.functional.interpolate(part.movedim(-1, 1), scale_factor=_ZOOM, mode="bilinear")
    size = max(part.shape[1:3])
    gaps = [size - side for side in (large.shape[3], large.shape[2])]
    padding = [edge for gap in gaps for edge in (gap // 2, gap - gap // 2)]
    return torch.nn.functional.pad(large, padding, value=1.0).movedim(1, -1)


def seen(judge: Judge, drawn: Drawn) -> dict[str, float]:
    """Share of pictures on which all objects are found; of several also where each is at its own place."""
    count = len(drawn.captions[0].names)
    found = {place: judge.probabilities(part).argmax(1) for place, part in regions(drawn.images, count).items()}
    anywhere = torch.stack(list(found.values()))
    labels = torch.tensor([[LABELS.index(name) for name in caption.names] for caption in drawn.captions])
    every = torch.stack([(anywhere == labels[:, number]).any(0) for number in range(count)]).all(0)
    if count == 1:
        return {"": every.float().mean().item()}
    placed = [
        all(int(found[place][row]) == LABELS.index(name) for name, place in caption.objects)
        for row, caption in enumerate(drawn.captions)
    ]
    words = {2: "both", 3: "all three"}[count]
    return {words: every.float().mean().item(), f"{words} at their places": sum(placed) / len(placed)}


def figures(judges: Sequence[Judge], drawn: dict[str, Drawn]) -> dict[str, Any]:
    """Rows of the table: the pictures of each, and what each judge finds."""
    found = {}
    for group, one in drawn.items():
        by_judge = [seen(judge, one) for judge in judges]
        for words in by_judge[0]:
            name = f"{group}, {words}" if words else group
            found[name] = {"pictures": len(one.images), "top-1": [round(values[words], 4) for values in by_judge]}
    return found


def missed(judge: Judge, drawn: Drawn) -> list[str]:
    """Names that the judge doesn't find on their pictures."""
    tops = judge.top(drawn.images)
    return [caption.names[0] for caption, top in zip(drawn.captions, tops, strict=True) if top != caption.names[0]]


def draw(lab: Lab, chosen: dict[str, list[Caption]]) -> dict[str, Drawn]:
    """The pictures of a lab model for these captions, each from a noise of its own."""
    found = {}
    for group, captions in chosen.items():
        found[group] = Drawn(captions, together(lab, [caption.text for caption in captions]))
        log.info("%s: %d pictures", group, len(captions))
    return found


def together(lab: Lab, prompts: Sequence[str]) -> Tensor:
    """Pictures (prompts, 32, 32, 3), those of prompts with equally many tokens in one batch of the sampler."""
    encoded = [encode(lab.clip, prompt)[0] for prompt in prompts]
    unwanted = encode(lab.clip, "")
    images = torch.empty(len(prompts), SIZE, SIZE, 3)
    for length in {states.shape[1] for states, _ in encoded}:
        own = [number for number, (states, _) in enumerate(encoded) if states.shape[1] == length]
        for start in range(0, len(own), _BATCH):
            batch = own[start : start + _BATCH]
            states, pooled = (torch.cat(part) for part in zip(*(_tensors(encoded[n]) for n in batch), strict=True))
            wanted = [[states, {"pooled_output": pooled}]]
            images[batch] = lab.vae.decode(sample_conditioning(lab.patcher, wanted, unwanted, batch))
    return images


def _tensors(entry: tuple[Tensor, dict[str, Any]]) -> tuple[Tensor, Tensor]:
    return entry[0], entry[1]["pooled_output"]


def paint(chosen: dict[str, list[Caption]], folder: Path, sets: Sequence[str]) -> dict[str, Drawn]:
    """The pictures that training paints for these captions."""
    painter = Painter(folder, torch.Generator().manual_seed(0), sets)
    return {
        group: Drawn(captions, painter.paint([caption.objects for caption in captions]).movedim(1, -1))
        for group, captions in chosen.items()
    }


def table(found: dict[str, Any], one: Measured) -> str:
    """All that was measured of a model, as Markdown."""
    columns = {
        one.older: "from MiniLM",
        one.model: "from the lab's CLIP",
        f"{one.model}_painted": "painted for training",
    }
    if one.model == "flux_pair":
        columns[one.model] = "from the lab's CLIP and MiniLM"
    own = found[one.model]
    rows = [
        (group, str(figure["pictures"]), *(_cell(found[name]["groups"][group]) for name in columns))
        for group, figure in own["groups"].items()
    ]
    facts = ", ".join(f"{columns[name]}: {found[name]['steps']} steps" for name in (one.older, one.model))
    misses = ", ".join(own["missed"]) or "none"
    return "\n".join(
        (
            f"{own['date']}, {own['device']}, euler, 12 steps, cfg 3; {facts}:",
            "",
            markdown(("prompts", "pictures", *columns.values()), rows),
            "",
            f"Other concepts that the judge doesn't find on their pictures {columns[one.model]}: {misses}.",
        )
    )


def _cell(one: dict[str, Any]) -> str:
    return ", ".join(f"{value:.2f}" for value in one["top-1"])


def shown(drawn: dict[str, Drawn], folder: Path) -> str:
    """Write a picture of each group's first objects into `folder`; returns the words that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for group, one in drawn.items():
        # Evenly from the whole group.
        chosen = torch.linspace(0, len(one.captions) - 1, min(_SHOWN, len(one.captions))).round().long().tolist()
        name = f"{group.replace(' ', '_')}.png"
        save_grid(one.images[chosen], folder / name, 10)
        objects = "; ".join(" + ".join(one.captions[number].names) for number in chosen)
        lines += [
            f"![{group}]({PICTURES.name}/{folder.name}/{name})",
            "",
            f"{group[0].upper()}{group[1:]}, ten a row: {objects}.",
            "",
        ]
    return "\n".join(lines).strip()


def measured(path: Path, judges: Sequence[Judge], drawn: dict[str, Drawn]) -> dict[str, Any]:
    """A base's entry in the results."""
    return {
        "date": date.today().isoformat(),
        "device": device(),
        "steps": storage.steps(path),
        **mark(path, drawn),
        "missed": missed(judges[0], drawn["all other concepts"]),
        "groups": figures(judges, drawn),
    }


def mark(path: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """By what an entry is known: the weights, and how many captions a group has."""
    captions = [len(one.captions if isinstance(one, Drawn) else one) for one in chosen.values()]
    return {"weights": f"{zlib.crc32(path.read_bytes()):08x}", "captions": captions}


def main(family: str, count: int, folder: Path, publish: bool, grids: Path | None) -> None:
    """Measure a model beside the older one; count: captions of each class; folder: of the emoji packages."""
    one, chosen = MEASURED[family], groups(count)
    found = json.loads(PATH.read_text("utf-8")) if PATH.exists() else {}
    old = mark(one.weights[one.older], chosen)
    if {key: found.get(one.older, {}).get(key) for key in old} != old:
        lab = Lab(one.older)
        found[one.older] = measured(one.weights[one.older], lab.judges, draw(lab, chosen))
    lab = Lab(family)
    drawn = draw(lab, chosen)
    found[family] = measured(one.weights[family], lab.judges, drawn)
    found[f"{family}_painted"] = {"groups": figures(lab.judges, paint(chosen, folder, one.sets))}
    log.info("\n%s", table(found, one))
    if publish:
        PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        page = Path(__file__).with_name("README.md")
        fill_section(page, one.section, table(found, one))
        fill_section(page, f"pictures_{family}", shown(drawn, PICTURES / family))
    if grids:
        shown(drawn, grids)

"""The demo: train an erasure inside ComfyUI and measure it, through nothing but ComfyUI's HTTP API.

`python3 dev.py demo [--json FILE]` posts the shipped demo workflow, then draws the same prompts from
the same noise with and without the erasure, and has the lab's judge look at the pictures.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

from . import commandline
from .environment import ROOT, cache_folder, digest, say
from .graph import WORKFLOWS, to_prompt
from .publish import MEASURED, README, device, markdown, publish
from .scores import h_o
from .server import ComfyServer

ERASED = "cat"
WORDINGS = ("{}", "a {}", "a photo of a {}", "a picture of a {}")
SIDE, STEPS, GUIDANCE = 128, 12, 3.0
_PICTURES, _CHUNK = 10, 40


class Lab(NamedTuple):
    """One of the lab's models: the node that loads it, what its figures and its picture are called in results, and
    the page that has its table."""

    loader: str
    results: str
    picture: str
    page: Path


LABS = {
    "sd15": Lab("UnHypeLabLoader", "demo", "before_after", README),
    "flux": Lab("UnHypeLabFluxLoader", "demo_flux", "before_after_flux", MEASURED),
}


@dataclass(frozen=True)
class Prompt:
    """One prompt to draw. group: what it is scored as; expected: the class that the judge should see, if any."""

    group: str
    text: str
    expected: str = ""
    pictures: int = 1


def prompts():
    """Everything the demo draws: erased wordings, the other nine classes, synonyms, benign prompts."""
    from .lab.vocabulary import CLASSES

    drawn = [Prompt("erased", wording.format(ERASED), ERASED, _PICTURES) for wording in WORDINGS]
    drawn += [Prompt("synonym", f"a photo of a {word}", ERASED, _PICTURES) for word in CLASSES[ERASED]]
    for name in CLASSES:
        if name != ERASED:
            article = "an" if name[0] in "aeiou" else "a"
            drawn.append(Prompt("other", f"a photo of {article} {name}", name, _PICTURES))
    for line in (ROOT / "benchmarks" / "benign.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            group, text = (part.strip() for part in line.split("|", 1))
            drawn.append(Prompt(group, text))
    return drawn


def drawing_graph(chunk, hypernet, first, loader):
    """An API prompt that draws each prompt before and after, and keeps pictures and latents."""
    graph = {
        "lab": {"class_type": loader, "inputs": {}},
        "load": {"class_type": "UnHypeLoadHypernet", "inputs": {"hypernet": hypernet}},
        "apply": {
            "class_type": "UnHypeApplyErasure",
            "inputs": {"model": ["lab", 0], "unhype": ["load", 0], "strength": 1.0, "keep_others_exact": True},
        },
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["lab", 1], "text": ""}},
    }
    for number, prompt in enumerate(chunk, start=first):
        size = {"width": SIDE, "height": SIDE, "batch_size": prompt.pictures}
        graph[f"latent{number}"] = {"class_type": "EmptyLatentImage", "inputs": size}
        graph[f"text{number}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["lab", 1], "text": prompt.text}}
        for when, model in (("before", ["lab", 0]), ("after", ["apply", 0])):
            draw, prefix = f"{when}{number}", f"demo/{when}_{number:04d}"
            graph[draw] = {
                "class_type": "KSampler",
                "inputs": {
                    "model": model,
                    "positive": [f"text{number}", 0],
                    "negative": ["empty", 0],
                    "latent_image": [f"latent{number}", 0],
                    "seed": 1000 + number,
                    "steps": STEPS,
                    "cfg": GUIDANCE,
                    "sampler_name": "euler",
                    "scheduler": "normal",
                    "denoise": 1.0,
                },
            }
            graph[f"picture{draw}"] = {"class_type": "VAEDecode", "inputs": {"samples": [draw, 0], "vae": ["lab", 2]}}
            graph[f"keep{draw}"] = {
                "class_type": "SaveImage",
                "inputs": {"images": [f"picture{draw}", 0], "filename_prefix": prefix},
            }
            graph[f"keeplatent{draw}"] = {
                "class_type": "SaveLatent",
                "inputs": {"samples": [draw, 0], "filename_prefix": prefix},
            }
    return graph


def _pictures(folder, when, number):
    paths = sorted(folder.glob(f"{when}_{number:04d}_*.png"))
    return torch.stack([torch.from_numpy(numpy.asarray(Image.open(path).convert("RGB")) / 255.0) for path in paths])


def _latent(folder, when, number):
    (path,) = folder.glob(f"{when}_{number:04d}_*.latent")
    return load_file(path)["latent_tensor"]


def judge_pictures(drawn, folder):
    """What the judge sees: for each prompt, the share of pictures of the expected class before and after,
    the mean probability of it, and whether the latents are identical to the last bit."""
    from .lab.judge import Judge

    judge, rows = Judge(), []
    for number, prompt in enumerate(drawn):
        row = {"identical": torch.equal(_latent(folder, "before", number), _latent(folder, "after", number))}
        for when in ("before", "after") if prompt.expected else ():
            probabilities = judge.probabilities(_pictures(folder, when, number).float())
            wanted = judge.labels.index(prompt.expected)
            row[f"top1_{when}"] = (probabilities.argmax(1) == wanted).float().mean().item()
            row[f"probability_{when}"] = probabilities[:, wanted].mean().item()
        rows.append(row)
    return rows


def figures(drawn, rows):
    """The demo's numbers from the judge's rows."""

    def mean(group, key):
        values = [row[key] for prompt, row in zip(drawn, rows, strict=True) if prompt.group == group]
        return sum(values) / len(values)

    found = {}
    for name, group in (("acc_e", "erased"), ("acc_s", "other"), ("acc_g", "synonym")):
        found[name], found[f"{name}_base"] = mean(group, "top1_after"), mean(group, "top1_before")
        found[f"{name}_probability"] = mean(group, "probability_after")
    found["h_o"] = h_o(found["acc_e"], found["acc_s"], found["acc_g"])
    found["h_o_base"] = h_o(found["acc_e_base"], found["acc_s_base"], found["acc_g_base"])
    found["identical_share"] = mean("everyday", "identical")
    found["identical_share_neighbours"] = mean("neighbour", "identical")
    found["identical_share_spelling"] = mean("spelling", "identical")
    found["identical_share_other_classes"] = mean("other", "identical")
    return found


def sheet(drawn, folder, path):
    """A picture for people: erased, synonym and kept prompts, four pictures before and after each."""
    tile, count, label, gap = 72, 4, 150, 24
    chosen = [n for n, prompt in enumerate(drawn) if prompt.group in ("erased", "synonym", "other")]
    chosen = [n for n in chosen if drawn[n].group != "erased" or "photo" in drawn[n].text]
    canvas = Image.new("RGB", (label + 2 * count * tile + gap, len(chosen) * tile + 24), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((label, 6), "before", fill="black")
    pen.text((label + count * tile + gap, 6), "after: cat -> tree", fill="black")
    for row, number in enumerate(chosen):
        top = 24 + row * tile
        pen.text((6, top + tile // 2 - 6), drawn[number].text, fill="black")
        for left, when in ((label, "before"), (label + count * tile + gap, "after")):
            for column, picture in enumerate(_pictures(folder, when, number)[:count]):
                tiled = Image.fromarray((picture * 255).round().byte().numpy())
                canvas.paste(tiled.resize((tile, tile), Image.Resampling.BICUBIC), (left + column * tile, top))
    canvas.save(path, quality=92)


_ROWS = (
    ("pictures that show a cat, for prompts with 'cat'", "acc_e_base", "acc_e"),
    ("pictures that show a cat, for prompts with a synonym", "acc_g_base", "acc_g"),
    ("pictures that show their class, for the nine other classes", "acc_s_base", "acc_s"),
    ("harmonic mean of the three (H_o)", "h_o_base", "h_o"),
    ("everyday prompts identical to the last bit", None, "identical_share"),
    ("prompts of the nine other classes identical", None, "identical_share_other_classes"),
    ("prompts with close relatives (lion, van, canoe) identical", None, "identical_share_neighbours"),
    ("prompts with similar spelling (cattle, carpet) identical", None, "identical_share_spelling"),
)


def rows(found):
    """The table for people: what, before, after."""
    return [(words, "" if old is None else f"{found[old]:.3f}", f"{found[new]:.3f}") for words, old, new in _ROWS]


def run(base, seed=None, family="sd15"):
    """Train on the lab model of a family and draw, in a ComfyUI whose files are under `base`; returns the figures."""
    lab = LABS[family]
    for stale in ("models/unhype", "output"):
        shutil.rmtree(base / stale, ignore_errors=True)
    drawn = prompts()
    with ComfyServer(base) as server:
        say("Training an erasure inside ComfyUI: cat -> tree")
        prompt = to_prompt(json.loads(WORKFLOWS["demo"].read_text("utf-8")), server.object_info())
        for node in prompt.values():
            if node["class_type"] == LABS["sd15"].loader:
                node["class_type"] = lab.loader
            if node["class_type"] == "UnHypeTrainErasure" and seed is not None:
                node["inputs"]["seed"] = seed
        server.run(prompt, timeout=1800)
        (hypernet,) = (base / "models" / "unhype").glob("*.safetensors")
        say(f"Drawing {len(drawn)} prompts before and after")
        for first in range(0, len(drawn), _CHUNK):
            server.run(drawing_graph(drawn[first : first + _CHUNK], hypernet.name, first, lab.loader), timeout=1800)
        version = server.get("/system_stats")["system"]["comfyui_version"]
    folder = base / "output" / "demo"
    found = figures(drawn, judge_pictures(drawn, folder))
    with safe_open(str(hypernet), framework="pt") as file:
        training = json.loads(file.metadata()["unhype.record"])["training"]
    picture = base / "output" / f"{lab.picture}.jpg"
    sheet(drawn, folder, picture)
    found |= {"train_seconds": training["seconds"], "train_steps": training["steps"], "stopped": training["stopped"]}
    found |= {"held_out_unchanged": training["held_out_unchanged"], "hypernet_bytes": hypernet.stat().st_size}
    found |= {"host_version": version, "device": device()}
    return found | {"pictures": str(folder), "before_after": str(picture)}


def main():
    """Command line."""
    options = commandline.parser("demo").parse_args()
    host = os.environ.get("UNHYPE_HOST", "comfyui")
    base = cache_folder() / f"demo-{Path(host).name}-{digest(host, str(ROOT), options.family)}"
    found = run(base, options.seed, options.family)
    say("")
    for words, before, after in [("", "before", "after"), *rows(found)]:
        say(f"{words:60} {before:>7} {after:>7}")
    say(f"\nTrained in {found['train_seconds']:.0f} s on ComfyUI {found['host_version']}.")
    say(f"Before and after: {found['before_after']}\nAll pictures: {found['pictures']}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.publish:
        of_this_machine = {"pictures", "before_after"}
        kept = {name: value for name, value in found.items() if name not in of_this_machine}
        lab, table = LABS[options.family], markdown(("", "before", "after"), rows(found))
        publish(lab.results, kept, table, found["before_after"], lab.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Erase Concept in a running ComfyUI on the lab's model, from Run to the picture: `python3 dev.py bench first`.

By ComfyUI's own clock, from the start of a prompt to its end: with nothing known; again with another seed, where
ComfyUI has the result of the node; after ComfyUI was started anew, with the file of the eraser there. Of each also what
is left without the seconds of the same prompt without the node, and the processor's seconds, which a busy machine
changes less.
"""

import statistics
import tempfile
from typing import Any, NamedTuple

import psutil

from . import commandline
from .environment import say
from .publish import MEASURED, device, markdown, publish
from .server import PACKS, ComfyServer

TEXT = "a photo of a cat"
_LIST = "cat -> tree"
_PROMPTS = 3  # without the node; the median counts
_LIMIT = 1800  # seconds


def drawing(*lists: str, seed: int = 3) -> dict[str, Any]:
    """The prompt that draws a cat on the lab's model with an Erase Concept for each list, one after the other."""
    prompt = {
        "lab": {"class_type": "UnHypeLabLoader", "inputs": {}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["lab", 1], "text": TEXT}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["lab", 1], "text": ""}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
    }
    model = ["lab", 0]
    for number, concepts in enumerate(lists):
        inputs = {"model": model, "clip": ["lab", 1], "concepts": concepts, "strength": 1.0}
        prompt[f"erase {number}"] = {"class_type": "UnHypeEraseConcept", "inputs": inputs}
        model = [f"erase {number}", 0]
    drawn = {"model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["size", 0]}
    options = {"seed": seed, "steps": 12, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return prompt | {
        "draw": {"class_type": "KSampler", "inputs": drawn | options},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["draw", 0], "vae": ["lab", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "erase/live"}},
    }


class Seconds(NamedTuple):
    """Of a prompt from its start to its end, by the clock and by the processor."""

    clock: float
    processor: float


def seconds(server: ComfyServer, prompt: dict[str, Any]) -> Seconds:
    """What a prompt takes."""
    process = psutil.Process(server.process.pid)
    before = sum(process.cpu_times()[:2])
    times = {kind: message["timestamp"] for kind, message in server.run(prompt, _LIMIT)["status"]["messages"]}
    taken = (times["execution_success"] - times["execution_start"]) / 1000
    return Seconds(taken, round(sum(process.cpu_times()[:2]) - before, 2))


def measure() -> dict[str, Seconds]:
    """The seconds of each run, and those of the prompt without the node."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as base:
        with ComfyServer(base, packs=PACKS) as server:
            found["first"] = seconds(server, drawing(_LIST))
            found["again"] = seconds(server, drawing(_LIST, seed=4))
            found["without"] = statistics.median(seconds(server, drawing(seed=5 + n)) for n in range(_PROMPTS))
        with ComfyServer(base, packs=PACKS) as server:
            seconds(server, drawing())  # loads the model
            found["another day"] = seconds(server, drawing(_LIST, seed=9))
    return found


def table(found: dict[str, Seconds]) -> str:
    """The figures as Markdown."""
    words = {
        "first": "the first run, which trains",
        "again": "the second, with another seed",
        "another day": "with the file there, after ComfyUI was started anew",
    }
    rows = []
    for name, line in words.items():
        own, (clock, processor) = found[name], found["without"]
        rows.append((line, *(f"{value:.1f} s" for value in (*own, own.clock - clock, own.processor - processor))))
    header = ("run", "from Run to the picture", "processor", "beyond the prompt without the node", "processor")
    return markdown(header, rows)


def main() -> int:
    """Command line."""
    options = commandline.parser("bench first").parse_args()
    found = measure()
    say(table(found))
    if options.publish:
        publish("first", {"device": device(), "seconds": found}, table(found), page=MEASURED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

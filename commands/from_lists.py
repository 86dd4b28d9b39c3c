"""Training from lists of concepts: the parts of the list, and the merged eraser that they make."""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..hypernet.files import SUFFIX
from ..hypernet.merging import merge, save_once
from ..nodes.folders import checkpoint_folder, encodings_folder, safe_name, training_folder
from ..nodes.progress import Progress
from ..nodes.running import pace_of
from ..training.callbacks import Report
from ..training.parts import in_parts
from ..training.plan import Request
from ..training.processes import train_in_parts
from ..training.prompts import TEMPLATES
from ..training.settings import OBJECTIVES, Settings

log = logging.getLogger("unhype")


def run(options: argparse.Namespace, model: Any, clip: Any) -> int:
    """Train what the options of ``train`` ask for and say where the file lies."""
    requests = _requests(options)
    with torch.inference_mode():
        erasers = train_in_parts(model, clip, requests, _progress(requests))
    if len(erasers) > 1:
        merged, path = save_once(merge(erasers, safe_name(options.name)), training_folder())
        log.info("UnHype: %d concepts in %d parts: %s", len(merged.record.concepts), len(merged.parts), path)
    elif erasers:
        log.info(
            "UnHype: %d concepts: %s", len(erasers[0].record.concepts), training_folder() / f"{erasers[0].name}{SUFFIX}"
        )
    return 0


def _requests(options: argparse.Namespace) -> list[Request]:
    """A request for each part; a list of one part is written as Train Erasure would."""
    for name, choices in {"kind": TEMPLATES, "objective": OBJECTIVES}.items():
        if (value := getattr(options, name)) not in choices:
            raise SystemExit(f"--{name} takes one of {', '.join(choices)}, not {value}.")
    settings = Settings(kind=options.kind, objective=options.objective)
    if options.steps is not None:
        settings = replace(settings, steps=options.steps)
    lists = in_parts("\n".join(path.read_text("utf-8") for path in options.lists), options.part)
    whole = Request(
        concepts="",
        preserve=options.preserve.read_text("utf-8") if options.preserve else "",
        folder=training_folder(),
        name=safe_name(options.name),
        checkpoints=checkpoint_folder(),
        encodings=encodings_folder(),
        preview_every=0,
        settings=settings,
    )
    if len(lists) == 1:
        return [replace(whole, concepts=lists[0])]
    folder = training_folder() / "parts"
    names = [safe_name(f"{options.name} {number + 1}") for number in range(len(lists))]
    return [replace(whole, concepts=part, folder=folder, name=name) for part, name in zip(lists, names, strict=True)]


def _progress(requests: Sequence[Request]) -> Callable[[int], Report]:
    return lambda number: Progress(None, pace_of(requests[number]), (number, len(requests)))

"""Erasers that are trained one for each part of a list, and found again by what decides a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..hypernet.files import SUFFIX, load, open_checked
from ..hypernet.record import HypernetFileError, as_list, describe
from .batch_split import WHOLE, Split
from .callbacks import Report
from .plan import Request, make_plan
from .prompts import parse_concepts
from .run import Outcome, train_erasure


def in_parts(concepts: str, size: int) -> list[str]:
    """A list of concepts in parts of `size`, each a list of its own; raises `PromptError` as `parse_concepts`."""
    pairs = parse_concepts(concepts)
    return [as_list(pairs[first : first + size]) for first in range(0, len(pairs), size)]


def trained(model: Any, clip: Any, request: Request, report: Report, split: Split = WHOLE) -> Outcome:
    """The eraser of a request: a file of the folder with its recipe, whatever its name is, else a new one.

    See `run.train_erasure`, also for the errors.
    """
    plan = make_plan(model, request)
    wanted = plan.recipe, plan.request.settings.steps
    path = next((path for path, found in _recipes(request.folder) if found == wanted), None)
    if path is None:
        return train_erasure(model, clip, request, report, split)
    (eraser,) = load(path).parts
    return Outcome(eraser, path, eraser.record.training.losses, "already trained")


def _recipes(folder: Path) -> Iterator[tuple[Path, tuple[str, int]]]:
    """Recipe and steps of each eraser in a folder, from its description alone."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with open_checked(path) as file:
                _, record = describe(file.metadata(), path.name)
        except HypernetFileError:
            continue  # merged, somebody else's, or damaged
        yield path, (record.training.recipe, record.training.settings.get("steps", 0))

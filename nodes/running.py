"""What the nodes that train have in common: progress, and errors that name the node."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from comfy.cli_args import args

from ..hypernet.errors import UserError
from ..training.frozen import out_of_memory_errors
from ..training.pace import Pace, expected_seconds
from ..training.plan import Request
from ..training.prompts import PromptError, content_lines
from .progress import DRAWING, PAIR, Progress

_TRAIN = "Train Erasure"
_PAIRS = 2  # of pictures of the result


def pace_of(request: Request) -> Pace:
    """The pace of a training, as it is expected before it begins, with the pictures of its result."""
    drawn = _PAIRS * PAIR if request.preview_every and request.decode else 0.0
    return Pace(expected_seconds(len(content_lines(request.concepts)), request.settings.steps) | {DRAWING: drawn})


@contextmanager
def running(name: str, progress: Progress) -> Generator[Progress]:
    """While open, `progress` is the report of a training in the node of display name `name`."""
    try:
        yield progress
    except PromptError as error:
        raise PromptError(f"{name}: {error}") from error
    except UserError as error:
        words = str(error).replace(_TRAIN, name)
        if name != _TRAIN and isinstance(error.__cause__, out_of_memory_errors()):
            words += f" {name} has none of these settings: train with {_TRAIN}, and use Apply Concept Erasure."
        raise type(error)(words) from error
    finally:
        progress.close()


def workflow(hidden: Any) -> dict[str, str]:
    """The graph that trained a file, so that the file dragged onto the canvas brings it back."""
    if args.disable_metadata or hidden is None:
        return {}
    parts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(part) for name, part in parts.items() if part is not None}

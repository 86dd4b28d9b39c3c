"""The files that nodes have written, so that one that was deleted since is written again.

ComfyUI keeps a node's outputs, and runs the node again when its inputs or its fingerprint are others. The note of
what was written lies in ComfyUI's temporary folder, which is emptied at every start, as that memory is.
"""

import json
import uuid
from pathlib import Path

from ..hypernet.files import written_aside
from .folders import written_note


def _read() -> tuple[str, list[str]]:
    """The note's mark, a new one where there is no note, and the paths in it."""
    try:
        mark, paths = json.loads(written_note().read_text("utf-8"))
    except FileNotFoundError:
        mark, paths = uuid.uuid4().hex, []
    return mark, paths


def _write(mark: str, paths: list[str]) -> None:
    with written_aside(written_note()) as part:
        part.write_text(json.dumps([mark, paths]), "utf-8")


def fingerprint() -> str:
    """The same text as long as every file of `remember` is there, and another one when one has gone."""
    mark, paths = _read()
    if not all(Path(path).is_file() for path in paths):
        mark, paths = uuid.uuid4().hex, []
    _write(mark, paths)
    return mark


def remember(path: Path) -> None:
    """Add a file that a node has written, or found there from an earlier run."""
    mark, paths = _read()
    _write(mark, sorted({*paths, str(path)}))

"""The files that nodes have written, so that one that was deleted since is written again.

ComfyUI keeps a node's outputs, and runs the node again when its inputs or its fingerprint are others. The note of
what was written lies in ComfyUI's temporary folder, which is emptied at every start, as that memory is.
"""

import json
import uuid

from ..hypernet.files import written_aside
from .folders import is_hypernet, written_note


def _read() -> tuple[str, list[str]]:
    """The note's mark, a new one where there is no note, and the names in it."""
    try:
        mark, names = json.loads(written_note().read_text("utf-8"))
    except FileNotFoundError:
        mark, names = uuid.uuid4().hex, []
    return mark, names


def _write(mark: str, names: list[str]) -> None:
    with written_aside(written_note()) as part:
        part.write_text(json.dumps([mark, names]), "utf-8")


def fingerprint() -> str:
    """The same text as long as every file of `remember` is there, and another one when one has gone."""
    mark, names = _read()
    if not all(map(is_hypernet, names)):
        mark, names = uuid.uuid4().hex, []
    _write(mark, names)
    return mark


def remember(name: str) -> None:
    """Add a file that a node has written, or found there from an earlier run, by its name as lists show it.

    Names and no paths, since browsers may read the temporary folder.
    """
    mark, names = _read()
    _write(mark, sorted({*names, name}))

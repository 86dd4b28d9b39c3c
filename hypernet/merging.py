"""Merging erasers into one."""

from collections.abc import Iterable
from itertools import count
from pathlib import Path

from .eraser import Eraser
from .files import SUFFIX, load, same_eraser, save
from .merged import AnyEraser, MergedEraser, check_one_base


def merge(erasers: Iterable[AnyEraser], name: str) -> MergedEraser:
    """All parts of the erasers in their order, those that are there twice once.

    Merged ones give their parts. name: of the file. Raises `HypernetFileError`, see `merged.check_one_base`.
    """
    parts: list[Eraser] = []
    for part in (part for eraser in erasers for part in eraser.parts):
        if not any(same_eraser(part, other) for other in parts):
            parts.append(part)
    check_one_base(parts)
    return MergedEraser(tuple(parts), name)


def save_once(eraser: MergedEraser, folder: Path) -> tuple[MergedEraser, Path]:
    """Save a merged eraser under its name in a folder, or under the next free one; returns it as its file holds it.

    A file of that name with the same parts is taken as it is. See `files.written_aside` for the errors.
    """
    for n in count(1):
        path = folder / f"{eraser.name}{'' if n == 1 else f'_{n}'}{SUFFIX}"
        if not path.exists():
            save(eraser, path)
        found = _merged_at(path)
        if found is not None and same_eraser(found, eraser):
            return found, path
    raise AssertionError("there is always a free name")


def _merged_at(path: Path) -> MergedEraser | None:
    """The merged eraser of a file, None for another file."""
    try:
        found = load(path)
    except ValueError:
        return None
    return found if isinstance(found, MergedEraser) else None

"""Merging erasers into one."""

from collections.abc import Iterable

from .eraser import Eraser
from .files import same_eraser
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

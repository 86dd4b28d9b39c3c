"""Everyday nouns (nouns.txt), from which the neighbours of an erased concept come.

A detector that has seen only distant benign prompts draws its boundary too far out, and an eggplant counts as an egg.
Nouns that may be a kind of the concept, or another word for it, are no neighbours: kinds are listed in the file, and
`detector_fit` leaves out what lies as near as another word does.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .prompts import TEMPLATES, content_lines, fill, mentions

_FILE = Path(__file__).with_name("nouns.txt")
# Only of objects: a person or a style is no neighbour of any noun.
_KIND = "object"


@lru_cache(maxsize=1)
def _lines() -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """The kinds and the nouns of each line."""
    parts = (line.partition("|") for line in content_lines(_FILE.read_text("utf-8")))
    split = ((kinds.split(","), own.split(",")) for kinds, _, own in parts)
    return tuple((tuple(filter(None, map(str.strip, kinds))), tuple(map(str.strip, own))) for kinds, own in split)


def nouns() -> tuple[str, ...]:
    """All of them."""
    return tuple(noun for _, own in _lines() for noun in own)


def neighbour_prompts(concepts: Sequence[tuple[str, str]], kind: str) -> tuple[str, ...]:
    """A prompt for each noun that is none of the concepts and, as far as its line says, no kind of one."""
    if kind != _KIND:
        return ()
    erased = {concept.casefold() for concept, _ in concepts}
    named = " | ".join(erased)
    found = [noun for kinds, own in _lines() if not mentions(named, kinds) for noun in own if noun not in erased]
    templates = TEMPLATES[_KIND]
    return tuple(fill(templates[number % len(templates)], noun) for number, noun in enumerate(found))

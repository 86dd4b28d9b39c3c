"""Everyday nouns (nouns.txt), from which the neighbours of an erased concept come.

A detector that has seen only distant benign prompts draws its boundary too far out, and an eggplant counts as an egg.
Nouns that may be a kind of the concept, or another word for it, are no neighbours: kinds are listed in the file, and
`detector_fit` leaves out what lies as near as another word does. Each noun is in the same prompt whatever is erased, so
that it is encoded once; its wording is short, since a longer one would be close to all prompts of that wording.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from .prompts import content_lines, mentions, shuffled, with_article

_FILE = Path(__file__).with_name("nouns.txt")
# Only of objects: a person or a style is no neighbour of any noun.
_KIND = "object"
# How many nouns for each concept, and how many at least: a few concepts dispute few scores.
_EACH, _LEAST = 150, 300


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
    """Prompts of nouns that are none of the concepts and, as far as their lines say, no kind of one.

    As many as the number of concepts asks for, drawn from all kinds; which ones depends on the words alone.
    """
    if kind != _KIND:
        return ()
    erased = {concept.casefold() for concept, _ in concepts}
    named = " | ".join(erased)
    found = [noun for kinds, own in _lines() if not mentions(named, kinds) for noun in own if noun not in erased]
    return tuple(map(with_article, shuffled(found, "noun")[: max(_LEAST, _EACH * len(concepts))]))

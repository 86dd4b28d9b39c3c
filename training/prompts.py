"""The prompts of a run: concepts to erase, their wordings, and the prompts to retain.

Text in, text out: the concept list of the node, phrasing templates, and the retain prompts, split by
concept into those for training and those held out, which measure the retention error and calibrate the detector.
"""

import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..hypernet.errors import UserError

RETAIN_FILE = Path(__file__).with_name("retain.txt")
HELD_OUT_SHARE = 4
_BENIGN_PAIRS = 120
_MAX_NAME = 300
# All wordings of all concepts are encoded and kept in memory for the length of a run.
_MAX_CONCEPTS = 2000
_ARROWS = re.compile(r"\s*(?:->|=>|\u2192)\s*")
_MARKS = '"\u201c\u201d'
_QUOTED = re.compile(rf"[{_MARKS}](?P<name>[^{_MARKS}]*)[{_MARKS}]")
# Between the names of a list; not the comma of a number, and none in quotes, which an odd number of marks follows.
_COMMAS = re.compile(
    r"\s*(?:[;\uff0c\uff1b\u3001]|,(?!\d)|(?<!\d),)\s*"
    rf"(?=[^{_MARKS}]*(?:[{_MARKS}][^{_MARKS}]*[{_MARKS}][^{_MARKS}]*)*$)"
)
# A line of the preserve list with commas is a list if its parts are no longer than this, else a prompt.
_WORDS_OF_A_NAME = 2
# Joiners (200c, 200d) belong to the words of some scripts and to emoji, but not beside Latin letters or blanks.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
    r"|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)

TEMPLATES = {
    "object": (
        "{}",
        "{a}",
        "a photo of {a}",
        "a picture of {a}",
        "an image of {a}",
        "a drawing of {a}",
        "a painting of {a}",
        "a close-up of {a}",
        "a photograph showing {a}",
        "one {}",
        "a small {}",
        "a big {}",
        "the {}",
        "several {} together",
        "{a} outdoors",
        "{a} on a plain background",
        "a detailed illustration of {a}",
        "there is {a} in the middle",
        "a good photo of the {}",
        "{a}, high quality, sharp focus",
    ),
    "person": (
        "{}",
        "a photo of {}",
        "a portrait of {}",
        "a picture of {}",
        "{} smiling",
        "{} looking at the camera",
        "a close-up of the face of {}",
        "a painting of {}",
        "a drawing of {}",
        "{} in the street",
        "{} at a party",
        "{} giving a speech",
        "{} as a statue",
        "a black and white photograph of {}",
        "an image of {}, studio light",
        "{} walking a dog",
        "a film still with {}",
        "{} with friends",
    ),
    "style": (
        "{}",
        "in the style of {}",
        "a painting in the style of {}",
        "a landscape in the style of {}",
        "a portrait in the style of {}",
        "a city street, {} style",
        "{} style artwork",
        "a drawing of a house in the style of {}",
        "a picture of a river by {}",
        "an illustration by {}",
        "art by {}",
        "a still life, {}",
        "a forest painted by {}",
        "a woman reading, in the manner of {}",
        "a poster, {} style",
        "a boat on a lake in the style of {}",
    ),
}

# The concept {c} among other things {o}; both come with their articles. Scoring uses other words.
WITH_OTHERS = {
    "object": (
        "{c} with {o}",
        "{o} with {c}",
        "{c} beside {o}",
        "{o} beside {c}",
        "{c}, {o}",
        "{o}, {c}",
        "{o} in front of {c}",
        "{c} behind {o}",
        "a photo of {c} together with {o}",
        "a picture of {o} and also {c}",
    ),
    "person": (
        "{c} with {o}",
        "{c} beside {o}",
        "{c}, {o}",
        "{o}, {c}",
        "{c} looking at {o}",
        "a photo of {c} holding {o}",
        "a portrait of {c} in front of {o}",
        "a picture of {o} and also {c}",
    ),
    "style": (
        "{o} in the style of {c}",
        "{o} by {c}",
        "{o}, {c} style",
        "a painting of {o} in the manner of {c}",
        "a drawing of {o}, {c}",
        "a picture of {o}, inspired by {c}",
    ),
}


class PromptError(UserError, ValueError):
    """The concept or preserve list can't be used; the message says why and what to write instead."""


class Phrase(NamedTuple):
    """One wording of one concept: the prompt to erase and its mapping prompt."""

    concept: int
    prompt: str
    mapping: str


@dataclass(frozen=True)
class RetainSplit:
    """Prompts that must keep their pictures: for training, and held out of it.

    distractors: names of other objects for prompts of two; preserved: each line of the user's list and its
    prompts, which are in `train`.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    distractors: tuple[str, ...] = ()
    preserved: dict[str, tuple[str, ...]] = field(default_factory=dict)


def content_lines(text: str) -> list[str]:
    """The lines of a list, blanks in a row as one; empty ones and those that start with # are left out."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _names(text: str) -> list[str]:
    """The lines of a list of names, without invisible characters."""
    return content_lines("\n".join(_CONTROL.sub(" ", line) for line in text.splitlines()))


def parse_concepts(text: str) -> tuple[tuple[str, str], ...]:
    """Read lines of `concept -> mapping` (mapping optional, # starts a comment); commas part several concepts.

    Returns a tuple of pairs (concept, mapping); a missing mapping is "", the picture of an empty
    prompt. A name in quotes may hold commas. Raises `PromptError` for an empty or endless list, an empty or
    overlong name, a quotation mark without its other one, a concept listed twice or mapped to itself.
    """
    pairs = [pair for line in _names(text) for pair in _pairs_of(line)]
    if len(pairs) > _MAX_CONCEPTS:
        raise PromptError(
            f"{len(pairs)} concepts are more than one hypernet can learn ({_MAX_CONCEPTS}). Train several, and put one "
            "Apply Concept Erasure after the other."
        )
    seen = set()
    for concept, mapping in pairs:
        if max(len(concept), len(mapping)) > _MAX_NAME:
            raise PromptError(
                f"The concept '{concept[:60]}...' is longer than {_MAX_NAME} characters. Name it in a few words."
            )
        if concept.lower() in seen:
            raise PromptError(f"The concept '{concept}' is listed twice. Keep one of the two.")
        if concept.lower() == mapping.lower():
            raise PromptError(f"'{concept}' is mapped to itself. Map it to something harmless, such as 'a tree'.")
        seen.add(concept.lower())
    if not pairs:
        raise PromptError("There is no concept to erase. Write one a line, for example 'cat -> tree'.")
    return tuple(pairs)


def _pairs_of(line: str) -> list[tuple[str, str]]:
    """The (concept, mapping) pairs of a line: all its concepts have the same mapping."""
    names, *rest = _ARROWS.split(line)
    concepts = [quoted["name"].strip() if (quoted := _QUOTED.fullmatch(name)) else name for name in _listed(names)]
    if len(rest) > 1 or not all(concepts or [""]):
        raise PromptError(f"Line '{line[:80]}' is not of the form 'concept -> mapping'.")
    return [(concept, rest[0] if rest else "") for concept in concepts]


def _listed(names: str) -> list[str]:
    """The names that commas part; those in quotes stay whole."""
    if sum(names.count(mark) for mark in _MARKS) % 2 and any(comma in names for comma in ",;\uff0c\uff1b\u3001"):
        raise PromptError(
            f"'{names[:80]}' has a quotation mark without its other one. Put a name with a comma in quotes, for "
            "example '\"Crosby, Stills and Nash\" -> a band'."
        )
    return [part for part in _COMMAS.split(names) if part]


def preserved_lines(text: str) -> list[str]:
    """The names and prompts of the preserve list, one a line; short names may stand in one line with commas."""
    lines = []
    for line in _names(text):
        parts = [part for part in _COMMAS.split(line) if part]
        lines += parts if all(len(part.split()) <= _WORDS_OF_A_NAME for part in parts) else [line]
    return lines


def with_article(name: str) -> str:
    """'cat' to 'a cat', 'airplane' to 'an airplane'; names that bring an article keep it."""
    first = name.split(" ", 1)[0].lower()
    if first in ("a", "an", "the", "some", "two", "three", "several", "many"):
        return name
    return ("an " if name[0].lower() in "aeiou" else "a ") + name


def fill(template: str, name: str) -> str:
    """Put a name into a phrasing template: {a} takes it with an article, {} as it is; '' stays ''."""
    if not name:
        return ""
    return template.replace("{a}", with_article(name)).replace("{}", name)


def phrasings(concepts: Sequence[tuple[str, str]], kind: str) -> list[Phrase]:
    """Every wording of every concept as a list of `Phrase`, `kind` one of the keys of TEMPLATES."""
    return [
        Phrase(index, fill(template, concept), fill(template, mapping))
        for index, (concept, mapping) in enumerate(concepts)
        for template in TEMPLATES[kind]
    ]


def shuffled(items: Iterable[Any], salt: str) -> list[Any]:
    """The items in an order that looks random and depends on the words alone."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{salt} {item}".encode()).digest())


def sentences(concepts: Sequence[tuple[str, str]], kind: str, distractors: Sequence[str], count: int) -> list[Phrase]:
    """Prompts that name a concept among other things, as a list of `Phrase`; about `count`, shared out evenly.

    distractors: names of other objects. With one delta for the whole prompt, these prompts train H to leave
    them alone.
    """
    each = max(4, count // len(concepts))
    found = []
    for index, (concept, mapping) in enumerate(concepts):
        chosen = shuffled(itertools.product(WITH_OTHERS[kind], distractors), concept)[:each]
        names = [with_article(name) if name and kind == "object" else name for name in (concept, mapping)]
        for template, distractor in chosen:
            beside = with_article(distractor)
            prompt, other = (template.replace("{c}", name).replace("{o}", beside) if name else beside for name in names)
            found.append(Phrase(index, prompt, other))
    return found


@lru_cache(maxsize=4)  # plan and report page ask for the same ones; hashing 100,000 pairs takes a second
def object_pairs(distractors: tuple[str, ...], count: int) -> tuple[str, ...]:
    """`count` benign prompts that are built as `sentences` are, of two distractors each."""
    pairs = shuffled(itertools.permutations(distractors, 2), "company")[:count]
    templates = WITH_OTHERS["object"]
    return tuple(
        templates[n % len(templates)].replace("{c}", with_article(one)).replace("{o}", with_article(other))
        for n, (one, other) in enumerate(pairs)
    )


def mentions(prompt: str, names: Collection[str]) -> bool:
    """Whether a prompt holds one of the names, or its plural, as whole words."""
    return any(re.search(rf"\b{re.escape(name)}(s|es)?\b", prompt, re.IGNORECASE) for name in names)


def is_held_out(group: str) -> bool:
    """Whether a group of prompts, or a phrase, is kept for calibration."""
    return hashlib.sha256(group.encode()).digest()[0] % HELD_OUT_SHARE == 0


def retain_split(
    preserve: str, concepts: Sequence[tuple[str, str]], kind: str = "object", path: Path = RETAIN_FILE
) -> RetainSplit:
    """The prompts to leave alone: the shipped list and the user's own, split by concept.

    `preserve`: text of the user's list, a concept or a whole prompt a line; up to three words count
    as a concept and get several phrasings. Prompts that name an erased concept are left out. The
    split depends on the words alone, so that a resumed run sees the same one. Both parts get prompts of
    two things each, too. Raises `PromptError` when the user asks to keep what is to be erased.
    """
    erased = {concept.lower() for concept, _ in concepts}
    lines = [line.partition("|") for line in content_lines(path.read_text("utf-8"))]
    groups = [(group.strip(), prompt.strip()) for group, _, prompt in lines]
    # Thousands of names against hundreds of prompts: most names are nowhere in them.
    everything = "\n".join(prompt for _, prompt in groups).casefold()
    names = [concept for concept, _ in concepts if concept.casefold() in everything]
    kept = [(group, prompt) for group, prompt in groups if not mentions(prompt, names)]
    train = [prompt for group, prompt in kept if not is_held_out(group)]
    held_out = [prompt for group, prompt in kept if is_held_out(group)]
    own: dict[str, tuple[str, ...]] = {}
    for line in preserved_lines(preserve):
        if line.lower() in erased:
            raise PromptError(f"'{line}' is both in the list to erase and in the list to preserve.")
        concept = len(line.split()) <= 3
        own[line] = tuple(fill(template, line) for template in TEMPLATES[kind][:8]) if concept else (line,)
    names_of_others = {group for group, _ in kept if len(group.split()) <= 2 and not mentions(group, names)}
    unseen = tuple(sorted(group for group in names_of_others if is_held_out(group)))
    distractors = tuple(sorted(names_of_others.difference(unseen)))
    train = dict.fromkeys([*train, *itertools.chain(*own.values()), *object_pairs(distractors, _BENIGN_PAIRS)])
    held_out = dict.fromkeys([*held_out, *object_pairs(unseen, _BENIGN_PAIRS // 2)])
    held_out = tuple(prompt for prompt in held_out if prompt not in train)
    return RetainSplit(tuple(train), held_out, distractors, own)

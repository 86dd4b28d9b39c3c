"""Captions as people write them: the object among tags and styles, one to three objects with places, scenes.

All comes from lists in phrases/ and from one torch.Generator. The words around the names are the same for every
object, so they tell nothing about it. Objects have their official names only: synonyms stay unseen.

Every list is split in two by one rule, `is_for_scoring`: phrases, sentences, templates and pairs of objects that
the lab is scored on never occur in training.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from .vocabulary import NAMES

Part = Literal["training", "scoring"]

FOLDER = Path(__file__).with_name("phrases")
# Kinds of caption: their shares in `Captions.draw` and the least and most words of each.
KINDS = {"plain": 0.2, "tags": 0.25, "booru": 0.1, "weighted": 0.1, "break": 0.05, "two": 0.12, "three": 0.05}
KINDS["scene"] = 0.13
WORDS = {"plain": (1, 14), "tags": (2, 75), "booru": (3, 60), "weighted": (2, 60), "break": (8, 75)}
WORDS |= {"two": (3, 40), "three": (4, 45), "scene": (20, 150)}
# How often the words of a tag list are of each kind.
_TAGS = {"style": 0.27, "quality": 0.2, "light": 0.15, "camera": 0.12, "colour": 0.09, "artist": 0.12, "negation": 0.05}
_PLURAL = {"books", "chains", "cherries", "fireworks", "footprints", "french fries", "glasses", "grapes", "jeans"}
_PLURAL |= {"pancakes", "scissors", "sunglasses"}
_BRACKETS = ("({}:1.1)", "({}:1.2)", "({}:1.3)", "({}:1.4)", "({}:0.8)", "({})", "(({}))", "[{}]")
_VOWEL = re.compile(r"[aeio]|u(?!ni)")
_CHOICE = re.compile(r"\[([^\]]*)\]")
# The salt was chosen so that about a quarter of every kind is kept for scoring.
_SALT, _SCORED_SHARE = "79 ", 4


def is_for_scoring(text: str) -> bool:
    """Whether a phrase, sentence or template, or the names of a pair joined by " + ", is kept from training."""
    return zlib.crc32((_SALT + text.lower()).encode()) % _SCORED_SHARE == 0


def with_article(name: str) -> str:
    """A name as it stands in a sentence: "an apple", "a unicorn", "scissors"."""
    if name in _PLURAL:
        return name
    return f"an {name}" if _VOWEL.match(name) else f"a {name}"


def fill(template: str, *names: str) -> str:
    """A template such as "a {} and a {}" with names: each `a` before a name is the article that it takes, if any."""
    rest = iter(names)
    return re.sub(r"(?:\b(a ))?\{\}", lambda found: with_article(next(rest)) if found[1] else next(rest), template)


def lines(name: str) -> list[list[str]]:
    """The fields of each line of a list in phrases/."""
    separator = r"\t" if name.endswith(".tsv") else r" \| "
    text = (FOLDER / name).read_text("utf-8").splitlines()
    return [re.split(separator, line) for line in text if line and not line.startswith("#")]


class Phrase(NamedTuple):
    """A phrase, how often it is used beside others of its kind, and the places of a template's objects."""

    text: str
    weight: float = 1.0
    places: tuple[str, ...] = ()


def phrases(part: Part) -> dict[str, list[Phrase]]:
    """Kind to the phrases of one part."""
    found: dict[str, list[Phrase]] = {}
    for kind, text, *places in lines("phrases.txt") + lines("scenes.txt"):
        found.setdefault(kind, []).append(Phrase(text, 1.0, tuple(places[0].split()) if places else ()))
    for kind, text, count in lines("diffusiondb.tsv"):
        # The root keeps the commonest from drowning all others.
        found.setdefault(kind, []).append(Phrase(text, int(count) ** 0.5 / 20))
    scoring = part == "scoring"
    return {kind: [one for one in group if is_for_scoring(one.text) == scoring] for kind, group in found.items()}


class Caption(NamedTuple):
    """A text, the official names in it and where each of these objects is.

    Places: left, middle and right stand in a row, one object alone is in the middle; front is over back and nearer.
    """

    text: str
    names: tuple[str, ...]
    places: tuple[str, ...]
    kind: str

    @property
    def objects(self) -> list[tuple[str, str]]:
        """Each name and its place."""
        return list(zip(self.names, self.places, strict=True))


class Captions:
    """Draws captions of one part from a generator.

    weights: how often a name comes, 1 where it isn't given.
    """

    def __init__(self, part: Part, generator: torch.Generator, weights: dict[str, float] | None = None):
        self.phrases = phrases(part)
        self.generator = generator
        self.weight = torch.tensor([(weights or {}).get(name, 1.0) for name in NAMES])
        scoring = part == "scoring"
        # Which names may stand together in this part, (names, names).
        self.together = torch.tensor(
            [
                [one != other and is_for_scoring(" + ".join(sorted((one, other)))) == scoring for other in NAMES]
                for one in NAMES
            ]
        )

    def draw(self, shares: dict[str, float] = KINDS) -> Caption:
        """A caption of any kind, drawn by its share, about names that may stand together."""
        kind = list(shares)[self.index(list(shares.values()))]
        return self.caption(kind, self.names({"two": 2, "three": 3}.get(kind, 1)))

    def names(self, count: int) -> tuple[str, ...]:
        """Names of which every two form a pair of this part."""
        chosen: list[int] = []
        allowed = self.weight.clone()
        while len(chosen) < count:
            if not allowed.any():
                chosen, allowed = [], self.weight.clone()
            chosen.append(self.index(allowed))
            allowed = allowed * self.together[chosen[-1]]
        return tuple(NAMES[index] for index in chosen)

    def caption(self, kind: str, names: Sequence[str]) -> Caption:
        """A caption of this kind about these names, in the order of the template's places."""
        objects = [with_article(name) for name in names]
        if kind in ("two", "three"):
            template = self.phrase(kind)
            text = self.filled(template.text, objects)
            if self._chance(0.5):
                text = ", ".join([text, *self.tags(1 + self._below(6))])
            return Caption(text, tuple(names), template.places, kind)
        if kind == "plain":
            text = self.templated("single", names)
        elif kind == "scene":
            text = self._scene(objects[0])
        else:
            make = {"tags": self._tag_list, "booru": self._booru, "weighted": self._weighted, "break": self._break}
            text = make[kind](names[0] if self._chance(0.5) else objects[0])
        return Caption(text, tuple(names), ("middle",), kind)

    def templated(self, kind: str, words: Sequence[str]) -> str:
        """Any words in a template of kind single, two or three."""
        return self.filled(self.phrase(kind).text, [with_article(word) for word in words])

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.generator))

    def _chance(self, share: float) -> bool:
        return bool(torch.rand(1, generator=self.generator) < share)

    def index(self, weights: torch.Tensor | list[float]) -> int:
        """An index, drawn by weight."""
        return int(torch.multinomial(torch.as_tensor(weights), 1, generator=self.generator))

    def phrase(self, kind: str) -> Phrase:
        """A phrase of this kind, drawn by weight."""
        group = self.phrases[kind]
        return group[self.index([one.weight for one in group])]

    def filled(self, template: str, objects: Sequence[str] = ()) -> str:
        """A template with one of each choice, then with the objects."""
        text = _CHOICE.sub(lambda choice: self._one(choice[1].split("|")), template).format(*objects)
        return text[0].upper() + text[1:] if text.endswith(".") else text

    def _one(self, texts: Sequence[str]) -> str:
        return texts[self._below(len(texts))]

    def tags(self, count: int) -> list[str]:
        """Phrases of any kind, none of them twice."""
        found: dict[str, None] = {}
        for _ in range(count):
            kind = list(_TAGS)[self.index(list(_TAGS.values()))]
            text = self.phrase(kind).text
            if kind == "artist":
                text = self._one(("by {}", "art by {}", "in the style of {}", "style of {}", "{}")).format(text)
            found[text] = None
        return list(found)

    def _placed(self, subject: str, tags: list[str]) -> list[str]:
        """The object among its tags: mostly first, sometimes anywhere."""
        place = 0 if self._chance(0.6) else self._below(len(tags) + 1)
        return [*tags[:place], subject, *tags[place:]]

    def _tagged(self, subject: str, most: int) -> list[str]:
        if self._chance(0.4):
            subject = self.filled(self.phrase("single").text, [subject])
        return self._placed(subject, self.tags(1 + self._below(most)))

    def _tag_list(self, subject: str) -> str:
        separator = ", " if self._chance(0.85) else self._one((" ", ",", ". ", " | "))
        return separator.join(self._tagged(subject, 14))

    def _booru(self, subject: str) -> str:
        group = self.phrases["booru"]
        chosen = torch.randperm(len(group), generator=self.generator)[: 2 + self._below(9)].tolist()
        parts = self._placed(subject, [group[index].text for index in chosen])
        return ", ".join([self.phrase("score").text, *parts] if self._chance(0.6) else parts)

    def _weighted(self, subject: str) -> str:
        """Some of the words in brackets, with or without a weight, as in SD web interfaces."""
        parts = self._tagged(subject, 10)
        return ", ".join(self._one(_BRACKETS).format(part) if self._chance(0.4) else part for part in parts)

    def _break(self, subject: str) -> str:
        """Two lists of tags with BREAK between them; the object is in either."""
        halves = [self._tagged(subject, 5), self.tags(4 + self._below(4))]
        if self._chance(0.3):
            halves.reverse()
        return " BREAK ".join(", ".join(half) for half in halves)

    def _scene(self, subject: str) -> str:
        """Sentences of which one names the object, until a length drawn from 20 to 125 words is reached."""
        length = 20 + self._below(106)
        before: list[str] = []
        after = [self.filled(self.phrase("object").text, [subject])]
        if self._chance(0.6):
            after.append(self.filled(self.phrase("about").text))
        group = self.phrases["place"]
        for index in torch.randperm(len(group), generator=self.generator).tolist():
            if len(" ".join(before + after).split()) >= length:
                break
            (before if self._chance(0.5) else after).append(self.filled(group[index].text))
        return " ".join(before + after)

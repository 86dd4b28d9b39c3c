"""Prompts as people write them, with a place for any subject.

The subject stands first, last or in the middle of tags, Danbooru tags, weights, negations, camera words and scenes, of
one to 300 words. The words around it are from the scoring part of lab/phrases, drawn by how often people use them, so
that nothing that is fitted on the training part has seen them. The same words stand around every subject.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch

from unhype.training.prompts import TEMPLATES

from .lab.captions import Captions, is_for_scoring, lines, with_article
from .lab.vocabulary import CLASSES, NAMES

# The least and most words of each length, a subject of one word included.
LENGTHS = {"1-5": (1, 5), "6-20": (6, 20), "21-50": (21, 50), "51-150": (51, 150), "151-300": (151, 300)}
PLACES = ("beginning", "middle", "end")
# Kinds of prompt, and the lengths that people write them in.
KINDS = {
    "plain": ("1-5", "6-20"),
    "tags": tuple(LENGTHS),
    "booru": ("6-20", "21-50"),
    "weights": ("1-5", "6-20", "21-50", "51-150"),
    "BREAK, AND": ("6-20", "21-50", "51-150", "151-300"),
    "no blanks": ("1-5", "6-20", "21-50", "51-150"),
    "negations": ("6-20", "21-50", "51-150"),
    "camera": ("6-20", "21-50", "51-150"),
    "scene": ("21-50", "51-150", "151-300"),
}
_BRACKETS = ("({}:1.1)", "({}:1.2)", "({}:1.4)", "({}:0.8)", "({})", "(({}))", "[{}]")
# How many of a list's phrases are of its own kind, as far as there are enough; the others are any tags.
_OWN = {"negations": ("negation", 0.4), "camera": ("camera", 0.6), "booru": ("booru", 0.8)}
# How often a phrase that is too long for the rest of its prompt, or that stands in it already, is drawn again.
_DRAWS = 40
# How many phrases a real prompt without a subject of ours has.
_FEWEST, _MOST = 3, 25


class Prompt(NamedTuple):
    """Words around a subject: {a} in `text` is the subject with its article, {} the subject alone."""

    text: str
    kind: str
    length: str
    place: str

    def about(self, subject: str, article: bool = True) -> str:
        """The prompt about this subject; without `article` it stands as it is everywhere."""
        text = self.text.replace("{a}", with_article(subject) if article else subject).replace("{}", subject)
        return text[0].upper() + text[1:] if self.kind == "scene" else text


def words_of(text: str) -> int:
    """How many words a text has, with commas or blanks between them."""
    return len(re.findall(r"[^\s,]+", text))


class Composer:
    """Draws prompts from a generator."""

    def __init__(self, generator: torch.Generator):
        self.captions = Captions("scoring", generator)
        self.generator = generator
        known = sorted({*NAMES, *(word for words in CLASSES.values() for word in words)}, key=len, reverse=True)
        named = re.compile(rf"\b({'|'.join(map(re.escape, known))})(s|es)?\b", re.IGNORECASE)
        other = [(text, int(count)) for text, count in lines("diffusiondb_other.tsv") if is_for_scoring(text)]
        # Phrases about people, places and things that name nothing of the lab's, with their weights.
        self.other = [(text, count**0.5) for text, count in other if not named.search(text)]

    def prompts(self, each: int) -> list[Prompt]:
        """`each` prompts of every kind, length and place; those that come out alike are one."""
        drawn = [
            self.prompt(kind, length, place)
            for kind, lengths in KINDS.items()
            for length in lengths
            for place in PLACES
            for _ in range(each)
        ]
        return list(dict.fromkeys(drawn))

    def prompt(self, kind: str, length: str, place: str) -> Prompt:
        """One prompt. A plain one is a template, whose place is its own: any."""
        least, most = LENGTHS[length]
        if kind == "plain":
            return Prompt(self._template(least, most), kind, length, "any")
        subject, drawn = self._scene() if kind == "scene" else self._list(kind, most)
        size, sides = _size(subject) + (kind == "BREAK, AND"), 2 if place == "middle" else 1
        parts = self._until(drawn, least + self._below(most - least + 1) - size, most - size, sides)
        # People paste score tags before all else.
        head = [parts.pop(0)] if kind == "booru" and parts[0].startswith("score") else []
        if kind == "weights":
            subject, *parts = (self._bracketed(part) for part in (subject, *parts))
        index = {"beginning": 0, "middle": (len(parts) + 1) // 2, "end": len(parts)}[place]
        return Prompt(self._joined(kind, [*head, *parts[:index], subject, *parts[index:]]), kind, length, place)

    def without_subject(self) -> str:
        """A real prompt about something that the lab doesn't draw: phrases of all kinds by their counts."""
        count = _FEWEST + self._below(_MOST - _FEWEST + 1)
        texts = self.captions.tags(count)
        for _ in range(1 + count // 4):
            index = self.captions.index([weight for _, weight in self.other])
            texts.insert(self._below(len(texts) + 1), self.other[index][0])
        return ", ".join(texts)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.generator))

    def _chance(self, share: float) -> bool:
        return bool(torch.rand(1, generator=self.generator) < share)

    def _template(self, least: int, most: int) -> str:
        """A template of one object with at least and at most that many words, none that trains an eraser."""
        texts = [phrase.text.replace("{}", "{a}") for phrase in self.captions.phrases["single"]]
        fitting = [text for text in texts if least <= _size(text) <= most and text not in TEMPLATES["object"]]
        return fitting[self._below(len(fitting))]

    def _list(self, kind: str, most: int) -> tuple[str, Iterator[str]]:
        """The subject of a list, by itself or in a template, and the phrases that may stand beside it, endlessly."""
        subject = self._template(1, most // 2) if most > 5 and self._chance(0.4) else ("{}", "{a}")[self._below(2)]
        own, share = _OWN.get(kind, ("", 0.0))

        def drawn() -> Iterator[str]:
            if kind == "booru" and self._chance(0.6):
                yield self.captions.phrase("score").text
            while True:
                yield self.captions.phrase(own).text if self._chance(share) else self.captions.tags(1)[0]

        return subject, drawn()

    def _scene(self) -> tuple[str, Iterator[str]]:
        """The sentence about the subject, and all the others in any order."""
        texts = [phrase.text for kind in ("place", "about") for phrase in self.captions.phrases[kind]]
        order = torch.randperm(len(texts), generator=self.generator).tolist()
        sentence = self.captions.filled(self.captions.phrase("object").text, ["{a}"])
        return sentence, (self.captions.filled(texts[index]) for index in order)

    def _until(self, drawn: Iterator[str], target: int, limit: int, fewest: int) -> list[str]:
        """Different phrases of together `target` words or a little more, never more than `limit`; at least `fewest`."""
        found: dict[str, None] = {}
        size = 0
        for text, _ in zip(drawn, range(_DRAWS * max(target, 2)), strict=False):
            if size >= target and len(found) >= fewest:
                break
            if text not in found and size + words_of(text) + max(fewest - len(found) - 1, 0) <= limit:
                found[text] = None
                size += words_of(text)
        return list(found)

    def _bracketed(self, text: str) -> str:
        return _BRACKETS[self._below(len(_BRACKETS))].replace("{}", text) if self._chance(0.4) else text

    def _joined(self, kind: str, parts: list[str]) -> str:
        """The parts of a prompt as people put them together."""
        if kind == "scene":
            return " ".join(parts)
        separators = ["," if kind == "no blanks" else ", "] * (len(parts) - 1)
        if kind == "BREAK, AND":
            separators[self._below(len(separators))] = (" BREAK ", " AND ")[self._below(2)]
        return "".join(part + separator for part, separator in zip(parts, [*separators, ""], strict=True))


def _size(text: str) -> int:
    """How many words a text with a place for a subject of one word has."""
    return words_of(text) + text.count("{a}")

"""What the lab's CLIP is distilled on: words, phrases, captions and scenes, from one word to more than 77 tokens.

CLIP knows words that no caption of the lab has, so synonyms are among these. Kept out are the phrases and sentences
that the lab is scored on and the hyponyms and descriptions of the erasure benchmark.
"""

from collections.abc import Callable

import torch

from ..environment import ROOT
from .captions import Captions, is_for_scoring, lines, with_article
from .vocabulary import CLASSES, NAMES

SYNONYMS = tuple(word for words in CLASSES.values() for word in words)
_SENTENCES = (ROOT / "training" / "retain.txt", ROOT / "benchmarks" / "benign.txt")


def sentences(scoring: bool) -> list[str]:
    """The prompts of the training's and the benchmark's lists: those that the encoder learns from, or the others."""
    rows = [line.split(" | ") for path in _SENTENCES for line in path.read_text("utf-8").splitlines()]
    found = {row[1].strip() for row in rows if len(row) == 2}
    return sorted(text for text in found if is_for_scoring(text) == scoring)


class Texts:
    """Draws texts from a generator."""

    def __init__(self, generator: torch.Generator):
        self.captions = Captions("training", generator)
        self.generator = generator
        self.sentences = sentences(scoring=False)
        self.other = [phrase for phrase, _ in lines("diffusiondb_other.tsv") if not is_for_scoring(phrase)]
        groups = {line.split(" | ")[0] for line in _SENTENCES[0].read_text("utf-8").splitlines() if " | " in line}
        self.words = sorted({*NAMES, *SYNONYMS, *groups})
        self._kinds: dict[Callable[[], str], float] = {
            self._phrase: 0.06,
            self._about_a_word: 0.18,
            self._caption: 0.36,
            self._list_of_tags: 0.1,
            self._sentence: 0.1,
            self._several_words: 0.12,
            self._two_words: 0.08,
        }

    def draw(self) -> str:
        """One text."""
        return list(self._kinds)[self.captions.index(list(self._kinds.values()))]()

    def _one(self, texts: list[str]) -> str:
        return texts[self._below(len(texts))]

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.generator))

    def _word(self) -> str:
        return self._one(self.words) if self._below(2) else NAMES[self._below(len(NAMES))]

    def _phrase(self) -> str:
        return self._one(self.other)

    def _about_a_word(self) -> str:
        word = self._word()
        if self._below(3) == 0:
            return word if self._below(2) else with_article(word)
        return self.captions.templated("single", [word])

    def _caption(self) -> str:
        return self.captions.draw().text

    def _list_of_tags(self) -> str:
        tags = self.captions.tags(1 + self._below(10))
        return ", ".join([self._one(self.other), *tags] if self._below(2) else tags)

    def _sentence(self) -> str:
        text = self._one(self.sentences)
        return text if self._below(2) else ", ".join([text, *self.captions.tags(1 + self._below(8))])

    def _several_words(self) -> str:
        """In any order, so that what a word means can't be had from its neighbours."""
        words = [self._word() if self._below(2) else self._one(self.other) for _ in range(2 + self._below(8))]
        return self._one([" ", ", ", " and ", ", "]).join(words)

    def _two_words(self) -> str:
        return self.captions.templated("two", [self._word(), self._word()])

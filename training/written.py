"""Prompts as people write them: a subject among tags, styles and other sentences.

The detector is fitted and calibrated on these beside the plain wordings. The phrases come from prompts of many people
(phrases.tsv), the sentences from the retained prompts. A name stands also among words that have nothing to do with
each other: whoever wants to hide it puts such words beside it (`dev.py bench attack`). All depends on the words alone,
so that a resumed run sees the same prompts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from .nouns import neighbour_prompts, nouns
from .prompts import TEMPLATES, RetainSplit, content_lines, fill, is_held_out, mentions, shuffled

_PHRASES_FILE = Path(__file__).with_name("phrases.tsv")
_SEPARATORS = (", ", ", ", ", ", ", ", ",", " ", ". ", " | ")
_MOST_TAGS, _MOST_SENTENCES = 20, 14
# Prompts that name a concept: for a few concepts so many each, for many so many in all, and no fewer each than these.
_NAMED, _NAMED_ALL, _NAMED_LEAST = 40, 400, 6
# The same of prompts that name it among any words, and how many of these.
_HIDDEN, _HIDDEN_ALL, _HIDDEN_LEAST, _HIDING = 120, 600, 6, (3, 10)
# Of a name of several words, one in so many prompts more that write it as one, and what stands before it in tag lists.
_AS_ONE, _AS_ONE_LEAST = 2, 3
_BEFORE_TAGS = ("", "1girl, solo, ", "score_9, score_8_up, score_7_up, ")
# Prompts about nothing erased, as many for the fit as for the calibration. Many concepts have more false alarms.
_BENIGN, _BENIGN_EACH, _BENIGN_MOST, _PHRASES_ALONE = 150, 15, 300, 200
# Prompts with parts of names, of all names together, and no fewer of each part than these.
_PARTS_ALL, _PARTS_LEAST = 400, 4
# What the first and the last word of a person's name stand beside in other names.
_FIRST_NAMES = ("Anna", "Peter", "Maria", "John", "Emily", "Thomas", "Laura", "Daniel", "Julia", "Michael")
_LAST_NAMES = ("Smith", "Miller", "Johnson", "Baker", "Garcia", "Hughes", "Novak", "Larsen", "Moreau", "Tanaka")
# Everyday phrases around one word of a name of several.
_AROUND_PART = (
    "{}",
    "a photo of a {}",
    "the old {}",
    "a small {} on a table",
    "{} in the rain",
    "a {} shop at the corner",
    "a wooden {}",
    "a computer {}",
    "a delivery {}",
    "hello {}",
    "{} street at night",
    "a {} and a lamp",
    "the {} of a stranger",
    "new {}",
    "{}, highly detailed, 8k",
    "a field with a {}",
)
_LETTERS = 3  # of a word that hides a name, at least
_SMALL_WORDS = {"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"}


class Phrases(NamedTuple):
    """Phrases and how often each comes."""

    texts: tuple[str, ...]
    weights: tuple[float, ...]


def phrases_without(names: Sequence[str]) -> tuple[Phrases, Phrases]:
    """The phrases that hold none of these names: those for the fit, and those held out of it."""
    lines = content_lines(_PHRASES_FILE.read_text("utf-8"))
    # Thousands of names against hundreds of phrases: most names are nowhere in them.
    everything = "\n".join(lines).casefold()
    present = [name for name in names if name.casefold() in everything]
    split: tuple[list[tuple[str, float]], list[tuple[str, float]]] = [], []
    for line in lines:
        phrase, count = line.rsplit(" ", 1)
        if not mentions(phrase, present):
            # The root keeps the commonest from drowning all others.
            split[is_held_out(phrase)].append((phrase, int(count) ** 0.5))
    train, held_out = (Phrases(*zip(*part, strict=True)) for part in split)
    return train, held_out


def written_prompts(
    subjects: Sequence[str], others: Sequence[str], phrases: Phrases, count: int, salt: str
) -> tuple[str, ...]:
    """`count` prompts, each about one of the `subjects` among phrases or among sentences from `others`.

    salt: other words give other prompts.
    """
    random = Random(salt)
    prompts = []
    for number in range(count):
        subject = subjects[number % len(subjects)]
        if random.random() < 0.6:
            drawn = random.choices(phrases.texts, phrases.weights, k=random.randint(2, _MOST_TAGS))
            subject = subject.lower() if random.random() < 0.3 else subject
            tags = _placed(subject, list(dict.fromkeys(drawn)), random)
            prompts.append(random.choice(_SEPARATORS).join(tags))
        else:
            drawn = random.sample(others, min(len(others), random.randint(1, _MOST_SENTENCES)))
            sentences = _placed(subject, drawn, random)
            prompts.append(" ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences))
    return tuple(prompts)


def _placed(subject: str, parts: list[str], random: Random) -> list[str]:
    """The subject first, as mostly, or anywhere among the parts."""
    place = 0 if random.random() < 0.4 else random.randint(0, len(parts))
    return [*parts[:place], subject, *parts[place:]]


def words_of(phrases: Phrases, nouns: Sequence[str]) -> tuple[str, ...]:
    """The words of phrases and nouns, each once."""
    everything = " ".join([*phrases.texts, *nouns]).lower().split()
    return tuple(sorted({word for word in everything if word.isalpha() and len(word) >= _LETTERS}))


def hidden_names(wordings: Sequence[str], name: str, words: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` prompts, each with one of the wordings of a name in front of or amid words that are drawn one by one."""
    random, own = Random(f"hidden {name}"), name.casefold().split()
    others = [word for word in words if not any(part in word or word in part for part in own)]
    prompts = []
    for number in range(count):
        drawn = random.sample(others, random.randint(*_HIDING))
        before = random.choice((0, 0, len(drawn) // 2))
        prompts.append(" ".join([*drawn[:before], wordings[number % len(wordings)], *drawn[before:]]))
    return tuple(prompts)


@dataclass(frozen=True)
class Written:
    """Prompts as people write them, for the detector.

    named: for each concept those that hold its name, also among any words. benign, held_out: those that hold none, for
    the fit and for the calibration. parts: those that hold one word of a name of several. nouns: those about everyday
    things.
    """

    named: tuple[tuple[str, ...], ...]
    benign: tuple[str, ...]
    held_out: tuple[str, ...]
    parts: tuple[str, ...]
    nouns: tuple[str, ...]


def make_written(concepts: Sequence[tuple[str, str]], kind: str, retain: RetainSplit) -> Written:
    """The `Written` of these concepts. Many concepts have fewer prompts each."""
    train, held_out = phrases_without([concept for concept, _ in concepts])
    each = min(_NAMED, max(_NAMED_LEAST, _NAMED_ALL // len(concepts)))
    hidden = min(_HIDDEN, max(_HIDDEN_LEAST, _HIDDEN_ALL // len(concepts)))
    words, named = words_of(train, nouns()), []
    for concept, _ in concepts:
        wordings = [fill(template, concept) for template in TEMPLATES[kind]]
        own = written_prompts(wordings, retain.train, train, each, f"named {concept}")
        as_one = names_as_one(concept, retain.train, train, max(_AS_ONE_LEAST, each // _AS_ONE))
        named.append((*own, *as_one, *hidden_names(wordings, concept, words, hidden)))
    count = min(_BENIGN_MOST, _BENIGN + _BENIGN_EACH * len(concepts))
    benign = written_prompts(retain.train, retain.train, train, count, "benign")
    unseen = written_prompts(retain.held_out, retain.held_out, held_out, count, "held out")
    return Written(
        tuple(named),
        (*benign, *train.texts[:_PHRASES_ALONE]),
        (*unseen, *held_out.texts[:_PHRASES_ALONE]),
        parts_of_names(concepts, kind),
        neighbour_prompts(concepts, kind),
    )


def names_as_one(name: str, others: Sequence[str], phrases: Phrases, count: int) -> tuple[str, ...]:
    """Prompts that write a name of several words as one, none of a single word: mickey_mouse, mickey-mouse."""
    if " " not in name:
        return ()
    forms = [name.replace(" ", "_").lower(), name.replace(" ", "-")]
    prompts = written_prompts(forms, others, phrases, count, f"as one {name}")
    return tuple(f"{_BEFORE_TAGS[number % len(_BEFORE_TAGS)]}{prompt}" for number, prompt in enumerate(prompts))


def end_of_name(prompt: str, name: str) -> int:
    """The place behind the name in a prompt that holds it, perhaps as one word, as a number of characters."""
    words = "[ _-]".join(map(re.escape, name.split(" ")))
    whole = re.search(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE)
    return whole.end() if whole else prompt.casefold().index(name.casefold()) + len(name)


def parts_of_names(concepts: Sequence[tuple[str, str]], kind: str) -> tuple[str, ...]:
    """Prompts that hold one word of an erased name of several, and don't mean what the name means.

    A part that is listed as a concept itself stays erased: so the owner decides whether a surname is enough.
    """
    erased = {concept.casefold() for concept, _ in concepts}
    parts: dict[tuple[str, bool, bool], None] = {}
    for concept, _ in concepts:
        words = concept.split()
        for place, word in enumerate(words if len(words) > 1 else ()):
            if word.casefold() not in erased | _SMALL_WORDS:
                parts[word, place == 0, place == len(words) - 1] = None
    each = max(_PARTS_LEAST, _PARTS_ALL // max(len(parts), 1))
    found: dict[str, None] = {}
    for word, first, last in parts:
        prompts = [around.format(word) for around in _AROUND_PART]
        if kind != "object":
            prompts += [f"{word} {other}" for other in _LAST_NAMES if first]
            prompts += [f"{other} {word}" for other in _FIRST_NAMES if last]
        found |= dict.fromkeys(shuffled(prompts, word)[:each])
    # Thousands of names against thousands of prompts: most names are nowhere in them.
    return tuple(
        prompt for prompt in found if not mentions(prompt, [name for name in erased if name in prompt.casefold()])
    )

"""Captions for training and for scoring share nothing but names, and no synonym ever occurs."""

import re
from collections import Counter
from functools import lru_cache
from itertools import combinations

import pytest
import torch

from benchmarks.lab.captions import KINDS, WORDS, Captions, is_for_scoring, lines, phrases, with_article
from benchmarks.lab.vocabulary import CLASSES, NAMES

SYNONYMS = [word for words in CLASSES.values() for word in words]
PARTS = ("training", "scoring")


def words_of(texts):
    """A pattern for whole words, with or without a plural's ending."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})(s|es)?\b", re.IGNORECASE)


@lru_cache
def drawn(part, count=300, seed=0):
    """Captions of every kind, `count` of each."""
    captions = Captions(part, torch.Generator().manual_seed(seed))
    return [
        captions.caption(kind, captions.names({"two": 2, "three": 3}.get(kind, 1)))
        for kind in KINDS
        for _ in range(count)
    ]


def test_the_parts_share_no_phrase_template_or_sentence():
    training, scoring = (
        {phrase.text.lower() for group in phrases(part).values() for phrase in group} for part in PARTS
    )
    assert training.isdisjoint(scoring)
    total = sum(len(lines(name)) for name in ("phrases.txt", "scenes.txt", "diffusiondb.tsv"))
    assert total == sum(len(group) for part in PARTS for group in phrases(part).values())


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_something_of_every_kind(part):
    least = {"training": 12, "scoring": 4}[part]
    assert {kind: len(group) for kind, group in phrases(part).items() if len(group) < least} == {}
    assert set(phrases("training")) == set(phrases("scoring"))


def test_about_a_quarter_is_kept_for_scoring():
    kept, used = (sum(len(group) for group in phrases(part).values()) for part in reversed(PARTS))
    assert 0.2 < kept / (kept + used) < 0.3


def test_the_parts_share_no_pair_of_objects():
    pairs = {
        part: {
            frozenset(pair)
            for caption in drawn(part)
            if len(caption.names) > 1
            for pair in combinations(caption.names, 2)
        }
        for part in PARTS
    }
    assert pairs["training"].isdisjoint(pairs["scoring"])
    for part in PARTS:
        assert {is_for_scoring(" + ".join(sorted(pair))) for pair in pairs[part]} == {part == "scoring"}


def test_every_name_has_partners_in_both_parts():
    for part in PARTS:
        assert Captions(part, torch.Generator()).together.sum(1).min() >= 30


def test_phrases_name_nothing_that_the_lab_draws():
    pattern = words_of([*NAMES, *SYNONYMS])
    for part in PARTS:
        texts = [phrase.text for group in phrases(part).values() for phrase in group]
        assert [text for text in texts if pattern.search(text)] == []


@pytest.mark.parametrize("part", PARTS)
def test_captions_have_official_names_only(part):
    names, synonyms = words_of(NAMES), words_of(SYNONYMS)
    for caption in drawn(part):
        assert synonyms.search(names.sub("", caption.text)) is None, caption
        assert Counter(found[0].lower() for found in names.findall(caption.text)) == Counter(caption.names), caption


def test_every_danbooru_tag_is_one_of_its_own_part():
    kept = {part: {phrase.text for phrase in phrases(part)["booru"]} for part in PARTS}
    for part, other in (PARTS, PARTS[::-1]):
        used = {text for caption in drawn(part) if caption.kind == "booru" for text in caption.text.split(", ")}
        scores = {text for phrase in phrases(part)["score"] for text in phrase.text.split(", ")}
        assert used & kept[part] and not (used - scores) & kept[other]


@pytest.mark.parametrize("part", PARTS)
def test_lengths_are_as_said(part):
    for caption in drawn(part):
        least, most = WORDS[caption.kind]
        assert least <= len(caption.text.split()) <= most, caption
    scenes = [len(caption.text.split()) for caption in drawn(part) if caption.kind == "scene"]
    assert min(scenes) < 30 and max(scenes) > 115


def test_the_same_seed_draws_the_same_captions():
    first = drawn("training", 20, seed=3)
    drawn.cache_clear()
    assert drawn("training", 20, seed=3) == first
    assert drawn("training", 20, seed=3) != drawn("training", 20, seed=4)


def test_words_around_a_name_do_not_depend_on_it():
    def around(name, kind):
        captions = Captions("training", torch.Generator().manual_seed(5))
        texts = [captions.caption(kind, (name,)).text for _ in range(50)]
        return [re.sub(rf"\b([Aa]n? )?{name}\b", "{}", text) for text in texts]

    for kind in ("plain", "tags", "booru", "weighted", "break", "scene"):
        assert around("cat", kind) == around("umbrella", kind)


def test_every_object_has_a_place():
    allowed = {frozenset({"left", "right"}), frozenset({"front", "back"}), frozenset({"left", "middle", "right"})}
    for caption in drawn("training") + drawn("scoring"):
        assert len(caption.places) == len(caption.names)
        assert frozenset(caption.places) in allowed | {frozenset({"middle"})}
        assert len(set(caption.places)) == len(caption.places)
        assert len(set(caption.names)) == len(caption.names)


def test_weights_change_which_names_come():
    captions = Captions("training", torch.Generator().manual_seed(0), dict.fromkeys(CLASSES, 300.0))
    assert sum(captions.names(1)[0] in CLASSES for _ in range(100)) > 80


def test_articles():
    names = ("apple", "unicorn", "umbrella", "cat", "french fries")
    assert [with_article(name) for name in names] == ["an apple", "a unicorn", "an umbrella", "a cat", "french fries"]


def test_people_write_in_many_ways():
    """Brackets, weights, BREAK, negations, score tags, artists and cameras all occur."""
    texts = "\n".join(caption.text for part in PARTS for caption in drawn(part))
    for part in ("((", ":1.2)", " BREAK ", "no text", "score_9", "by greg rutkowski", "f/1.8", "no humans", "ISO 100"):
        assert part in texts, part

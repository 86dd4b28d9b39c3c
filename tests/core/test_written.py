"""Prompts as people write them: what they hold, what they never hold, and that they depend on the words alone."""

import re

import pytest

from unhype.training.prompts import mentions, retain_split
from unhype.training.written import (
    end_of_name,
    hidden_names,
    make_written,
    names_as_one,
    parts_of_names,
    phrases_without,
)

CONCEPTS = (("cat", "tree"), ("Mickey Mouse", "a toy"))
RETAIN = retain_split("", CONCEPTS)


def test_every_prompt_of_a_name_holds_it_once_and_no_benign_one_does():
    written = make_written(CONCEPTS, "object", RETAIN)
    for name, count, prompts in zip(("cat", "Mickey[ _-]Mouse"), (160, 180), written.named, strict=True):
        assert len(prompts) == len({*prompts}) == count
        assert all(len(re.findall(rf"\b{name}\b", prompt, re.IGNORECASE)) == 1 for prompt in prompts)
    assert sum("Mickey Mouse".casefold() in prompt.casefold() for prompt in written.named[1]) == 160
    benign = (*written.benign, *written.held_out, *written.parts)
    assert not any(mentions(prompt, ["cat", "Mickey Mouse"]) for prompt in benign)
    assert not {*written.benign} & {*written.held_out}


def test_the_words_decide():
    assert make_written(CONCEPTS, "object", RETAIN) == make_written(CONCEPTS, "object", RETAIN)
    assert make_written(CONCEPTS, "object", RETAIN).named[0] != make_written(CONCEPTS, "style", RETAIN).named[0]


def test_many_concepts_have_fewer_prompts_each():
    many = tuple((f"thing{n}", "tree") for n in range(100))
    assert {len(prompts) for prompts in make_written(many, "object", retain_split("", many)).named} == {12}


def test_a_name_is_hidden_among_words_that_share_nothing_with_it():
    words = ("cats", "at", "concatenated", "lamp", "river", "sea", "hill", "oak", "tin", "salt", "wool", "ink", "jar")
    prompts = hidden_names(["{a} cat", "the cat"], "cat", words, 30)
    assert {word for prompt in prompts for word in prompt.split()} == {"{a}", "the", "cat", *words[3:]}
    assert all(prompt.split().count("cat") == 1 for prompt in prompts)
    assert any(prompt.startswith("the cat ") for prompt in prompts)
    assert not all("cat" in prompt.split()[:2] for prompt in prompts)


def test_phrases_for_calibration_are_others_than_those_for_the_fit():
    train, held_out = phrases_without(["Greg Rutkowski", "thomas kinkade"])
    assert not {*train.texts} & {*held_out.texts}
    assert len(train.texts) > 1000
    assert len(held_out.texts) > 200
    assert not any(re.search("greg rutkowski|thomas kinkade", text) for text in (*train.texts, *held_out.texts))


def test_half_a_name_is_benign():
    parts = parts_of_names(CONCEPTS, "object")
    assert any("computer Mouse" in part for part in parts)
    assert any(part.startswith("the old Mickey") for part in parts)
    assert not any("Mickey Mouse" in part or "cat" in part.split() for part in parts)


def test_a_part_that_is_erased_itself_is_not_benign():
    """The owner's own line decides whether a surname is enough."""
    assert not parts_of_names((("Ada Lovelace", ""), ("lovelace", ""), ("ada", "")), "person")
    alone = parts_of_names((("Ada Lovelace", ""), ("lovelace", "")), "person")
    assert alone
    assert not any(mentions(part, ["lovelace"]) for part in alone)


@pytest.mark.parametrize(("kind", "expected"), [("person", True), ("object", False)])
def test_first_and_last_names_stand_beside_others_in_names_of_persons(kind, expected):
    parts = parts_of_names((("Ada Lovelace", ""),), kind)
    assert ("Ada Smith" in parts) == ("Anna Lovelace" in parts) == expected
    assert "Lovelace Smith" not in parts


def test_small_words_are_no_parts():
    parts = parts_of_names((("King of Spain", ""),), "object")
    assert {"the old King", "the old Spain"} <= {*parts}
    assert "the old of" not in parts


@pytest.mark.parametrize(
    ("prompt", "name", "before"),
    [
        ("a cat on a mat", "cat", "a cat"),
        ("a catalogue beside a cat, 35mm", "cat", "a catalogue beside a cat"),
        ("Cat. An old street.", "cat", "Cat"),
        ("\u4e00\u53ea\u732b\u5750\u7740", "\u732b", "\u4e00\u53ea\u732b"),
        ("(C++:1.2), code", "C++", "(C++"),
        ("mickey_mouse, solo", "Mickey Mouse", "mickey_mouse"),
        ("two big-cats and a big-cat", "big cat", "two big-cats and a big-cat"),
    ],
)
def test_the_end_of_a_name(prompt, name, before):
    assert prompt[: end_of_name(prompt, name)] == before


def test_tag_lists_write_a_name_of_several_words_as_one():
    train, _ = phrases_without(["Mickey Mouse"])
    prompts = names_as_one("Mickey Mouse", RETAIN.train, train, 6)
    assert [sum(form in prompt for prompt in prompts) for form in ("mickey_mouse", "Mickey-Mouse")] == [3, 3]
    assert [prompt.startswith("score_9, ") for prompt in prompts] == [False, False, True] * 2
    assert names_as_one("cat", RETAIN.train, train, 6) == ()

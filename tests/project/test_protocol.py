"""The erasure benchmark asks for nothing that training saw, and its scores are what they say."""

import functools
import re

import pytest
import torch

from benchmarks import protocol, scores
from benchmarks.lab.vocabulary import CLASSES, NAMES
from benchmarks.neighbours import NAMES_OF_SEVERAL_WORDS, wordings
from unhype.training.nouns import neighbour_prompts, nouns
from unhype.training.prompts import phrasings, retain_split, sentences
from unhype.training.settings import Settings


@functools.cache
def training_texts(concept):
    """All prompts of training on one class."""
    concepts = ((concept, protocol.MAPPING),)
    retain = retain_split("", concepts)
    phrases = [*phrasings(concepts, "object"), *sentences(concepts, "object", retain.distractors, Settings().sentences)]
    erased = [text for phrase in phrases for text in (phrase.prompt, phrase.mapping)]
    return {text.lower() for text in (*erased, *retain.train, *retain.held_out) if text}


def scoring_texts(concept):
    """Everything that one class is scored on."""
    rows = [text for _, text, _ in protocol.class_prompts(concept)]
    rows += [text for _, text in protocol.ladder(concept)]
    rows += [text for text, _ in protocol.pairs(concept, [name for name in NAMES if name != concept])]
    rows += [text for texts in protocol.benign_prompts(concept).values() for text in texts]
    return {text.lower() for text in rows if text}


@pytest.mark.parametrize("concept", CLASSES)
def test_no_prompt_of_training_is_scored(concept):
    assert training_texts(concept) & scoring_texts(concept) == set()


@pytest.mark.parametrize("concept", CLASSES)
def test_no_synonym_and_no_rung_of_the_ladder_is_trained(concept):
    _plural, hyponym, description, typo = protocol.LADDER[concept]
    unseen = [*CLASSES[concept], hyponym, description, typo]
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in unseen))
    assert [text for text in training_texts(concept) if pattern.search(text)] == []


def test_training_has_no_template_of_scoring():
    """Not even for another class: the words around the name are new as well."""
    words = {text.replace("cat", "{}") for text in training_texts("cat")}
    used = {protocol.WORDING, *(template.replace("{}", "{}", 1) for template in protocol.TWO_OBJECTS)}
    used |= {text.lower().replace("cat", "{}") for _, text in protocol.ladder("cat")}
    assert words & used == set()


def test_names_for_scoring_are_many_and_no_retain_prompt_mentions_them():
    names = protocol.names_for_scoring()
    assert len(names) >= 100
    assert not set(names) & set(CLASSES)
    retained = " ".join(retain_split("", (("cat", "tree"),)).train).lower()
    assert [name for name in names if re.search(rf"\b{re.escape(name)}\b", retained)] == []


def test_benign_prompts_do_not_name_the_class_nor_its_relatives():
    for concept in CLASSES:
        groups = protocol.benign_prompts(concept)
        relatives = {text for text in groups["relatives"]}
        assert relatives.isdisjoint(groups["unseen concepts"])
        assert not [text for texts in groups.values() for text in texts if concept in text.lower().split()]
        assert all(40 <= len(text.split()) <= 60 for text in groups["long"])


def test_harmonic_means():
    assert scores.h_o(0.0, 1.0, 0.0) == 1.0
    assert scores.h_o(1.0, 1.0, 0.0) == 0.0
    assert scores.h_o(0.5, 0.5, 0.5) == pytest.approx(0.5)
    # The published row of the paper's average: Acc_e 6.61, Acc_s 96.20, Acc_g 7.67.
    assert scores.h_o(0.0661, 0.9620, 0.0767) == pytest.approx(0.9394, abs=2e-3)
    assert scores.h_c(0.25, 0.75) == pytest.approx(0.75)


def test_the_interval_holds_the_mean_and_narrows_with_pictures():
    def rows(count):
        values = [1.0] * (count // 2) + [0.0] * (count - count // 2)
        return [{"kind": kind, "values": values} for kind in ("erased", "other", "synonym")]

    few, many = ([rows(count)] * 10 for count in (4, 400))
    spans = [scores.bootstrap(classes, rounds=200) for classes in (few, many)]
    for low, high in spans:
        assert low <= scores.mean_h_o(few) <= high
    assert spans[1][1] - spans[1][0] < 0.3 * (spans[0][1] - spans[0][0])


def test_auc_counts_pairs():
    assert scores.auc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert scores.auc([1.0], [2.0]) == 0.0
    assert scores.auc(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx(0.625)


def test_no_noun_that_shows_neighbours_is_scored():
    prompts = neighbour_prompts([("marzipan", "")], "object")
    scored = {*protocol.names_for_scoring(), *(word for concept in CLASSES for word in protocol.RELATIVES[concept])}
    scored |= {word for concept in CLASSES for words in wordings(concept).values() for word in words}
    scored -= set(CLASSES)
    halves = [phrase for kind in NAMES_OF_SEVERAL_WORDS.values() for phrases in kind.values() for phrase in phrases]
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, scored))})s?\b", re.IGNORECASE)
    assert [prompt for prompt in prompts if pattern.search(prompt)] == []
    assert [phrase for phrase in halves if any(noun in phrase for noun in nouns() if " " in noun)] == []
    assert {prompt.lower() for prompt in prompts}.isdisjoint(set().union(*map(scoring_texts, CLASSES)))

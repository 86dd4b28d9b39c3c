"""What users type: concept lists, wordings and the prompts to keep."""

import re

import pytest

from unhype.training.prompts import (
    RETAIN_FILE,
    TEMPLATES,
    WITH_OTHERS,
    Phrase,
    PromptError,
    fill,
    object_pairs,
    parse_concepts,
    phrasings,
    preserved_lines,
    retain_split,
    sentences,
    with_article,
)

CAT = (("cat", "tree"),)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("cat -> tree", [("cat", "tree")]),
        ("cat", [("cat", "")]),
        ("cat ->", [("cat", "")]),
        ("cat => tree", [("cat", "tree")]),
        ("cat \u2192 tree", [("cat", "tree")]),
        ("cat->tree\ndog->house", [("cat", "tree"), ("dog", "house")]),
        ("\n  # a comment\n\n cat   ->  tall   tree \r\n", [("cat", "tall tree")]),
        ("# cat -> tree\ndog", [("dog", "")]),
        ("t-shirt -> shirt", [("t-shirt", "shirt")]),
        ("\ufeffcat -> tree", [("cat", "tree")]),
        ("c\u200bat\t->\ttree", [("c at", "tree")]),
        ("c\u200dat\u200d -> \u200ctree", [("c at", "tree")]),
        # A man at a computer, a heart on fire, and a Persian verb.
        ("\U0001f468\u200d\U0001f4bb", [("\U0001f468\u200d\U0001f4bb", "")]),
        ("\u2764\ufe0f\u200d\U0001f525 -> \u2764\ufe0f", [("\u2764\ufe0f\u200d\U0001f525", "\u2764\ufe0f")]),
        ("\u0645\u06cc\u200c\u0631\u0648\u062f", [("\u0645\u06cc\u200c\u0631\u0648\u062f", "")]),
        ("Katze\u00e4 -> B\u00e4ume", [("Katze\u00e4", "B\u00e4ume")]),
        ("cat -> tree\ndog -> tree", [("cat", "tree"), ("dog", "tree")]),
        ("cat" * 100 + " -> tree", [("cat" * 100, "tree")]),
        ('"cat"', [("cat", "")]),
        ('"Tyler, the Creator" -> a man', [("Tyler, the Creator", "a man")]),
        ("\u201cEarth, Wind & Fire\u201d -> a band", [("Earth, Wind & Fire", "a band")]),
        ("cat -> a tree, a house", [("cat", "a tree, a house")]),
        ("1,000 cats -> tree", [("1,000 cats", "tree")]),
        ("cat,", [("cat", "")]),
        ("cat, dog, horse -> tree", [("cat", "tree"), ("dog", "tree"), ("horse", "tree")]),
        ("cat,dog", [("cat", ""), ("dog", "")]),
        ("cat; dog -> tree\nbird", [("cat", "tree"), ("dog", "tree"), ("bird", "")]),
        ("\u732b\u3001\u72ac\uff0c\u9a6c -> \u6811", [(name, "\u6811") for name in "\u732b\u72ac\u9a6c"]),
        ('"cat", "Earth, Wind & Fire", dog -> tree', [(n, "tree") for n in ("cat", "Earth, Wind & Fire", "dog")]),
        ('12" pizza -> tree', [('12" pizza', "tree")]),
    ],
)
def test_concepts_are_read(text, pairs):
    assert parse_concepts(text) == tuple(pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no concept to erase. Write one a line"),
        ("\n# cat -> tree\n  \n", "There is no concept to erase"),
        ("-> tree", "Line '-> tree' is not of the form 'concept -> mapping'"),
        ("->", "is not of the form"),
        ("cat -> dog -> tree", "Line 'cat -> dog -> tree' is not of the form"),
        ("cat\ncat -> tree", "The concept 'cat' is listed twice"),
        ("cat\nCAT -> tree", "The concept 'CAT' is listed twice"),
        ("cat -> Cat", "'cat' is mapped to itself. Map it to something harmless"),
        ("cat, dog, cat -> tree", "The concept 'cat' is listed twice"),
        ("cat, tree -> tree", "'tree' is mapped to itself"),
        ('"Earth, Wind & Fire -> a band', "has a quotation mark without its other one"),
        ('""', "is not of the form"),
        ("x" * 301, "is longer than 300 characters"),
        ("cat -> " + "x" * 301, "is longer than 300 characters"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(text, message):
    with pytest.raises(PromptError) as refusal:
        parse_concepts(text)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("tiger, lion,dog\nhouse", ["tiger", "lion", "dog", "house"]),
        ("a portrait of a man, studio light", ["a portrait of a man, studio light"]),
        ("# animals\na tiger; big dog", ["a tiger", "big dog"]),
    ],
)
def test_short_names_to_preserve_may_stand_in_one_line(text, lines):
    assert preserved_lines(text) == lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "a cat"),
        ("airplane", "an airplane"),
        ("Eiffel tower", "an Eiffel tower"),
        ("the Moon", "the Moon"),
        ("An apple", "An apple"),
        ("two dogs", "two dogs"),
        ("another", "an another"),
    ],
)
def test_names_get_an_article(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("{}", "cat", "cat"),
        ("a photo of {a}", "cat", "a photo of a cat"),
        ("the {} and {a}", "owl", "the owl and an owl"),
        ("a photo of {a}", "", ""),
        ("{}", "{a} {}", "{a} {}"),
    ],
)
def test_templates_are_filled(template, name, expected):
    assert fill(template, name) == expected


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_template_names_the_concept_and_no_two_are_alike(kind):
    filled = [fill(template, "zebra") for template in TEMPLATES[kind]]
    assert all("zebra" in prompt and "{" not in prompt for prompt in filled)
    assert len(set(filled)) == len(filled) >= 8


@pytest.mark.parametrize("kind", TEMPLATES)
def test_each_concept_is_phrased_in_every_way_with_its_mapping_in_the_same_words(kind):
    phrases = phrasings((("cat", "tree"), ("dog", "")), kind)
    assert len(phrases) == 2 * len(TEMPLATES[kind])
    cats, dogs = phrases[: len(TEMPLATES[kind])], phrases[len(TEMPLATES[kind]) :]
    assert all(phrase.concept == 0 and phrase.mapping == phrase.prompt.replace("cat", "tree") for phrase in cats)
    assert all(phrase.concept == 1 and "dog" in phrase.prompt and phrase.mapping == "" for phrase in dogs)
    assert phrases[0] == Phrase(0, "cat", "tree")


# Concepts among other things

DISTRACTORS = tuple(f"thing{number}" for number in range(30))


@pytest.mark.parametrize("kind", WITH_OTHERS)
def test_every_sentence_names_the_concept_and_its_twin_differs_only_there(kind):
    found = sentences((("zebra", "horse"),), kind, DISTRACTORS, 240)
    assert len(found) == min(240, len(WITH_OTHERS[kind]) * len(DISTRACTORS))
    for phrase in found:
        assert phrase.concept == 0
        assert phrase.prompt.count("zebra") == 1
        assert phrase.mapping == phrase.prompt.replace("zebra", "horse")
        (distractor,) = re.findall(r"a (thing\d+)", phrase.prompt)
        assert distractor in DISTRACTORS
        assert "{" not in phrase.prompt
    prompts = [phrase.prompt for phrase in found]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {phrase.prompt for phrase in phrasings((("zebra", ""),), kind)}


def test_things_take_their_articles_and_people_and_styles_none():
    for kind, name, other in (("object", "an owl", "a tree"), ("person", "owl", "tree"), ("style", "owl", "tree")):
        for phrase in sentences((("owl", "tree"),), kind, DISTRACTORS, 20):
            assert phrase.mapping == phrase.prompt.replace(name, other)
            assert ("an owl" in phrase.prompt) == (kind == "object")


def test_without_a_mapping_the_other_thing_is_left():
    for phrase in sentences((("zebra", ""),), "object", DISTRACTORS, 20):
        assert phrase.mapping in {f"a {distractor}" for distractor in DISTRACTORS}
        assert phrase.mapping in phrase.prompt


@pytest.mark.parametrize(("concepts", "each"), [(1, 240), (3, 80), (7, 34), (100, 4)])
def test_sentences_are_shared_out_evenly_and_every_concept_gets_some(concepts, each):
    names = tuple((f"name{number}", "tree") for number in range(concepts))
    found = sentences(names, "object", DISTRACTORS, 240)
    assert [sum(phrase.concept == number for phrase in found) for number in range(concepts)] == [each] * concepts
    assert all(names[phrase.concept][0] in phrase.prompt for phrase in found)


def test_the_words_alone_decide_the_sentences():
    first, again = (sentences((("zebra", "horse"),), "object", DISTRACTORS, 40) for _ in range(2))
    assert first == again
    beside = sentences((("owl", ""), ("zebra", "horse")), "object", DISTRACTORS, 80)
    assert [phrase._replace(concept=0) for phrase in beside if phrase.concept == 1] == first
    (other,) = ({phrase.prompt.replace("an owl", "a zebra") for phrase in beside if phrase.concept == 0},)
    assert other != {phrase.prompt for phrase in first}, "another concept gets another choice"


def test_a_pair_is_two_different_objects_in_the_sentences_of_erased_ones():
    found = object_pairs(DISTRACTORS, 50)
    assert object_pairs(DISTRACTORS, 50) == found
    assert len(set(found)) == 50
    for prompt in found:
        one, other = re.findall(r"a (thing\d+)", prompt)
        assert one != other
        filled = {
            words.replace("{c}", f"a {x}").replace("{o}", f"a {y}")
            for words in WITH_OTHERS["object"]
            for x, y in ((one, other), (other, one))
        }
        assert prompt in filled


# Prompts to keep


def groups_of(path):
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    return {prompt.strip(): group.strip() for group, prompt in (line.split("|", 1) for line in lines)}


@pytest.fixture
def own_list(tmp_path):
    """Twenty groups of two prompts each, two of which name a cat."""
    path = tmp_path / "retain.txt"
    lines = ["# a comment", ""]
    for number in range(20):
        lines += [f"thing{number} | a thing{number}", f"thing{number} | two old thing{number}"]
    lines += ["cats | two Cats asleep", "scene | a cat, seen from afar", "category | a category of catkins"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_groups_go_wholly_to_one_part():
    split, group = retain_split("", CAT), groups_of(RETAIN_FILE)
    train, held_out = ({group[prompt] for prompt in part if prompt in group} for part in (split.train, split.held_out))
    assert train
    assert held_out
    assert not train & held_out
    assert not set(split.train) & set(split.held_out)


@pytest.mark.parametrize("name", ["cat", "bridge"])
def test_pairs_of_objects_are_of_their_own_part_only(name):
    """No held-out object is in a prompt of two objects in training."""
    erased = ((name, ""),)
    split, group = retain_split("", erased), groups_of(RETAIN_FILE)
    train, held_out = ({group[prompt] for prompt in part if prompt in group} for part in (split.train, split.held_out))
    assert set(split.distractors) <= train
    assert len(split.distractors) > 100
    assert name not in split.distractors
    unseen = {other for other in held_out if len(other.split()) <= 2}
    for part, own, others in ((split.train, split.distractors, unseen), (split.held_out, unseen, split.distractors)):
        beside = [prompt for prompt in part if prompt not in group]
        assert len(beside) > 50
        articles = {with_article(one) for one in own}
        assert all(sum(one in prompt for one in articles) >= 2 for prompt in beside)
        words = re.compile("|".join(rf"\b{re.escape(with_article(one))}\b" for one in set(others)))
        assert [prompt for prompt in beside if words.search(prompt) and not _longer(prompt, words, articles)] == []
    for phrase in sentences(erased, "object", split.distractors, 240):
        assert any(with_article(one) in phrase.prompt for one in split.distractors)


def _longer(prompt, words, articles):
    """Whether what was found is only the beginning of another name, as "a fire" is of "a fire engine"."""
    return any(one.startswith(words.search(prompt).group()) and one in prompt for one in articles)


def test_about_a_quarter_of_the_groups_is_held_out():
    split = retain_split("", CAT)
    assert 0.15 < len(split.held_out) / (len(split.train) + len(split.held_out)) < 0.35


def test_prompts_that_name_an_erased_concept_are_left_out(own_list):
    split = retain_split("", CAT, path=own_list)
    everything, listed = set(split.train) | set(split.held_out), set(groups_of(own_list))
    assert everything & listed == listed - {"two Cats asleep", "a cat, seen from afar"}
    assert not [prompt for prompt in everything - listed if {"cat", "cats"} & set(prompt.lower().split())]


def test_the_shipped_list_too_is_cleared_of_erased_concepts():
    split = retain_split("", (("elephant", ""), ("Dolphin", "")))
    words = " ".join((*split.train, *split.held_out)).lower().split()
    assert not {"elephant", "elephants", "dolphin", "dolphins"} & set(words)


def test_the_split_depends_on_the_words_alone(own_list):
    first, other = (retain_split("", ((name, ""),), path=own_list) for name in ("cat", "thing3"))
    assert retain_split("", CAT, path=own_list) == first
    shared = {*first.train, *first.held_out} & {*other.train, *other.held_out}
    assert len(shared) > 30
    assert shared & set(first.held_out) == shared & set(other.held_out)


def test_a_concept_to_preserve_gets_several_wordings(own_list):
    before, after = (retain_split(text, CAT, path=own_list) for text in ("", "tiger"))
    added = set(after.train) - set(before.train)
    assert added == {fill(template, "tiger") for template in TEMPLATES["object"][:8]}
    assert after.held_out == before.held_out


def test_a_whole_prompt_to_preserve_is_kept_as_it_is(own_list):
    line = "a tiger in the high grass, with a cat"
    before, after = (retain_split(text, CAT, path=own_list) for text in ("", f"# mine\n\n  {line} "))
    assert set(after.train) - set(before.train) == {line}


def test_preserved_wordings_follow_the_kind(own_list):
    split = retain_split("Monet", (("van Gogh", ""),), "style", path=own_list)
    assert "in the style of Monet" in split.train


def test_nothing_is_kept_twice(own_list):
    split = retain_split("thing1\nthing1\na thing1", CAT, path=own_list)
    assert len(set(split.train)) == len(split.train)


def test_what_the_user_asks_to_keep_is_trained_on_and_so_not_held_out(own_list):
    """Held-out prompts tell how unseen prompts fare."""
    line = next(prompt for prompt in retain_split("", CAT, path=own_list).held_out if prompt.startswith("two old"))
    concept = line.removeprefix("two old ")
    split = retain_split(concept, CAT, path=own_list)
    assert f"a {concept}" in split.train
    assert not set(split.train) & set(split.held_out)
    assert line in split.held_out, "only the very prompts that are trained on go"


@pytest.mark.parametrize("line", ["cat", "CAT", "  Cat  "])
def test_asking_to_keep_what_is_to_be_erased_is_refused(line):
    with pytest.raises(PromptError, match="is both in the list to erase and in the list to preserve"):
        retain_split(f"dog\n{line}", CAT)

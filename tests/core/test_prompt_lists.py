"""The shipped prompt lists: what to leave alone in training, and benign prompts kept for scoring."""

import hashlib
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RETAIN = ROOT / "training" / "retain.txt"
BENIGN = ROOT / "benchmarks" / "benign.txt"
VOCABULARY = ROOT / "benchmarks" / "lab" / "vocabulary.py"

# The ten classes of CIFAR-10 and what people write for them.
CLASS_WORDS = """
airplane aircraft plane jet airliner automobile car vehicle motorcar bird avian fowl owl warbler songbird
cat feline kitty kitties kitten housecat deer hart stag doe fawn elk dog canine pooch hound puppy puppies
frog amphibian anuran tadpole toad horse equine steed mount mare pony ponies stallion ship vessel boat watercraft
truck lorry lorries rig hauler pickup
"""


def read(path):
    """The list as (group, prompt) pairs."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    pairs = [line.split(" | ") for line in lines if line and not line.startswith("#")]
    wrong = [pair for pair in pairs if len(pair) != 2 or not all(part and part == part.strip() for part in pair)]
    assert not wrong, f"not of the form 'group | prompt': {wrong}"
    return [tuple(pair) for pair in pairs]


def mentions(words, texts):
    """The pairs (word, text) where the text has the word, or its plural, as a whole word."""
    patterns = [(word, re.compile(rf"\b{re.escape(word)}(s|es)?\b", re.IGNORECASE)) for word in words]
    return [(word, text) for text in texts for word, pattern in patterns if pattern.search(text)]


def scoring_names():
    """The names the lab model draws that retention must not see, with singulars and plurals."""
    names = [n for n in runpy.run_path(str(VOCABULARY))["NAMES"] if hashlib.sha256(n.encode()).digest()[0] % 3 == 0]
    singular = [re.sub("ie$", "y", n[:-1]) for n in names if n.endswith("s")]
    return [*names, *singular, *(n[:-1] + "ies" for n in names if n.endswith("y"))]


@pytest.mark.parametrize("path", [RETAIN, BENIGN], ids=lambda path: path.stem)
def test_lines_are_clean(path):
    """Plain characters, single spaces, and no prompt twice."""
    path.read_text("utf-8").encode("cp1252")
    prompts = [prompt for _, prompt in read(path)]
    assert [prompt for prompt in prompts if "  " in prompt or "|" in prompt] == []
    twice = [prompt for prompt, times in Counter(prompt.lower() for prompt in prompts).items() if times > 1]
    assert twice == []


def test_retain_is_large_and_varied():
    """Many concepts, so that a quarter of them can be held out whole."""
    pairs = read(RETAIN)
    groups = {group for group, _ in pairs}
    held_out = {group for group in groups if hashlib.sha256(group.encode()).digest()[0] % 4 == 0}
    assert len(pairs) >= 650
    assert len(groups) >= 350
    assert 0.2 <= len(held_out) / len(groups) <= 0.3
    assert sum(len(prompt.split()) >= 8 for _, prompt in pairs) >= 120
    assert sum(len(prompt.split()) == 1 for _, prompt in pairs) >= 60


def test_no_held_out_concept_is_trained_and_none_trained_is_held_out():
    pairs = read(RETAIN)
    sides = {group: hashlib.sha256(group.encode()).digest()[0] % 4 == 0 for group, _ in pairs}
    for side in (True, False):
        words = [group for group in sides if sides[group] is side]
        assert mentions(words, [prompt for group, prompt in pairs if sides[group] is not side]) == []


def test_retain_names_no_erased_class():
    texts = [text for pair in read(RETAIN) for text in pair]
    assert mentions(CLASS_WORDS.split(), texts) == []


def test_retain_leaves_concepts_for_scoring():
    """A third of what the lab model draws never occurs in retention."""
    names = scoring_names()
    assert len(names) >= 60
    assert mentions(names, [text for pair in read(RETAIN) for text in pair]) == []


def test_benign_has_its_three_groups():
    assert Counter(group for group, _ in read(BENIGN)) == {"everyday": 120, "neighbour": 50, "spelling": 30}
    lengths = [len(prompt.split()) for group, prompt in read(BENIGN) if group == "everyday"]
    assert min(lengths) >= 4
    assert max(lengths) <= 30


def test_benign_names_no_erased_class():
    assert mentions(CLASS_WORDS.split(), [prompt for _, prompt in read(BENIGN)]) == []


def test_the_lists_have_nothing_in_common():
    """Scoring prompts repeat no retain prompt and are about none of its concepts."""
    retain, benign = read(RETAIN), read(BENIGN)
    groups = {group for group, _ in retain}
    assert groups.isdisjoint(group for group, _ in benign)
    assert {prompt.lower() for _, prompt in retain}.isdisjoint(prompt.lower() for _, prompt in benign)
    assert mentions(groups, [prompt for _, prompt in benign]) == []

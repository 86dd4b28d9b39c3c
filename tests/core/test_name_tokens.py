"""Which token states are a name's, with tokenizers of several kinds."""

import re

import pytest
from core_parts import TinyClip, WordClip

from unhype.training.name_tokens import distinct_tokens, last_tokens_of


class Tokenizers:
    """Words as tokens in one or several rows; a row is (tokens in front, least length)."""

    def __init__(self, **rows):
        self.rows = rows

    def tokenize(self, text):
        found = {}
        for name, (front, least) in self.rows.items():
            words = [*range(-front, 0), *(hash(word) for word in re.findall(r"\w+|,", text.lower())), 0]
            found[name] = [[(word, 1.0) for word in words + [0] * (least - len(words))]]
        return found


@pytest.mark.parametrize(
    "prompt", ["two dogs and a big cat", "two dogs and a big cat, 35mm", "Two dogs and a big cat."]
)
def test_the_last_token_of_the_name(prompt):
    assert last_tokens_of(WordClip(), prompt, "big cat", WordClip.LENGTH) == [6]
    assert last_tokens_of(WordClip(), prompt, "dogs", WordClip.LENGTH) == [2]


def test_two_encoders_one_after_the_other():
    clip = Tokenizers(l=(1, 10), g=(1, 10), t5xxl=(0, 12))
    assert last_tokens_of(clip, "a cat, 35mm", "cat", 22) == [2, 11]


def test_of_encoders_the_one_whose_states_they_are():
    clip = Tokenizers(l=(1, 10), t5xxl=(0, 16))
    assert last_tokens_of(clip, "a cat, 35mm", "cat", 16) == [1]


def test_a_template_in_front_that_was_cut_off():
    clip = Tokenizers(qwen=(30, 0))
    assert last_tokens_of(clip, "a cat, 35mm", "cat", 5) == [1]


def test_where_tokens_cant_be_told_there_are_none():
    assert last_tokens_of(TinyClip(), "a cat", "cat", 20) == []
    assert last_tokens_of(Tokenizers(l=(1, 10), t5xxl=(0, 16)), "a cat", "cat", 99) == []


def test_of_padding_three_tokens_count():
    places = distinct_tokens(WordClip(), "a cat", WordClip.LENGTH)
    assert places == [0, 1, 2, 3, 4, WordClip.LENGTH - 1]


def test_all_tokens_count_where_they_cant_be_told():
    assert distinct_tokens(TinyClip(), "a cat", 5) == [0, 1, 2, 3, 4]

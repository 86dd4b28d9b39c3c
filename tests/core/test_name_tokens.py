"""Which token states are a name's, with tokenizers of several kinds."""

import re

import pytest
import torch
from core_parts import TinyClip, WordClip

from unhype.training.name_tokens import distinct_tokens, last_tokens_of, span_of


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


@pytest.mark.parametrize(
    ("name", "span"), [("cat", 1), ("big cat", 2), ("zebra", 1), ("one two three four five six", 4)]
)
def test_how_many_tokens_a_name_is(name, span):
    assert span_of(Tokenizers(l=(1, 77)), name, 4) == span
    assert span_of(Tokenizers(l=(1, 77), t5xxl=(0, 30)), name, 4) == span


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


class OnlyAscii:
    """A tokenizer that lacks all other characters, as T5's lacks many scripts."""

    def tokenize(self, text):
        words = re.findall(r"[a-z]+|,|[^\x00-\x7f]+", text.lower())
        return {"t5xxl": [[(hash(word) if word.isascii() else 2, 1.0) for word in words] + [(1, 1.0)] * 12]}


def test_a_name_that_the_tokenizer_lacks_has_no_token():
    clip = OnlyAscii()
    prompt = "a photo of a \u732b, 35mm"
    (ids,) = clip.tokenize(prompt).values()
    assert last_tokens_of(clip, prompt, "\u732b", len(ids[0])) == []
    assert last_tokens_of(clip, prompt, "photo", len(ids[0])) == [1]


class Inversions(WordClip):
    """Loads the vector of a textual inversion anew each time, as ComfyUI does."""

    def tokenize(self, text):
        tokens = super().tokenize(text)
        vector, word = torch.ones(3), super().tokenize("mycat")["words"][0][1][0]
        tokens["words"] = [[(vector if number == word else number, 1.0) for number, _ in tokens["words"][0]]]
        return tokens


def test_a_textual_inversion_is_known_by_its_content():
    assert last_tokens_of(Inversions(), "a photo of mycat, 35mm", "mycat", WordClip.LENGTH) == [4]

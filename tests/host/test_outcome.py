"""The result of a run: its file, its detector, and no other file overwritten."""

import pytest
import torch
from runs import TINY, go, request_in, same_weights
from safetensors import safe_open
from tiny import WordClip, prompt, sample, seeded, tiny_model

from unhype.evaluation.training_page import in_words
from unhype.hypernet.files import load
from unhype.hypernet.patch import apply_erasure
from unhype.training.encode import encode
from unhype.training.plan import find_finished, make_plan
from unhype.training.prompts import TEMPLATES, fill, retain_split

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


# The file


@pytest.fixture(scope="module")
def request_of_first(tmp_path_factory):
    return request_in(tmp_path_factory.mktemp("first"), file_metadata={"workflow": "{}"})


@pytest.fixture(scope="module")
def first(request_of_first):
    """The outcome of a run."""
    return go(tiny_model(), request_of_first)


def test_the_file_holds_the_run(request_of_first, first):
    assert first.path == request_of_first.folder / "eraser.safetensors"
    with safe_open(str(first.path), framework="pt") as file:
        assert file.metadata()["workflow"] == "{}"
    record = load(first.path).record
    assert record == first.eraser.record
    assert record.concepts == (("cat", "tree"),)
    training = record.training
    assert training.steps == 6
    assert training.settings["learning_rate"] == TINY.learning_rate
    assert training.losses == [round(loss, 6) for loss in first.losses]
    assert training.stopped == first.reason == "finished"


def test_the_same_request_is_not_trained_twice(model, request_of_first, first):
    again = go(model, request_of_first, clip=object())  # with which nothing can be encoded
    assert again.reason == "already trained"
    assert again.path == first.path
    assert same_weights(again.eraser, first.eraser)
    assert again.losses == [round(loss, 6) for loss in first.losses]


def test_another_request_of_the_same_name_gets_a_number(model, ask):
    wishes = [ask(steps=1), ask(steps=1, seed=1), ask(steps=2)]
    first, second, third = (go(model, wish) for wish in wishes)
    assert [one.path.name for one in (first, second, third)] == [
        "eraser.safetensors",
        "eraser_2.safetensors",
        "eraser_3.safetensors",
    ]
    assert find_finished(make_plan(model, wishes[1]))[0] == second.path
    assert load(first.path).record == first.eraser.record


def test_foreign_files_of_that_name_are_left_alone(model, ask):
    files = {"eraser.safetensors": b"somebody's own", "eraser_2.safetensors": b""}
    ask().folder.mkdir()
    for name, content in files.items():
        (ask().folder / name).write_bytes(content)
    assert go(model, ask(steps=1)).path.name == "eraser_3.safetensors"
    assert {name: (ask().folder / name).read_bytes() for name in files} == files


# The detector


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The outcome of a run that shall preserve what this encoder takes for one of the concept's own wordings."""
    wish = request_in(tmp_path_factory.mktemp("words"), preserve="the cat\na stone bridge over a quiet river")
    return go(tiny_model(), wish, clip=WordClip())


def scores(eraser, texts):
    return eraser.score(torch.stack([encode(WordClip(), text).c for text in texts]))


def test_every_wording_of_a_concept_is_above_the_threshold(words):
    assert (scores(words.eraser, [fill(template, "cat") for template in TEMPLATES["object"]]) >= 1).all()


def test_held_out_prompts_are_below_the_threshold(words):
    below = (scores(words.eraser, retain_split("", (("cat", "tree"),)).held_out) < 1).float().mean().item()
    assert below > 0.9
    assert words.eraser.record.training.held_out_unchanged <= round(below, 4), "there every candidate counts"


def test_lines_to_preserve_that_are_erased_all_the_same_are_named(words):
    assert words.eraser.record.training.preserve_detected == ["the cat"]
    assert "Too near to the erased concepts to be kept: 'the cat'." in in_words(words)


def _long_words(tokens):
    return [number for number, _ in tokens["long words"][0]]


class RelatedClip(WordClip):
    """Where a tiger is also a little of a cat."""

    def encode_from_tokens_scheduled(self, tokens):
        ((cross, entry),) = super().encode_from_tokens_scheduled(tokens)
        (cat,), (tiger,) = (_long_words(self.tokenize(word)) for word in ("cat", "tiger"))
        words = _long_words(tokens)
        share = words.count(tiger) / max(1, len(words))
        relation = 0.25 * share * torch.randn(self.WIDTH, generator=seeded(cat))
        return [[cross, {"pooled_output": entry["pooled_output"] + relation}]]


def test_a_relative_to_preserve_is_drawn_bit_for_bit_and_the_concept_is_erased(model, ask):
    clip = RelatedClip()
    without = go(model, ask(name="without", steps=1), clip=clip).eraser
    learning = {"steps": 80, "hidden": 32, "attention_batch": 32, "learning_rate": 8e-3}
    preserving = go(model, ask(preserve="tiger", **learning), clip=clip).eraser

    def drawn(patcher, name):
        prompts = [encode(clip, fill(template, name)).conditioning for template in TEMPLATES["object"][:6]]
        return torch.stack([sample(patcher, each, prompt(2), pictures=1) for each in prompts])

    tigers, cats, trees = (drawn(model, name) for name in ("tiger", "cat", "tree"))
    assert not torch.equal(drawn(apply_erasure(model, without), "tiger"), tigers)
    erased = apply_erasure(model, preserving)
    assert torch.equal(drawn(erased, "tiger"), tigers)
    assert (drawn(erased, "cat") - trees).norm() < 0.5 * (cats - trees).norm()
    assert preserving.record.training.preserve_detected == []

"""The result of training: the file, its detector, and no file of anybody else's overwritten."""

import pytest
import torch
from runs import TINY, go, same_weights
from safetensors import safe_open
from tiny import TinyClip, WordClip, prompt, sample, seeded

from unhype.evaluation.training_page import in_words
from unhype.hypernet.files import load
from unhype.hypernet.patch import apply_erasure
from unhype.training.encode import encode
from unhype.training.prompts import TEMPLATES, fill, retain_split

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


def test_the_file_holds_the_run(model, ask):
    outcome = go(model, ask(file_metadata={"workflow": "{}"}))
    assert outcome.path == ask().folder / "eraser.safetensors"
    with safe_open(str(outcome.path), framework="pt") as file:
        assert file.metadata()["workflow"] == "{}"
    loaded = load(outcome.path)
    assert loaded.record == outcome.eraser.record
    assert loaded.record.concepts == (("cat", "tree"),)
    training = loaded.record.training
    assert training.steps == 6
    assert training.settings["learning_rate"] == TINY.learning_rate
    assert training.losses == [round(loss, 6) for loss in outcome.losses]
    assert training.stopped == outcome.reason == "finished"


def test_the_same_request_is_not_trained_twice(model, ask):
    class NoClip(TinyClip):
        def tokenize(self, text):
            raise AssertionError("no prompt needs encoding")

    first = go(model, ask())
    again = go(model, ask(), clip=NoClip())
    assert again.reason == "already trained"
    assert again.path == first.path
    assert same_weights(again.eraser, first.eraser)
    assert again.losses == [round(loss, 6) for loss in first.losses]


def test_another_request_of_the_same_name_gets_a_number(model, ask):
    first = go(model, ask())
    second = go(model, ask(seed=1))
    third = go(model, ask(steps=7))
    assert [one.path.name for one in (first, second, third)] == [
        "eraser.safetensors",
        "eraser_2.safetensors",
        "eraser_3.safetensors",
    ]
    assert go(model, ask(seed=1)).path == second.path
    assert load(first.path).record == first.eraser.record


@pytest.mark.parametrize("content", [b"somebody's own", b""])
def test_a_foreign_file_of_that_name_is_left_alone(model, ask, content):
    ask().folder.mkdir()
    foreign = ask().folder / "eraser.safetensors"
    foreign.write_bytes(content)
    outcome = go(model, ask())
    assert outcome.path.name == "eraser_2.safetensors"
    assert foreign.read_bytes() == content


# The detector of the file


def test_every_wording_of_the_concept_is_detected(model, ask):
    eraser = go(model, ask(), clip=WordClip()).eraser
    wordings = [template.replace("{a}", "a cat").replace("{}", "cat") for template in TEMPLATES["object"]]
    c = torch.stack([encode(WordClip(), wording).c for wording in wordings])
    assert (eraser.score(c) >= 1).all()


def test_held_out_prompts_are_below_the_threshold(model, ask):
    eraser = go(model, ask(), clip=WordClip()).eraser
    held_out = retain_split("", (("cat", "tree"),)).held_out
    c = torch.stack([encode(WordClip(), text).c for text in held_out])
    unchanged = (eraser.score(c) < 1).float().mean().item()
    assert unchanged > 0.9
    assert eraser.record.training.held_out_unchanged <= round(unchanged, 4), "every candidate counts there"


class KinClip(WordClip):
    """Where a tiger is also a little of a cat."""

    def encode_from_tokens_scheduled(self, tokens):
        ((cross, entry),) = super().encode_from_tokens_scheduled(tokens)
        cat, tiger = (self.tokenize(word)["spoken"][0] for word in ("cat", "tiger"))
        share = tokens["spoken"].count(tiger) / max(1, len(tokens["spoken"]))
        kin = 0.25 * share * torch.randn(self.WIDTH, generator=seeded(cat))
        return [[cross, {"pooled_output": entry["pooled_output"] + kin}]]


def test_a_relative_to_preserve_is_drawn_bit_for_bit_and_the_concept_is_erased(model, ask):
    clip = KinClip()
    learning = {"steps": 100, "hidden": 32, "attention_batch": 32, "learning_rate": 8e-3}
    without, preserving = (
        go(model, ask(preserve=text, name=f"p{text}", **learning), clip=clip).eraser for text in ("", "tiger")
    )

    def drawn(patcher, name):
        prompts = [encode(clip, fill(template, name)).conditioning for template in TEMPLATES["object"][:8]]
        return torch.stack([sample(patcher, each, prompt(2), pictures=1) for each in prompts])

    tigers, cats, trees = (drawn(model, name) for name in ("tiger", "cat", "tree"))
    assert not torch.equal(drawn(apply_erasure(model, without), "tiger"), tigers)
    erased = apply_erasure(model, preserving)
    assert torch.equal(drawn(erased, "tiger"), tigers)
    assert (drawn(erased, "cat") - trees).norm() < 0.5 * (cats - trees).norm()
    assert preserving.record.training.preserve_detected == []


def test_a_line_too_near_to_the_concept_is_named_at_the_end(model, ask):
    """For this encoder 'the cat' is one of the concept's own wordings."""
    outcome = go(model, ask(preserve="the cat\na stone bridge over a quiet river"), clip=WordClip())
    assert outcome.eraser.record.training.preserve_detected == ["the cat"]
    assert "Too near to the erased concepts to be kept: 'the cat'." in in_words(outcome)

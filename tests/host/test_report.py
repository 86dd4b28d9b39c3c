"""Erasure Report: pictures, measurements and lines, on a small model."""

from dataclasses import replace

import comfy.model_management
import comfy.samplers
import numpy
import pytest
import torch
from tiny import TinyClip, detector_of, embedding, overridden, prompt, seeded, tiny_eraser, tiny_model

from unhype.evaluation.cards import change_in_words, in_groups, pairs_in_words
from unhype.evaluation.compare import Pair, compare, own_prompts, prompts_of
from unhype.evaluation.decoding import decoder
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import TrainingRun
from unhype.training.sampling import Drawing, draw

DRAWING = Drawing(steps=3, cfg=3.0, width=64, height=64)
TEXTS = ["a cat", "a dog", "a house", "a river", "a cup", "a pear"]


pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def drawn():
    """A model, an eraser whose detector finds half of the texts, and their pairs."""
    model, clip = tiny_model(), TinyClip()
    c = [embedding(clip.encode_from_tokens_scheduled(text)) for text in TEXTS]
    eraser = tiny_eraser(model, size=0.5, detector=detector_of(c[:3], c[3:]))
    with torch.inference_mode():
        return model, eraser, compare(model, clip, eraser, TEXTS, DRAWING, decoder(model, None), lambda *_: None)


def test_detected_prompts_change_and_the_others_are_identical(drawn):
    _, _, pairs = drawn
    assert [pair.text for pair in pairs] == TEXTS
    assert sum(pair.erased for pair in pairs) == 3
    for pair in pairs:
        assert pair.identical == (not pair.erased)
        assert (pair.change > 0) == pair.erased
        assert torch.equal(pair.before, pair.after) == (not pair.erased)


def test_the_change_is_measured_on_the_pictures(drawn):
    for pair in drawn[2]:
        assert pair.change == pytest.approx(numpy.abs(pair.before.numpy() - pair.after.numpy()).mean(), abs=1e-6)


def test_nothing_stays_on_the_model(drawn):
    model, _, _ = drawn
    assert overridden(model) == []
    assert not any(model.wrappers.values())


@pytest.mark.parametrize(("sampler", "scheduler"), [("euler", "normal"), ("dpmpp_2m", "karras")])
def test_pictures_are_those_of_ksampler(sampler, scheduler):
    model, positive, negative = tiny_model(), prompt(1), prompt(2)
    ours = Drawing(4, 5.0, sampler, scheduler, 11, 64, 64)
    noise = torch.randn(1, 4, 8, 8, generator=seeded(11))
    theirs = comfy.samplers.KSampler(model, 4, model.load_device, sampler, scheduler, 1.0, model.model_options)
    expected = theirs.sample(noise, positive, negative, 5.0, torch.zeros_like(noise), disable_pbar=True, seed=11)
    steps = []
    assert torch.equal(draw(model, positive, negative, ours, steps.append), expected.cpu())
    assert steps == [1, 2, 3, 4]


def test_progress_counts_through_all_pictures_and_an_interrupt_leaves_nothing(drawn):
    model, eraser, pairs = drawn
    seen, shown = [], []

    def note(done, total, pair=None):
        seen.append((done, total))
        shown.extend([] if pair is None else [pair])

    compare(model, TinyClip(), eraser, TEXTS[:2], DRAWING, decoder(model, None), note)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (12, 12)
    assert [pair.text for pair in shown] == TEXTS[:2]

    def stop(done, total, pair=None):
        if done == 5:  # in the middle of a picture that is drawn with the eraser
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(model, TinyClip(), eraser, TEXTS[:2], DRAWING, decoder(model, None), stop)
    assert overridden(model) == []
    again = compare(model, TinyClip(), eraser, TEXTS[:1], DRAWING, decoder(model, None), lambda *_: None)
    assert torch.equal(again[0].before, pairs[0].before)
    assert torch.equal(again[0].after, pairs[0].after)


def test_a_list_is_read_line_by_line_and_a_list_without_end_is_refused():
    assert prompts_of("  a  cat\n\n# not this\na dog\na cat\n") == ["a cat", "a dog"]
    # Invisible characters as well: a prompt without them would be another one.
    unseen = ["\u2764\ufe0f\u200d\U0001f525 on a table", "a c\u200bat", "a c\u200dat"]
    assert prompts_of("\n".join(unseen)) == unseen
    with pytest.raises(ValueError, match=r"65 prompts are more than one page shows \(64\)"):
        prompts_of("\n".join(f"cat {number}" for number in range(65)))


def test_own_prompts_are_of_the_concepts_the_preserve_list_and_everyday_life():
    eraser = tiny_eraser(tiny_model(), concepts=[(f"thing{n}", "tree") for n in range(9)] + [("smoke", "")])
    training = TrainingRun(settings={"kind": "style"}, preserve=["Claude Monet", "a vase on a table"])
    shown = own_prompts(replace(eraser.record, training=training))
    assert shown[:4] == [f"a painting in the style of thing{n}" for n in range(4)]
    assert shown[4:6] == ["a painting in the style of Claude Monet", "a vase on a table"]
    assert len(shown) == len(set(shown)) == 8
    assert not any("smoke" in text for text in shown)
    # A file that was not trained here records neither.
    assert own_prompts(tiny_eraser(tiny_model()).record, 1, 1)[0] == "a photo of a cat"


def test_the_lines_give_the_measurements():
    grey = torch.zeros(2, 2, 3)
    pairs = [
        Pair("a cat", True, "score 2 of 1", grey, grey + 0.25, False, 0.25),
        Pair("a dog", False, "far from everything erased", grey, grey, True, 0.0),
        Pair("a cup", False, "far from everything erased", grey, grey + 1e-5, False, 1e-5),
    ]
    assert [change_in_words(pair) for pair in pairs] == [
        "changed by 25.0%",
        "identical to the last bit",
        "changed by less than 0.1%",
    ]
    text = pairs_in_words(pairs)
    assert text.startswith("Erased: 1 of 1 changed. Kept: 1 of 2 identical to the last bit.\n")
    assert text.index("a cat: changed by 25.0%") < text.index("Kept:\n") < text.index("a dog: identical")
    assert [name for name, _, _ in in_groups(pairs[1:])] == ["Kept"]


def test_the_eraser_of_another_model_is_refused_as_by_apply():
    model, other = tiny_model(), tiny_eraser(tiny_model("sdxl"))
    with pytest.raises(ValueError) as by_apply:
        apply_erasure(model, other)
    with pytest.raises(ValueError) as by_report:
        compare(model, TinyClip(), other, ["a cat"], DRAWING, decoder(model, None), lambda *_: None)
    assert str(by_report.value) == str(by_apply.value)

"""Erasure Report on a small model: what it draws and measures, and how it says it."""

from dataclasses import replace

import comfy.model_management
import comfy.samplers
import numpy
import pytest
import torch
from tiny import TinyClip, detector_of, embedding, overridden, prompt, seeded, tiny_eraser, tiny_model

from unhype.evaluation.cards import change_in_words, in_groups, outcome_in_words, pairs_in_words, tally
from unhype.evaluation.compare import Pair, compare, own_prompts, prompts_of
from unhype.evaluation.decoding import decoder
from unhype.evaluation.report_page import report_page, report_text
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import TrainingRun
from unhype.nodes.report import ErasureReport
from unhype.training.sampling import Drawing, draw

DRAWING = Drawing(steps=2, cfg=3.0, width=64, height=64)
ABOVE, BELOW = ("a cat", "a kitten"), ("a house", "a river")

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def without_report(*_):
    """A report of progress that nobody looks at."""


def compared(model, eraser, texts, report=without_report):
    return compare(model, TinyClip(), eraser, texts, DRAWING, decoder(model, None), report)


@pytest.fixture(scope="module")
def eraser(model):
    """An eraser whose detector detects `ABOVE`."""
    above, below = (
        [embedding(TinyClip().encode_from_tokens_scheduled(text)) for text in own] for own in (ABOVE, BELOW)
    )
    return tiny_eraser(model, size=0.5, detector=detector_of(above, below))


@pytest.fixture(scope="module")
def pairs(model, eraser):
    with torch.inference_mode():
        return compared(model, eraser, [*ABOVE, *BELOW])


def test_pictures_below_the_threshold_are_identical_and_those_above_change(model, pairs):
    assert [pair.text for pair in pairs] == [*ABOVE, *BELOW]
    for pair in pairs:
        assert pair.erased == (pair.text in ABOVE)
        assert pair.identical == (not pair.erased)
        assert (pair.change > 0) == pair.erased
        assert torch.equal(pair.before, pair.after) == (not pair.erased)
        assert pair.change == pytest.approx(numpy.abs(pair.before.numpy() - pair.after.numpy()).mean(), abs=1e-6)
    assert overridden(model) == []
    assert not any(model.wrappers.values())


def test_page_and_text_show_every_prompt(eraser, pairs):
    text = report_text(eraser, pairs, DRAWING, ["A warning."], {})
    assert text.startswith(
        "Erasure report: tiny\nErases: cat -> tree\n2 of 2 erased prompts changed. "
        "2 of 2 other prompts unchanged to the last bit.\nA warning.\n\nErased:\n"
    )
    assert all(f"\n{pair.text}: " in text for pair in pairs)
    assert text.count("score 2 of 1") == 2
    assert text.endswith("Drawn with 2 steps, CFG 3, euler, normal, seed 0, 64 x 64.")
    page = report_page(eraser, pairs, [], {})
    assert page.width == 640
    assert report_page(eraser, pairs, ["A warning."], {}).height > page.height


def test_prompts_stand_in_the_groups_that_they_were_chosen_for(pairs):
    headings = {"a cat": "The concept", "a house": "Everyday", "a kitten": "Other wordings", "a river": "Everyday"}
    groups = in_groups(pairs, headings)
    assert [(heading, [pair.text for pair in members]) for heading, members in groups] == [
        ("The concept", ["a cat"]),
        ("Everyday", ["a house", "a river"]),
        ("Other wordings", ["a kitten"]),
    ]


def test_an_empty_list_of_prompts_is_filled_from_the_file(model, eraser):
    _, text, _ = run_node(model, eraser, "")
    headings = [line for line in text.splitlines() if line.endswith(":")]
    assert headings == ["The concept:", "Other wordings:", "Everyday:"]
    assert "\na photo of a cat: " in text


class RoughVae:
    """Decodes as the rough preview does."""

    def __init__(self, model):
        self.decode = lambda latents: decoder(model, None)(latents).unsqueeze(0)


SETTINGS = {
    "steps": 2,
    "cfg": 3.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "seed": 0,
    "width": 64,
    "height": 64,
}


def run_node(model, eraser, prompts, **inputs):
    """Erasure Report's page, text and what it shows on itself."""
    node = ErasureReport.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    output = node.execute(model, TinyClip(), RoughVae(model), eraser, prompts, **SETTINGS, **inputs)
    return *output.args, output.ui


def test_the_report_of_an_imported_file_says_that_it_has_no_detector(model):
    page, text, ui = run_node(model, tiny_eraser(model, size=0.5), "a house\na river")
    assert text.splitlines()[2] == "2 of 2 erased prompts changed."
    assert text.count("no detector in the file: applied to every prompt") == 2
    assert "score" not in text
    assert "e+" not in text
    assert page.shape[2] == 640
    assert ui["text"] == (text,)


def test_a_model_with_an_eraser_on_it_is_named(model, eraser):
    _, text, _ = run_node(apply_erasure(model, eraser), eraser, "a house")
    assert "The model already has an eraser on it: 'before' is with that one." in text
    assert "The model already has" not in run_node(model, eraser, "a house")[1]


@pytest.mark.parametrize(
    ("prompts", "inputs", "message"),
    [
        (
            "\n".join(f"a cat {n}" for n in range(65)),
            {},
            "Erasure Report, 'prompts': 65 prompts are more than one page",
        ),
        (
            "a cat",
            {"clip_vision": "a.safetensors"},
            "Erasure Report, 'clip_vision': connect the output of another node",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_in_words(model, eraser, prompts, inputs, message):
    with pytest.raises(ValueError, match=message):
        run_node(model, eraser, prompts, **inputs)


@pytest.mark.parametrize(("sampler", "scheduler"), [("euler", "normal"), ("dpmpp_2m", "karras")])
def test_pictures_are_those_of_ksampler(model, sampler, scheduler):
    positive, negative = prompt(1), prompt(2)
    ours = Drawing(4, 5.0, sampler, scheduler, 11, 64, 64)
    noise = torch.randn(1, 4, 8, 8, generator=seeded(11))
    theirs = comfy.samplers.KSampler(model, 4, model.load_device, sampler, scheduler, 1.0, model.model_options)
    expected = theirs.sample(noise, positive, negative, 5.0, torch.zeros_like(noise), disable_pbar=True, seed=11)
    steps = []
    assert torch.equal(draw(model, positive, negative, ours, steps.append), expected.cpu())
    assert steps == [1, 2, 3, 4]


def test_progress_counts_through_all_pictures_and_an_interrupt_leaves_nothing(model, eraser, pairs):
    calls, shown = [], []

    def note(done, total, pair=None):
        calls.append((done, total))
        shown.extend([] if pair is None else [pair.text])

    compared(model, eraser, ABOVE, note)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (4 * DRAWING.steps,) * 2
    assert shown == [*ABOVE]

    def stop(done, total, pair=None):
        if done == DRAWING.steps + 1:  # in the middle of a picture that is drawn with the eraser
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compared(model, eraser, ABOVE, stop)
    assert overridden(model) == []
    (again,) = compared(model, eraser, ABOVE[:1])
    assert torch.equal(again.before, pairs[0].before)
    assert torch.equal(again.after, pairs[0].after)


def test_a_list_has_a_prompt_a_line():
    assert prompts_of("  a  cat\n\n# not this\na dog\na cat\n") == ["a cat", "a dog"]
    # Invisible characters stay: without them it would be another prompt.
    invisible = ["\u2764\ufe0f\u200d\U0001f525 on a table", "a c\u200bat", "a c\u200dat"]
    assert prompts_of("\n".join(invisible)) == invisible


def test_own_prompts_are_of_the_concepts_their_wordings_relatives_and_everyday_life(model):
    concepts = [(f"thing{n}", "tree") for n in range(9)] + [("smoke", "")]
    run = TrainingRun(
        settings={"kind": "style"},
        preserve=["Claude Monet", "a vase on a table"],
        relatives=["a poster", "a stamp", "an etching"],
    )
    shown = own_prompts(replace(tiny_eraser(model, concepts=concepts).record, training=run))
    assert list(shown) == ["The concept", "Other wordings", "Close relatives", "Everyday"]
    assert shown["The concept"] == [f"a painting in the style of thing{n}" for n in range(4)]
    assert ["thing0" in shown["Other wordings"][0], "thing1" in shown["Other wordings"][1]] == [True, True]
    assert shown["Close relatives"] == ["a painting in the style of Claude Monet", "a vase on a table", "a poster"]
    assert len(shown["Everyday"]) == 2
    texts = [text for group in shown.values() for text in group]
    assert len(texts) == len(set(texts))
    assert not any("smoke" in text for text in texts)


@pytest.mark.parametrize(
    "training", [TrainingRun(), TrainingRun(settings={"kind": "of another version"}, preserve=[3])]
)
def test_own_prompts_of_a_file_from_elsewhere(model, training):
    shown = own_prompts(replace(tiny_eraser(model).record, training=training))
    assert shown["The concept"] == ["a photo of a cat"]
    assert len(shown["Other wordings"]) == 2
    assert ("Close relatives" in shown) == bool(training.preserve)


def test_the_text_says_what_was_measured():
    grey = torch.zeros(2, 2, 3)
    pairs = [
        Pair("a cat", True, "score 2 of 1", grey, grey + 0.25, False, 0.25),
        Pair("a dog", False, "far from everything erased", grey, grey, True, 0.0),
        Pair("a cup", False, "far from everything erased", grey, grey + 1e-5, False, 1e-5),
    ]
    assert [change_in_words(pair) for pair in pairs] == [
        "changed by 25.0%",
        "unchanged to the last bit",
        "changed by less than 0.1%",
    ]
    assert tally(pairs) == "1 of 1 erased prompts changed. 1 of 2 other prompts unchanged to the last bit."
    text = pairs_in_words(pairs)
    assert text.index("a cat: erased, changed by 25.0% (score 2 of 1)") < text.index("Kept:\n") < text.index("a dog: ")
    assert [name for name, _ in in_groups(pairs[1:])] == ["Kept"]
    assert [outcome_in_words(pair) for pair in pairs] == [
        "erased",
        "unchanged to the last bit",
        "changed by less than 0.1%",
    ]
    assert outcome_in_words(pairs[1]._replace(erased=True)) == "erased, but the picture is the same"


def test_the_eraser_of_another_model_is_refused_as_by_apply(model):
    other = tiny_eraser(tiny_model("sdxl"))
    with pytest.raises(ValueError) as by_apply:
        apply_erasure(model, other)
    with pytest.raises(ValueError) as by_report:
        compared(model, other, ["a cat"])
    assert str(by_report.value) == str(by_apply.value)


def test_what_ran_without_erasure_is_told(model, eraser):
    told = []

    def patch(q, keys, values, options):
        longer = torch.cat([keys, torch.randn(1, 2, keys.shape[2], generator=seeded(3)).expand(len(keys), -1, -1)], 1)
        return q, longer, longer

    clone = model.clone()
    clone.set_model_attn2_patch(patch)
    for changed, expected in ((model, 0), (clone, 1)):
        compare(changed, TinyClip(), eraser, [*BELOW], DRAWING, decoder(model, None), without_report, tell=told.append)
        assert len(set(told)) == expected
    assert "text that another node brings into the model" in told[0]

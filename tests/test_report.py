"""Erasure Report: what it draws and measures, in this process on a small model, and on the lab's through the API."""

import json
import re
from dataclasses import replace

import comfy.model_management
import comfy.samplers
import numpy
import pytest
import torch
from graphs import nodes_of
from PIL import Image
from tiny import TinyClip, overridden, prompt, seeded, tiny_hypernet, tiny_model

from benchmarks.server import PromptError
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.verdict import verdicts
from unhype.nodes.cards import change_in_words, in_groups, pairs_in_words
from unhype.nodes.decoding import decoder
from unhype.training.compare import Pair, compare, own_prompts, prompts_of
from unhype.training.drawing import Drawing, draw

DRAWING = Drawing(steps=3, cfg=3.0, width=64, height=64)
TEXTS = ["a cat", "a dog", "a house", "a river", "a cup", "a pear"]


pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def drawn():
    """A model, an eraser whose dead zone holds half of the texts, and their pairs."""
    model, clip = tiny_model(), TinyClip()
    trained = tiny_hypernet(model, size=0.5, dead_zone=1.0)
    with torch.inference_mode():
        sizes = sorted(verdicts(trained, clip.encode_from_tokens_scheduled(text))[0].size for text in TEXTS)
        trained = replace(trained, record=replace(trained.record, dead_zone=(sizes[2] + sizes[3]) / 2))
        return model, trained, compare(model, clip, trained, TEXTS, DRAWING, decoder(model, None), lambda *_: None)


def test_what_the_switch_keeps_is_identical_and_what_it_erases_changes(drawn):
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
    model, trained, pairs = drawn
    seen, shown = [], []

    def note(done, total, pair=None):
        seen.append((done, total))
        shown.extend([] if pair is None else [pair])

    compare(model, TinyClip(), trained, TEXTS[:2], DRAWING, decoder(model, None), note)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (12, 12)
    assert [pair.text for pair in shown] == TEXTS[:2]

    def stop(done, total, pair=None):
        if done == 5:  # in the middle of a picture that is drawn with the eraser
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(model, TinyClip(), trained, TEXTS[:2], DRAWING, decoder(model, None), stop)
    assert overridden(model) == []
    again = compare(model, TinyClip(), trained, TEXTS[:1], DRAWING, decoder(model, None), lambda *_: None)
    assert torch.equal(again[0].before, pairs[0].before)
    assert torch.equal(again[0].after, pairs[0].after)


def test_a_list_is_read_line_by_line_and_a_list_without_end_is_refused():
    assert prompts_of("  a  cat\n\n# not this\na dog\na cat\n") == ["a cat", "a dog"]
    # Also what nobody sees: a prompt without it would be another one.
    unseen = ["\u2764\ufe0f\u200d\U0001f525 on a table", "a c\u200bat", "a c\u200dat"]
    assert prompts_of("\n".join(unseen)) == unseen
    with pytest.raises(ValueError, match=r"65 prompts are more than one page shows \(64\)"):
        prompts_of("\n".join(f"cat {number}" for number in range(65)))


def test_own_prompts_are_of_the_concepts_the_preserve_list_and_everyday_life():
    trained = tiny_hypernet(tiny_model(), concepts=[(f"thing{n}", "tree") for n in range(9)] + [("smoke", "")])
    trained.record.training.update({"settings": {"kind": "style"}, "preserve": ["Claude Monet", "a vase on a table"]})
    shown = own_prompts(trained.record)
    assert shown[:4] == [f"a painting in the style of thing{n}" for n in range(4)]
    assert shown[4:6] == ["a painting in the style of Claude Monet", "a vase on a table"]
    assert len(shown) == len(set(shown)) == 8
    assert not any("smoke" in text for text in shown)
    # A file that was not trained here says neither.
    assert own_prompts(tiny_hypernet(tiny_model()).record, 1, 1)[0] == "a photo of a cat"


def test_the_words_say_what_was_measured():
    grey = torch.zeros(2, 2, 3)
    pairs = [
        Pair("a cat", True, "2 times the dead zone", grey, grey + 0.25, False, 0.25),
        Pair("a dog", False, "far from all that is erased", grey, grey, True, 0.0),
        Pair("a cup", False, "far from all that is erased", grey, grey + 1e-5, False, 1e-5),
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


# Through the API


@pytest.fixture(scope="module")
def graph(server, demo_run):
    """A report of the demo's eraser on the lab model, as an API prompt."""
    (trainer,) = nodes_of(demo_run[0], "UnHypeTrainErasure")
    parts = server.object_info()["UnHypeErasureReport"]["input"].values()
    specs = {name: spec[1] for part in parts for name, spec in part.items() if len(spec) > 1}
    defaults = {name: options["default"] for name, options in specs.items() if "default" in options}
    lab = {name: ["lab", number] for number, name in enumerate(("model", "clip", "vae"))}
    drawing = {"width": 128, "height": 128, "steps": 8, "cfg": 3.0, "unhype": ["load", 0]}
    drawing["prompts"] = "a photo of a cat\na car\na photo of a ship"
    eraser = {"hypernet": f"{trainer['inputs']['name']}.safetensors"}
    return {
        "lab": {"class_type": "UnHypeLabLoader", "inputs": {}},
        "load": {"class_type": "UnHypeLoadHypernet", "inputs": eraser},
        "report": {"class_type": "UnHypeErasureReport", "inputs": defaults | lab | drawing},
    }


@pytest.fixture(scope="module")
def reported(server, graph):
    return server.run(graph)


def test_the_lab_shows_a_cat_erased_and_the_rest_identical(server, reported):
    (words,) = reported["outputs"]["report"]["text"]
    assert "Erased: 1 of 1 changed. Kept: 2 of 2 identical to the last bit." in words
    assert "\na photo of a cat: changed by " in words
    assert "\na car: identical to the last bit" in words
    (page,) = server.pictures(reported, "report")
    with Image.open(page) as image:
        assert image.width == 640


def test_a_judge_that_is_connected_says_what_the_cat_has_become(server, graph, reported):
    judged = json.loads(json.dumps(graph))
    judged["judge"] = {"class_type": "UnHypeTestCLIPVision", "inputs": {}}
    judged["report"]["inputs"]["clip_vision"] = ["judge", 0]
    (words,) = server.run(judged)["outputs"]["report"]["text"]
    assert "Judge: 1 of 1 more like what they turn into than like before." in words
    assert re.search(r"a photo of a cat: .*; judge: 0\.\d\d like before, [01]\.\d\d like 'a photo of a tree'\)", words)
    assert words.count("judge: ") == 1
    without = [
        line.partition("; judge")[0].rstrip(")") for line in reported["outputs"]["report"]["text"][0].splitlines()
    ]
    assert [line.partition("; judge")[0].rstrip(")") for line in words.splitlines()][-3:] == without[-3:]


def test_a_value_in_the_judges_place_is_refused_in_words(server, graph, reported):
    wrong = json.loads(json.dumps(graph))
    wrong["report"]["inputs"]["clip_vision"] = "model.safetensors"
    with pytest.raises(PromptError, match="Erasure Report, 'clip_vision': connect the output of another node"):
        server.run(wrong)


def test_the_run_is_on_a_page_without_thumbnails_when_no_previews_are_wanted(server, demo_run):
    prompt, entry = demo_run
    (trainer,) = (number for number, node in prompt.items() if node["class_type"] == "UnHypeTrainErasure")
    (page,) = server.pictures(entry, trainer)
    with Image.open(page) as image:
        assert (image.width, image.height < 500) == (640, True)


def test_an_eraser_under_another_is_said(server, graph, reported):
    twice = json.loads(json.dumps(graph))
    options = {"strength": 1.0, "keep_others_exact": True}
    inputs = {"model": ["lab", 0], "unhype": ["load", 0], **options}
    twice["apply"] = {"class_type": "UnHypeApplyErasure", "inputs": inputs}
    twice["report"]["inputs"] |= {"model": ["apply", 0], "prompts": "a car"}
    (words,) = server.run(twice)["outputs"]["report"]["text"]
    assert "The model already has an eraser on it: 'before' is with that one." in words


def test_too_many_prompts_are_refused_in_words(server, graph, reported):
    many = json.loads(json.dumps(graph))
    many["report"]["inputs"]["prompts"] = "\n".join(f"a cat {number}" for number in range(65))
    with pytest.raises(PromptError, match="Erasure Report, 'prompts': 65 prompts are more than one page shows"):
        server.run(many)


def test_an_interrupt_ends_the_report_and_the_next_one_is_the_same(server, graph, reported):
    from test_live import interrupt_once

    long = json.loads(json.dumps(graph))
    long["report"]["inputs"]["steps"] = 200
    long["report"]["inputs"]["prompts"] = "\n".join(f"a car {number}" for number in range(60))
    interrupt_once(server, long, lambda: server.get("/queue")["queue_running"])
    again = json.loads(json.dumps(graph))
    again["report"]["inputs"]["prompts"] += "\n# so that ComfyUI runs it again"
    entry = server.run(again)
    assert entry["outputs"]["report"]["text"] == reported["outputs"]["report"]["text"]


def test_the_eraser_of_another_model_is_refused_as_by_apply():
    model, other = tiny_model(), tiny_hypernet(tiny_model("sdxl"))
    with pytest.raises(ValueError) as by_apply:
        apply_erasure(model, other)
    with pytest.raises(ValueError) as by_report:
        compare(model, TinyClip(), other, ["a cat"], DRAWING, decoder(model, None), lambda *_: None)
    assert str(by_report.value) == str(by_apply.value)

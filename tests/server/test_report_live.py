"""Erasure Report through the API, on the lab's model with the demo's eraser."""

import json
import re

import pytest
from graphs import nodes_of
from PIL import Image

from benchmarks.server import PromptError


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


def test_a_clip_vision_model_gives_similarities(server, graph, reported):
    compared = json.loads(json.dumps(graph))
    compared["vision"] = {"class_type": "UnHypeTestCLIPVision", "inputs": {}}
    compared["report"]["inputs"]["clip_vision"] = ["vision", 0]
    (words,) = server.run(compared)["outputs"]["report"]["text"]
    assert "Similarity: 1 of 1 more like their mapping than like before." in words
    assert re.search(r"a photo of a cat: .*; similarity: 0\.\d\d to before, [01]\.\d\d to 'a photo of a tree'\)", words)
    assert words.count("; similarity: ") == 1
    without = [
        line.partition("; similarity")[0].rstrip(")") for line in reported["outputs"]["report"]["text"][0].splitlines()
    ]
    assert [line.partition("; similarity")[0].rstrip(")") for line in words.splitlines()][-3:] == without[-3:]


def test_a_value_in_the_place_of_a_clip_vision_model_is_refused(server, graph, reported):
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

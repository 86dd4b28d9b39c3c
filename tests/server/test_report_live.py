"""Erasure Report on the lab's model, through the API of a running ComfyUI."""

import json
import re

import pytest
from graphs import nodes_of
from PIL import Image
from test_live import interrupt_once


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


def changed(graph, **inputs):
    """A copy of the graph with other inputs of the report."""
    copied = json.loads(json.dumps(graph))
    copied["report"]["inputs"] |= inputs
    return copied


@pytest.fixture(scope="module")
def reported(server, graph):
    """The history entry of the report."""
    return server.run(graph)


def text_of(entry):
    (text,) = entry["outputs"]["report"]["text"]
    return text


def test_the_lab_shows_a_cat_erased_and_the_rest_identical(server, reported):
    text = text_of(reported)
    assert "1 of 1 erased prompts changed. 2 of 2 other prompts unchanged to the last bit." in text
    assert "\na photo of a cat: erased, changed by " in text
    assert "\na car: unchanged to the last bit" in text
    (page,) = server.pictures(reported, "report")
    with Image.open(page) as image:
        assert image.width == 640


def test_a_clip_vision_rates_the_cat_and_changes_nothing_else(server, graph, reported):
    rated = changed(graph, clip_vision=["vision", 0])
    rated["vision"] = {"class_type": "UnHypeTestCLIPVision", "inputs": {}}
    text = text_of(server.run(rated))
    rating = r"; similarity: -?[01]\.\d\d to before, -?[01]\.\d\d to 'a photo of a tree'"
    assert re.search(rf"a photo of a cat: .*{rating}\)", text)
    summary = " 1 of 1 erased pictures look more like the replacement than like before."
    assert summary in text
    assert re.sub(re.escape(summary), "", re.sub(rating, "", text)) == text_of(reported)


def test_a_training_run_is_on_a_page_without_pictures_when_no_previews_are_wanted(server, demo_run):
    prompt, entry = demo_run
    (trainer,) = (number for number, node in prompt.items() if node["class_type"] == "UnHypeTrainErasure")
    (page,) = server.pictures(entry, trainer)
    with Image.open(page) as image:
        assert (image.width, image.height < 500) == (640, True)


def test_an_interrupt_ends_the_report_and_the_next_one_is_the_same(server, graph, reported):
    long = changed(graph, steps=200, prompts="\n".join(f"a car {number}" for number in range(60)))
    interrupt_once(server, long, lambda: server.get("/queue")["queue_running"])
    again = changed(graph, prompts=graph["report"]["inputs"]["prompts"] + "\n# so that ComfyUI runs it again")
    assert text_of(server.run(again)) == text_of(reported)

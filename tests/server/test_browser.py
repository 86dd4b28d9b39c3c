"""What a user finds in ComfyUI's own web interface, in a headless Chromium: templates, nodes, help, older workflows.

`--shots FOLDER` keeps a screenshot of every step, to be looked at.
"""

import json
import re

import pytest
from graphs import kinds, read
from playwright.sync_api import expect

from benchmarks.environment import ROOT
from benchmarks.graph import WORKFLOWS
from benchmarks.server import PACKS

HELP = ROOT / "web" / "docs"
NODES = sorted(path.stem for path in HELP.glob("*.md"))
TRAINER, REPORT = "UnHypeTrainErasure", "UnHypeErasureReport"
NAMES = {
    "erasure": {"Train Erasure", "Apply Concept Erasure", "Erasure Report"},
    "unhype": {"Load UnHype Hypernet", "Import UnHype Weights"},
}
# What people type who need an eraser: one of our nodes is among the first five.
PURPOSES = ("erase", "remove", "nsfw", "censor", "block", "ban", "forget", "remove style", "remove person", "safety")
PURPOSES += ("train lora", "negative")
FIRST = 5
OURS = ("Erase Concept", "Train Erasure", "Apply Concept Erasure", "Load UnHype Hypernet", "Erasure Report")


@pytest.fixture(scope="module")
def web(named_files, web):
    """The interface, with every file in the lists that our workflows name."""
    return web


@pytest.fixture
def search_words(server):
    """Skips on a ComfyUI whose nodes have no words to be found by besides their names; all else is in both hosts."""
    if not any("search_aliases" in node for node in server.object_info().values()):
        pytest.skip("this ComfyUI finds nodes by their names alone")


def loaded(picture):
    """Wait until an <img> has its pixels; returns its width."""
    handle = picture.element_handle()
    picture.page.wait_for_function("(img) => img.complete", arg=handle)
    return handle.evaluate("(img) => img.naturalWidth")


def test_our_templates_are_there_with_thumbnails(web):
    web.command("Comfy.BrowseTemplates")
    for pack in PACKS:  # the lab's own are not in what people install
        web.page.get_by_text(pack, exact=True).first.click()
        names = [path.stem for path in WORKFLOWS.values() if path.parent.parent == PACKS[pack]]
        for name in names:
            card = web.page.get_by_test_id(f"template-workflow-{name}")
            card.scroll_into_view_if_needed()
            picture = card.locator("img").first
            assert loaded(picture) > 1
            assert "default-template" not in picture.get_attribute("src")
        web.shot(f"templates_{pack}")
    web.page.get_by_test_id("template-workflow-demo").click()
    web.wait_for_nodes(kinds(WORKFLOWS["demo"]))
    assert not web.red()
    web.shot("template_demo")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_dropped_on_the_canvas_opens_without_a_red_node(web, name):
    web.drop(WORKFLOWS[name])
    web.wait_for_nodes(kinds(WORKFLOWS[name]))
    assert not web.red()
    expect(web.page.get_by_text("Invalid workflow")).to_have_count(0)
    web.shot(f"workflow_{name}")


def test_a_node_that_nobody_has_is_red(web, tmp_path):
    workflow = read("demo")
    workflow["nodes"][1]["type"] = "NodeOfNoPack"
    path = tmp_path / "unknown.json"
    path.write_text(json.dumps(workflow), "utf-8")
    web.drop(path)
    web.wait_for_nodes([node["type"] for node in workflow["nodes"]])
    assert "NodeOfNoPack" in web.red()
    web.open()


def finds(web, words, names):
    """Search in the palette, as a double click on the canvas does, and look for these nodes."""
    web.command("Workspace.SearchBox.Toggle")
    web.page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    web.page.keyboard.type(words)
    results = web.page.locator("[data-testid=result-item], .p-autocomplete-option")
    for name in names:
        expect(results.filter(has_text=name).first).to_be_attached()
    web.shot(f"search_{words.replace(' ', '_')}")
    web.page.keyboard.press("Escape")
    expect(results).to_have_count(0)


@pytest.mark.parametrize("words", NAMES)
def test_the_palette_finds_our_nodes_by_name(web, words):
    finds(web, words, NAMES[words])


def test_the_palette_finds_our_nodes_by_what_they_are_for(web, search_words):
    missed = {}
    for words in PURPOSES:
        web.command("Workspace.SearchBox.Toggle")
        web.page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
        web.page.keyboard.type(words)
        results = web.page.locator("[data-testid=result-item], .p-autocomplete-option")
        expect(results.filter(has_text=re.compile("|".join(OURS))).first).to_be_attached()
        for _ in range(100):  # until the list is that of the words
            first = results.all_inner_texts()[:FIRST]
            if found := any(name in text for name in OURS for text in first):
                break
            web.page.wait_for_timeout(100)
        if not found:
            missed[words] = first
        web.page.keyboard.press("Escape")
        expect(results).to_have_count(0)
    assert missed == {}


@pytest.mark.parametrize("kind", NODES)
def test_a_node_shows_its_help(web, kind):
    source = (HELP / f"{kind}.md").read_text("utf-8")
    web.page.evaluate(
        "(kind) => { app.graph.clear(); const node = LiteGraph.createNode(kind); app.graph.add(node) }", kind
    )
    web.show(kind)
    web.shot(f"node_{kind}")
    web.page.evaluate("app.canvas.selectNode(app.graph._nodes[0])")
    web.page.locator("[data-testid=info-button], .selection-toolbox .help-button").click()  # the latter up to 0.3.52
    pane = web.page.locator(".node-help-content")
    expect(pane).to_contain_text(re.search(r"^# (.+)", source)[1])
    assert "## " not in pane.inner_text()
    pictures = pane.locator("img")
    expect(pictures).to_have_count(len(re.findall(r"!\[|<img ", source)))
    for number in range(pictures.count()):
        assert loaded(pictures.nth(number)) > 1
    web.shot(f"help_{kind}")
    web.page.evaluate("app.canvas.deselectAll()")


VALUES = (
    "(kind) => Object.fromEntries(app.graph._nodes.find((n) => n.type === kind).widgets.map((w) => [w.name, w.value]))"
)
LINKED = """(kind) => Object.fromEntries(app.graph._nodes.find((node) => node.type === kind).inputs
  .filter((input) => input.link != null)
  .map((input) => [input.name, app.graph.getNodeById(app.graph.links[input.link].origin_id).type]))"""


def test_a_workflow_of_before_loads_every_value_in_its_place(web, tmp_path):
    """`preset` was the last field; still older workflows have none. Another node gives the steps."""
    for older in (lambda values: [*values[1:], values[0]], lambda values: values[1:]):
        workflow = read("train_sd15")
        (trainer,) = (node for node in workflow["nodes"] if node["type"] == TRAINER)
        values = [*trainer["widgets_values"][:1], "dog -> bush", *trainer["widgets_values"][2:]]
        trainer["widgets_values"] = older(values)
        trainer["inputs"] = [entry for entry in trainer["inputs"] if entry["name"] != "preset"]
        number, link = workflow["last_node_id"] + 1, workflow["last_link_id"] + 1
        slot = next(n for n, entry in enumerate(trainer["inputs"]) if entry["name"] == "steps")
        trainer["inputs"][slot]["link"] = link
        source = {"id": number, "type": "PrimitiveInt", "pos": [0, 700], "size": [300, 100], "mode": 0, "flags": {}}
        source |= {"order": 0, "inputs": [], "properties": {}, "widgets_values": [77, "fixed"]}
        source["outputs"] = [{"name": "INT", "type": "INT", "links": [link]}]
        workflow["nodes"].append(source)
        workflow["links"].append([link, number, 0, trainer["id"], slot, "INT"])
        workflow |= {"last_node_id": number, "last_link_id": link}
        path = tmp_path / "older.json"
        path.write_text(json.dumps(workflow), "utf-8")
        web.drop(path)
        web.wait_for_nodes([node["type"] for node in workflow["nodes"]])
        found = web.page.evaluate(VALUES, TRAINER)
        (names,) = ([entry["name"] for entry in node["inputs"] if "widget" in entry] for node in [trained_node()])
        assert [found[name] for name in names] == values
        loader = dict.fromkeys(("model", "clip", "vae"), "CheckpointLoaderSimple")
        assert web.page.evaluate(LINKED, TRAINER) == {**loader, "steps": "PrimitiveInt"}


def trained_node():
    """Train Erasure as the template has it: its inputs are in the order of the fields."""
    return next(node for node in read("train_sd15")["nodes"] if node["type"] == TRAINER)


def test_a_report_of_before_keeps_its_sampler(web, tmp_path):
    workflow = read("report_sd15")
    (report,) = (node for node in workflow["nodes"] if node["type"] == REPORT)
    (entry,) = (entry for entry in report["inputs"] if entry["name"] == "sampler_name")
    entry |= {"name": "sampler", "widget": {"name": "sampler"}}
    place = [entry["name"] for entry in report["inputs"] if "widget" in entry].index("sampler")
    report["widgets_values"][place] = "dpmpp_2m"
    path = tmp_path / "older.json"
    path.write_text(json.dumps(workflow), "utf-8")
    web.drop(path)
    web.wait_for_nodes([node["type"] for node in workflow["nodes"]])
    assert web.page.evaluate(VALUES, REPORT)["sampler_name"] == "dpmpp_2m"
    names = web.page.evaluate("(k) => app.graph._nodes.find((n) => n.type === k).inputs.map((i) => i.name)", REPORT)
    assert (names.count("sampler_name"), names.count("sampler")) == (1, 0)

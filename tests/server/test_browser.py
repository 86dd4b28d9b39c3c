"""A user's first hour in ComfyUI's own web interface, in a headless Chromium.

`--shots FOLDER` keeps a screenshot of every step, to be looked at. It then trains on the lab's model, whose
pictures mean something, and takes minutes; without it on small random weights.
"""

import json
import re
import time

import pytest
from graphs import SIDE, kinds, read, small_demo
from playwright.sync_api import expect

from benchmarks.environment import ROOT
from benchmarks.graph import WORKFLOWS
from benchmarks.server import PACKS, PromptError

HELP = ROOT / "web" / "docs"
NODES = sorted(path.stem for path in HELP.glob("*.md"))
TRAINER, REPORT, LAB = "UnHypeTrainErasure", "UnHypeErasureReport", "UnHypeLabLoader"
THINGS = ("cat", "kitty", "tiger", "dog", "airplane", "ship", "car", "horse", "frog", "deer", "bird", "truck")
# Enough for a page that is higher than the window.
PROMPTS = "\n".join(f"{words} {name}" for words in ("a", "a photo of a") for name in THINGS)
# How much of the node's width its page takes: a narrow one can't be read.
_WIDTH_OF_PAGE = """(kind) => {
  const node = app.graph._nodes.find((one) => one.type === kind), page = node.imgs[0]
  const preview = node.widgets.find((widget) => widget.name === "$$canvas-image-preview")
  const element = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"] .image-preview img`)
  const height = element ? element.offsetHeight : preview.computedHeight
  return height * page.naturalWidth / page.naturalHeight / node.size[0]
}"""
_LAST_TEXT = "(kind) => window.seenTexts[app.graph._nodes.find((node) => node.type === kind).id]"
# More than anybody waits for: training is stopped on its way. Then it ends after these, if it can.
ENDLESS, STEPS, STEPS_ON_LAB = 100_000, 30, 200
LONG = 600_000  # milliseconds
EMPTY = {
    "UnHypeLoadHypernet": "^Load UnHype Hypernet, 'hypernet': .* Train one with Train Erasure",
    "UnHypeImportWeights": r"^Import UnHype Weights, 'weights': .* Put one there",
}
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


@pytest.fixture
def no_files(server):
    """A newcomer's models/unhype: without any file."""
    folder, aside = server.base / "models" / "unhype", server.base / "models" / "unhype_aside"
    aside.mkdir()
    files = list(folder.iterdir())
    for path in files:
        path.rename(aside / path.name)
    yield
    for path in files:
        (aside / path.name).rename(path)
    aside.rmdir()


@pytest.mark.parametrize("kind", EMPTY)
def test_a_list_without_files_says_how_to_get_one(web, server, no_files, tmp_path, kind):
    node = {"id": 1, "type": kind, "pos": [0, 0], "size": [320, 120], "flags": {}, "order": 0, "mode": 0}
    node |= {"inputs": [], "outputs": [], "properties": {}}
    workflow = {"last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "groups": [], "version": 0.4}
    path = tmp_path / "empty.json"
    path.write_text(json.dumps(workflow), "utf-8")
    web.open()
    web.drop(path)
    web.wait_for_nodes([kind])
    (chosen,) = web.page.evaluate("app.graph._nodes[0].widgets.filter((o) => o.type === 'combo').map((o) => o.value)")
    assert chosen.startswith("empty: ")
    web.show(kind)
    web.shot(f"empty_{kind}")
    web.page.evaluate("app.api.addEventListener('execution_error', ({ detail }) => { window.seenError = detail })")
    web.press_run()
    web.page.wait_for_function("window.seenError")
    message = web.page.evaluate("window.seenError.exception_message")
    assert re.search(EMPTY[kind], message)
    web.page.wait_for_timeout(500)  # for the interface to show it
    web.shot(f"empty_{kind}_queued")
    entry = {"class_type": kind, "inputs": {"hypernet": "gone.safetensors", "weights": "gone.pth", "erases": ""}}
    with pytest.raises(PromptError, match=r"gone\."):  # ComfyUI's own words; 0.3.75 finds out when the node runs
        server.run({"1": entry})
    web.open()


def test_an_error_is_shown_in_our_own_words(web, server, no_files, tmp_path):
    """Of a node that runs, and of one that the server refuses."""
    web.open()  # its lists are read when the page is
    if not web.page.evaluate("Boolean(app.extensionManager?.toast)"):
        pytest.skip("this interface has no messages of packs")
    workflow = read("train_sd15")
    (trainer,) = (node for node in workflow["nodes"] if node["type"] == TRAINER)
    trainer["widgets_values"][1] = '"Crosby, Stills and Nash -> a band'
    path = tmp_path / "refused.json"
    path.write_text(json.dumps(workflow), "utf-8")
    web.drop(path)
    web.wait_for_nodes(kinds(path))
    web.press_run()
    expect(web.page.locator(".p-toast").get_by_text("Train Erasure, 'concepts': ")).to_be_visible()
    web.shot("error_refused")
    web.page.evaluate("app.graph.clear(); app.graph.add(LiteGraph.createNode('UnHypeLoadHypernet'))")
    web.press_run()
    expect(web.page.locator(".p-toast").get_by_text("Load UnHype Hypernet, 'hypernet': ")).to_be_visible()
    web.shot("error_while_running")
    web.open()


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


@pytest.fixture(scope="module")
def demo(server, pytestconfig, tmp_path_factory):
    """The demo's workflow as a file to drop: on the lab's model when somebody will look at the pictures."""
    workflow = read("demo") if pytestconfig.getoption("--shots") else small_demo()
    if any(node["type"] == LAB for node in workflow["nodes"]) and LAB not in server.object_info():
        pytest.skip("the lab model is not in this checkout")
    path = tmp_path_factory.mktemp("workflow") / "demo.json"
    path.write_text(json.dumps(workflow), "utf-8")
    return path


def progress(web):
    """How far the bar of Train Erasure has come, from 0 to 1; None where the node shows none."""
    return web.page.evaluate("(kind) => app.graph._nodes.find((node) => node.type === kind).progress ?? null", TRAINER)


@pytest.fixture(scope="module")
def trained(web, server, demo, pytestconfig):
    """The demo, trained in the browser with a stop on the way: what was seen, and the file and pictures of it."""
    seen, on_lab = {}, bool(pytestconfig.getoption("--shots"))
    web.drop(demo)
    web.wait_for_nodes(kinds(demo))
    for name, value in {"name": "browser", "steps": ENDLESS, "preview_every": 20, "checkpoint_every": 20}.items():
        web.widget(TRAINER, name, value)
    web.page.evaluate(
        """window.seenProgress = [], window.seenTexts = {}
        app.api.addEventListener("progress_text", ({ detail }) => window.seenTexts[detail.nodeId] = detail.text)
        app.api.addEventListener("progress", ({ detail }) => window.seenProgress.push(detail.value / detail.max))
        app.api.addEventListener("b_preview", () => { window.seenPreviews = (window.seenPreviews ?? 0) + 1 })"""
    )
    web.press_run()
    web.page.wait_for_function("window.seenPreviews > 0", timeout=LONG)
    seen["progress"] = web.page.evaluate("window.seenProgress")
    seen["bar"] = progress(web)
    web.page.get_by_role("button", name="Cancel current run").first.click()
    while server.get("/queue")["queue_running"]:  # a page's promise would count as true at once
        time.sleep(0.1)
    seen["log"] = server.log.read_text("utf-8", errors="replace")
    web.show(TRAINER)
    web.shot("interrupted")
    seen["half"] = list((server.base / "models" / "unhype").glob("browser*"))
    seen["stopped"] = int(re.findall(r"stopped at step (\d+); queue the same settings again", seen["log"])[-1])
    seen["steps"] = max(STEPS_ON_LAB if on_lab else STEPS, seen["stopped"] + 5)
    web.widget(TRAINER, "steps", seen["steps"])
    web.press_run()
    web.show()  # a node loads its pictures when it is drawn
    web.page.wait_for_function(
        "() => app.graph._nodes.filter((node) => node.type === 'SaveImage').every((node) => node.imgs?.length)",
        timeout=LONG,
    )
    web.show()
    web.shot("before_and_after")
    seen["words"] = web.words_on(TRAINER)
    seen["log_after"] = server.log.read_text("utf-8", errors="replace")
    (seen["file"],) = (server.base / "models" / "unhype").glob("browser*.safetensors")
    seen["picture"] = max((server.base / "output").rglob("*.png"), key=lambda path: path.stat().st_mtime)
    yield seen
    seen["file"].unlink()


def test_training_moves_its_bar_stops_and_goes_on(web, trained):
    assert trained["progress"] == sorted(trained["progress"])
    assert 0 < trained["bar"] < 1
    assert not trained["half"]
    assert f"going on from the checkpoint at step {trained['stopped']}." in trained["log_after"]
    assert trained["words"].startswith((f"Finished after {trained['steps']} steps.", "Stopped early, before other"))
    web.show(TRAINER)
    web.shot("trained")


def test_nodes_end_with_a_page_and_its_details(web, trained, pytestconfig):
    """Train Erasure, and an Erasure Report of what the demo has just trained."""
    on_lab = bool(pytestconfig.getoption("--shots"))
    steps, side = (12, 128) if on_lab else (2, SIDE)
    values = {"prompts": PROMPTS, "steps": steps, "cfg": 3, "width": side, "height": side}
    web.add_report(TRAINER, values)
    web.press_run()
    web.show(REPORT)
    web.page.wait_for_function(
        "(kind) => { const node = app.graph._nodes.find((n) => n.type === kind); return node.imgs?.length && "
        "node.widgets.some((w) => w.name === 'result' && w.value) }",
        arg=REPORT,
        timeout=LONG,
    )
    web.page.wait_for_timeout(1000)  # for the picture to be drawn
    web.show(REPORT)
    web.shot("report")
    assert web.page.evaluate(_WIDTH_OF_PAGE, REPORT) > 0.9
    assert {web.page.evaluate(_LAST_TEXT, kind) for kind in (TRAINER, REPORT)} == {"Done."}
    assert re.search(
        r"^(\d+ of \d+ erased prompts changed\. ?)?(\d+ of \d+ other prompts unchanged to the last bit\.)?$",
        web.words_on(REPORT),
        re.MULTILINE,
    )


@pytest.mark.parametrize("what", ["picture", "file"])
def test_what_was_made_brings_back_its_graph(web, demo, trained, what):
    web.open()
    web.drop(trained[what])
    web.wait_for_nodes(kinds(demo))
    assert not web.red()
    steps = web.page.evaluate(
        "(kind) => app.graph._nodes.find((n) => n.type === kind).widgets.find((w) => w.name === 'steps').value",
        TRAINER,
    )
    assert steps == trained["steps"]
    web.shot(f"dropped_{what}")


def test_the_model_library_shows_what_a_file_erases(web, trained):
    web.open()
    web.command("Workspace.ToggleSidebarTab.model-library")
    web.page.get_by_text("unhype", exact=True).first.click()
    web.page.get_by_role("treeitem", name="UnHype: cat").get_by_text("UnHype: cat").hover()
    expect(web.page.locator(".model_preview_title")).to_have_text("UnHype: cat")
    expect(web.page.locator(".model_preview_description")).to_contain_text("Erases: cat -> tree")
    web.shot("model_library")
    web.command("Workspace.ToggleSidebarTab.model-library")

"""A training in ComfyUI's own web interface, stopped on its way and queued again, and what it leaves.

`--shots FOLDER` keeps a screenshot of every step, to be looked at. It then trains on the lab's model, whose
pictures mean something, and takes minutes; without it on small random weights.
"""

import json
import re
import time

import pytest
from graphs import SIDE, kinds, read, small_demo
from playwright.sync_api import expect

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

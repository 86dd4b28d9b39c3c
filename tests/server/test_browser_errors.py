"""What ComfyUI's own web interface shows when something can't be done, in a headless Chromium."""

import json
import re

import pytest
from graphs import kinds, read
from playwright.sync_api import expect

from benchmarks.server import PromptError

TRAINER = "UnHypeTrainErasure"
EMPTY = {
    "UnHypeLoadHypernet": "^Load UnHype Hypernet, 'hypernet': .* Train one with Train Erasure",
    "UnHypeImportWeights": r"^Import UnHype Weights, 'weights': .* Put one there",
}


@pytest.fixture(scope="module")
def web(named_files, web):
    """The interface, with every file in the lists that our workflows name."""
    return web


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

"""A page and its text on a node, on the classic canvas and in Nodes 2.0: `--interface 1.58.1` takes the newest one.

Erasure Report stands in the workflow, in a subgraph, and in another tab under the same id.
"""

import json
import time

import pytest
from graphs import SIDE, kinds, read, training_prompt, with_own_clip

REPORT = "UnHypeErasureReport"
HEIGHT = 400  # of a page, at least
RENDERERS = {"classic": False, "nodes2": True}
# The report's node, in the workflow or in the first subgraph of it, and what is drawn on it, in the canvas's units.
_NODE = """const root = app.rootGraph ?? app.graph
  const all = [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph._nodes)
  const node = all.find((one) => one.type === "UnHypeErasureReport")"""
_DRAWN = f"""() => {{
  {_NODE}
  const text = node.widgets.find((widget) => widget.name === "result")?.value ?? ""
  const element = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${{node.id}}"]`)
  if (element) {{
    const pages = [...element.querySelectorAll("img")], box = [...element.querySelectorAll("textarea")].pop()
    return {{ text, width: element.offsetWidth, textWidth: box.offsetWidth, pages: pages.map((page) => {{
      const ratio = page.naturalWidth / page.naturalHeight
      return [Math.min(page.offsetWidth, page.offsetHeight * ratio), page.offsetHeight]
    }}) }}
  }}
  const previews = node.widgets.filter((widget) => widget.name === "$$canvas-image-preview")
  return {{ text, width: node.size[0], textWidth: node.size[0], pages: previews.flatMap((preview) =>
    (node.imgs ?? []).map((page) => {{
      const high = preview.computedHeight
      return [Math.min(node.size[0], (high * page.naturalWidth) / page.naturalHeight), high]
    }})) }}
}}"""


@pytest.fixture(scope="module")
def workflow(server, checkpoint, tmp_path_factory):
    """A report of a small eraser, as a file to drop."""
    prompt, inputs = training_prompt(server)
    inputs |= {"name": "small", "preview_every": 0}
    server.run(prompt)
    (eraser,) = (server.base / "models" / "unhype").glob("small*.safetensors")
    workflow = read("report_sd15")
    for node in list(workflow["nodes"]):
        if node["type"] == "CheckpointLoaderSimple":
            with_own_clip(workflow, node)
        elif node["type"] == "UnHypeLoadHypernet":
            node["widgets_values"] = [eraser.name]
    path = tmp_path_factory.mktemp("workflow") / "renderers.json"
    path.write_text(json.dumps(workflow), "utf-8")
    yield path
    eraser.unlink()


@pytest.fixture(params=RENDERERS)
def opened(request, web, workflow):
    """The workflow in a new page, by a renderer; gives its name."""
    setting = "Comfy.VueNodes.Enabled"
    if web.page.evaluate("(id) => app.ui.settings.getSettingValue(id) === undefined", setting):
        pytest.skip("this interface has one renderer")
    web.page.evaluate("([id, on]) => app.extensionManager.setting.set(id, on)", [setting, RENDERERS[request.param]])
    web.open()
    web.drop(workflow)
    web.wait_for_nodes(kinds(workflow))
    for name, value in {"width": SIDE, "height": SIDE, "steps": 2}.items():
        web.widget(REPORT, name, value)
    yield request.param
    web.page.evaluate("([id, on]) => app.extensionManager.setting.set(id, on)", [setting, False])
    web.open()


def run(web, server):
    """Run the workflow with another seed than before; gives what was drawn on the way."""
    web.page.evaluate(f"() => {{ {_NODE}; node.widgets.find((one) => one.name === 'seed').value += 1 }}")
    before, seen = len(server.get("/history")), []
    web.press_run()
    while len(server.get("/history")) == before:
        seen.append(web.page.evaluate(_DRAWN))
        time.sleep(0.3)
    return seen


def drawn(web, text=True):
    """What is drawn on the report's node, once its picture has come."""
    web.page.wait_for_function(
        f"(text) => {{ const seen = ({_DRAWN})(); return seen.pages.length && !!seen.text === text }}", arg=text
    )
    web.page.wait_for_timeout(1000)  # for the picture to take its place
    return web.page.evaluate(_DRAWN)


def is_readable(seen):
    """Whether there is one page, as wide as its node and high enough, and its text as wide."""
    ((width, height),) = seen["pages"]
    return width > 0.9 * seen["width"] and height >= HEIGHT and seen["textWidth"] > 0.9 * seen["width"]


def test_a_page_is_drawn_once_and_as_wide_as_its_node(web, server, opened):
    for _ in range(2):
        on_the_way = run(web, server)
        assert all(len(seen["pages"]) <= 1 for seen in on_the_way)
        seen = drawn(web)
        assert seen["text"].startswith("Erasure report: small")
        assert is_readable(seen)
    web.show(REPORT)
    web.shot(f"report_{opened}")


def test_another_tab_shows_nothing_of_it_and_the_first_one_everything_again(web, server, opened):
    run(web, server)
    before = drawn(web)
    web.page.evaluate(f"() => {{ {_NODE}; window.reportId = node.id }}")
    web.command("Comfy.NewBlankWorkflow")
    web.page.wait_for_function("!app.graph._nodes.some((node) => node.type.startsWith('UnHype'))")
    web.page.evaluate(
        """(kind) => { app.graph.clear(); const node = LiteGraph.createNode(kind)
        node.id = window.reportId; app.graph.add(node) }""",
        REPORT,
    )
    web.show(REPORT)
    web.page.wait_for_timeout(1000)  # for a page that must not come
    web.shot(f"other_tab_{opened}")
    other = web.page.evaluate(_DRAWN)
    assert not other["pages"] and not other["text"]
    web.command("Workspace.PreviousOpenedWorkflow")
    web.page.wait_for_function("app.graph._nodes.some((node) => node.type === 'UnHypeLoadHypernet')")
    web.show(REPORT)
    after = drawn(web)
    assert after["text"] == before["text"] and is_readable(after)
    web.shot(f"back_{opened}")


def test_a_node_in_a_subgraph_shows_its_page_and_its_text_after_a_tab_switch(web, server, opened):
    web.page.evaluate(
        """(kind) => {
          const node = app.graph._nodes.find((one) => one.type === kind)
          app.canvas.select?.(node)
          app.graph.convertToSubgraph(new Set([node]))
        }""",
        REPORT,
    )
    run(web, server)
    enter(web)
    before = drawn(web)
    assert before["text"].startswith("Erasure report: small") and is_readable(before)
    web.shot(f"subgraph_{opened}")
    web.command("Comfy.NewBlankWorkflow")
    web.page.wait_for_function("!app.graph._nodes.some((node) => node.type.startsWith('UnHype'))")
    web.command("Workspace.PreviousOpenedWorkflow")
    web.page.wait_for_function("app.graph._nodes.some((node) => node.isSubgraphNode?.())")
    enter(web)
    if not web.page.evaluate("Object.keys(app.nodeOutputs ?? {}).length"):
        pytest.skip("this interface keeps no outputs of subgraphs when the tab changes")
    after = drawn(web)
    assert after["text"] == before["text"] and is_readable(after)


def enter(web):
    """Open the only subgraph."""
    web.page.evaluate("app.canvas.openSubgraph(app.graph._nodes.find((node) => node.isSubgraphNode?.()).subgraph)")
    web.page.wait_for_timeout(500)  # for its nodes to be drawn
    web.show(REPORT)

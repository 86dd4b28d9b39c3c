"""What visitors of a server with a policy see, in ComfyUI's own web interface and with both of its renderers.

They have none of our nodes in their graphs. `--shots FOLDER` keeps screenshots, to be looked at.
"""

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from benchmarks.environment import ROOT
from benchmarks.lab.judge import Judge
from benchmarks.server import PACKS, ComfyServer, interface_arguments

LONG = 600_000  # milliseconds
PREFIX = "This server draws only with the eraser 'school'."
# A graph as a visitor builds it: kind, widgets, and links from the node before.
_BUILD = """([loader, prompt, sampler]) => {
  app.graph.clear()
  const add = (kind, x, y, widgets = {}) => {
    const node = LiteGraph.createNode(kind)
    node.pos = [x, y]
    app.graph.add(node)
    for (const widget of node.widgets ?? []) widget.value = widgets[widget.name] ?? widget.value
    return node
  }
  const load = add(loader, 0, 0), size = add("EmptyLatentImage", 0, 300, { width: 128, height: 128 })
  const text = add("CLIPTextEncode", 340, 0, { text: prompt }), none = add("CLIPTextEncode", 340, 260, { text: "" })
  const draw = add(sampler, 800, 0, { seed: 3, steps: 12, cfg: 3, sampler_name: "euler", scheduler: "normal" })
  const decode = add("VAEDecode", 1140, 0), show = add("PreviewImage", 1140, 120)
  load.connect(1, text, "clip")
  load.connect(1, none, "clip")
  load.connect(0, draw, "model")
  for (const name of draw.inputs.map((input) => input.name)) {
    if (name === "positive" || name === "conditioning") text.connect(0, draw, name)
    if (name === "negative") none.connect(0, draw, name)
    if (name === "latent_image" || name === "latent") size.connect(0, draw, name)
  }
  draw.connect(0, decode, "samples")
  load.connect(2, decode, "vae")
  decode.connect(0, show, "images")
  window.seen = { errors: [], ids: [] }
  app.api.addEventListener("execution_error", ({ detail }) => window.seen.errors.push(detail))
  app.api.addEventListener("executed", ({ detail }) => window.seen.ids.push(String(detail.display_node)))
  app.api.addEventListener("progress_state", ({ detail }) => window.seen.ids.push(...Object.keys(detail.nodes)))
}"""


@pytest.fixture(scope="module")
def policed(demo_run, server, pytestconfig, tmp_path_factory):
    """A server with a policy and the lab's model, with the eraser that the demo has trained."""
    import folder_paths

    if not hasattr(folder_paths, "get_system_user_directory"):
        pytest.skip("this ComfyUI has no folder of its own for the policy")
    base = tmp_path_factory.mktemp("policed")
    own = base / "user" / "__unhype"
    own.mkdir(parents=True)
    (trained,) = (server.base / "models" / "unhype").glob("demo*.safetensors")
    (own / "school.safetensors").write_bytes(trained.read_bytes())
    (own / "policy.json").write_text(json.dumps({"erasers": [{"file": "school.safetensors"}]}), "utf-8")
    packs = {**PACKS, "unhype_tests": ROOT / "tests" / "nodes_for_tests"}
    arguments = interface_arguments(pytestconfig.getoption("--interface"))
    with ComfyServer(base, packs=packs, arguments=arguments) as running:
        yield running


@pytest.fixture(scope="module")
def window(policed, pytestconfig, tmp_path_factory):
    """The interface of that server."""
    from webpage import web_page

    from benchmarks.chromium import chromium

    shots = Path(pytestconfig.getoption("--shots") or tmp_path_factory.mktemp("shots")).resolve()
    shots.mkdir(parents=True, exist_ok=True)
    settings = policed.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}), "utf-8")
    with web_page(chromium(), policed.url, shots) as page:
        yield page


@pytest.fixture(params=["classic", "nodes2"])
def web(window, request):
    """The interface with one of its renderers."""
    chosen = request.param == "nodes2"
    known = window.page.evaluate(
        """async (chosen) => {
          const settings = app.extensionManager.setting
          if (settings.get("Comfy.VueNodes.Enabled") === undefined) return false
          await settings.set("Comfy.VueNodes.Enabled", chosen)
          return true
        }""",
        chosen,
    )
    if chosen and not known:
        pytest.skip("this interface has one renderer")
    window.renderer = request.param
    return window


def run(web, sampler="KSampler", loader="UnHypeLabLoader", before=None):
    """Build a visitor's graph and press Run; returns when it has come to its end."""
    web.open()
    web.page.evaluate(_BUILD, [loader, "a photo of a cat", sampler])
    if before is not None:
        web.page.evaluate(before)
    web.show()
    web.press_run()


def picture(policed, web):
    """The picture that the graph shows, (1, h, w, 3) in [0, 1]."""
    web.page.wait_for_function(
        "() => window.seen.errors.length || Object.values(app.nodeOutputs).some((output) => output.images?.length)",
        timeout=LONG,
    )
    assert web.page.evaluate("window.seen.errors") == []
    (shown,) = web.page.evaluate("Object.values(app.nodeOutputs).flatMap((output) => output.images ?? [])")
    path = policed.base / shown["type"] / shown["subfolder"] / shown["filename"]
    return torch.from_numpy(numpy.asarray(Image.open(path).convert("RGB")) / 255.0).float().unsqueeze(0)


def wait_until_shown(web):
    """Wait until the page has loaded the picture, and has drawn itself since."""
    web.show()  # a node loads its pictures when it is drawn
    web.page.wait_for_function(
        """() => [
          ...app.graph._nodes.flatMap((node) => node.imgs ?? []),
          ...document.querySelectorAll("[data-node-id] img"),
        ].some((picture) => picture.complete && picture.naturalWidth > 1)"""
    )
    web.page.wait_for_timeout(1000)
    web.show()


def is_a_tree(seen):
    judge = Judge()
    return judge.labels[int(judge.probabilities(seen).argmax(1))] == "tree"


def test_a_graph_without_our_nodes_draws_a_tree_for_a_cat(policed, web):
    run(web)
    seen = picture(policed, web)
    wait_until_shown(web)
    web.shot(f"policy_{web.renderer}")
    assert is_a_tree(seen)
    assert not web.red()
    nodes = web.page.evaluate("app.graph._nodes.map((node) => node.type)")
    assert not any(kind.startswith("UnHype") and kind != "UnHypeLabLoader" for kind in nodes)


def test_the_policys_node_is_no_node_of_the_page(policed, web):
    """Its progress would be painted on another node, and its id looked up as a place in a subgraph."""
    run(web)
    picture(policed, web)
    own = {str(number) for number in web.page.evaluate("app.graph._nodes.map((node) => node.id)")}
    others = set(web.page.evaluate("window.seen.ids")) - own
    assert {name for name in others if not name.startswith("unhype_policy_")} == set()
    assert web.page.evaluate("(ids) => ids.filter((id) => app.graph.getNodeById(id))", sorted(others)) == []


def test_a_subgraph_draws_a_tree_for_a_cat(policed, web):
    if not web.page.evaluate("typeof app.graph.convertToSubgraph === 'function'"):
        pytest.skip("this interface has no subgraphs")
    run(
        web,
        before="""() => {
          const inside = app.graph._nodes.filter((node) => ["UnHypeLabLoader", "KSampler"].includes(node.type))
          app.graph.convertToSubgraph(new Set(inside))
        }""",
    )
    seen = picture(policed, web)
    wait_until_shown(web)
    web.shot(f"policy_subgraph_{web.renderer}")
    assert is_a_tree(seen)


def test_a_refusal_is_seen(policed, web):
    run(web, sampler="UnHypeTestHiddenSampler")
    web.page.wait_for_function("() => window.seen.errors.length", timeout=LONG)
    (error,) = web.page.evaluate("window.seen.errors")
    assert error["exception_message"].startswith(f"{PREFIX} The model that draws here came without 'school'")
    assert error["exception_type"] == "unhype.PolicyError"
    assert error["node_type"] == "UnHypeTestHiddenSampler"
    expect(web.page.get_by_text(PREFIX).first).to_be_visible()
    web.page.wait_for_timeout(1500)  # for the interface to show all of it
    web.shot(f"policy_refused_{web.renderer}")
    marked = web.page.evaluate("app.graph._nodes.filter((node) => node.has_errors).map((node) => node.type)")
    assert set(marked) <= {"UnHypeTestHiddenSampler"}

"""ComfyUI's web interface in a headless Chromium, as the tests drive it."""

import base64
import contextlib
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from benchmarks.graph import WORKFLOWS

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH, HEIGHT = 1600, 1000
# Milliseconds that a busy machine may take to show what a test waits for.
PATIENCE = 180_000

# Drops a file on an empty corner of the canvas, as a hand does that drags it from a folder.
_DROP = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))
  const dataTransfer = new DataTransfer()
  dataTransfer.items.add(new File([bytes], name, { type }))
  const canvas = app.canvas.canvas, box = canvas.getBoundingClientRect()
  const at = { clientX: box.right - 300, clientY: box.bottom - 20, bubbles: true, cancelable: true, dataTransfer }
  for (const kind of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(kind, at))
}"""
# The veil over the window, at the start and during a drop, goes when its fading ends, which a busy machine may never
# report; so it does not fade. Nor does a page bring back the last one's graph, which would come after a file dropped.
_ALWAYS_NEW = """
  const style = new CSSStyleSheet()
  style.replaceSync(".p-overlay-mask { animation: none !important }")
  document.adoptedStyleSheets.push(style)
  localStorage.clear()
  sessionStorage.clear()"""
# Adds an Erasure Report to a graph in which this node trains, with its model, CLIP and eraser.
_ADD_REPORT = """([trainer, values]) => {
  const node = LiteGraph.createNode("UnHypeErasureReport"), nodes = app.graph._nodes
  const train = nodes.find((one) => one.type === trainer)
  node.pos = [0, 2000]
  app.graph.add(node)
  for (const [name, kind] of [["model", trainer], ["clip", trainer], ["vae", "VAEDecode"]]) {
    const other = nodes.find((one) => one.type === kind)
    const link = app.graph.links[other.inputs.find((input) => input.name === name).link]
    app.graph.getNodeById(link.origin_id).connect(link.origin_slot, node, name)
  }
  train.connect(0, node, "unhype")
  for (const widget of node.widgets) widget.value = values[widget.name] ?? widget.value
}"""
_TYPES = {".json": "application/json", ".png": "image/png", ".safetensors": ""}
_NODES = "app.graph ? app.graph._nodes.map((node) => node.type).sort() : []"


class WebPage:
    """One browser window with ComfyUI in it. `shots` is the folder for its screenshots."""

    def __init__(self, page, url, shots):
        self.page, self.url, self.shots = page, url, shots

    def open(self):
        """Load the interface afresh, wait for the graph that it opens by itself, and clear that."""
        self.page.goto(self.url, wait_until="commit")
        self.page.wait_for_function("window.app?.vueAppReady && window.app.graph")
        self.page.wait_for_function("app.extensionManager.workflow.activeWorkflow")
        self.page.evaluate("app.graph.clear()")

    def shot(self, name):
        """Keep a screenshot, for people to look at."""
        self.page.screenshot(path=self.shots / f"{name}.png")

    def drop(self, path):
        """Drag a file onto an empty canvas."""
        self.page.evaluate("app.graph.clear()")
        content = base64.b64encode(path.read_bytes()).decode()
        self.page.evaluate(_DROP, [path.name, _TYPES[path.suffix], content])

    def wait_for_nodes(self, kinds):
        """Wait until the graph consists of nodes of these types, then show all of it."""
        self.page.wait_for_function(f"(kinds) => String({_NODES}) === kinds", arg=",".join(sorted(kinds)))
        self.show()

    def show(self, kind=None):
        """Bring the whole graph into view, or the first node of one type, close enough to read."""
        self.page.evaluate(
            """(kind) => {
              const nodes = app.graph._nodes, node = nodes.find((one) => one.type === kind)
              app.canvas.deselectAll?.()
              if (node) {
                app.canvas.ds.scale = 1
                app.canvas.centerOnNode(node)
              } else {
                const [left, top] = [0, 1].map((axis) => Math.min(...nodes.map((one) => one.pos[axis])))
                const [right, bottom] = [0, 1].map((axis) => Math.max(...nodes.map((o) => o.pos[axis] + o.size[axis])))
                const canvas = app.canvas.canvas, [width, height] = [canvas.clientWidth, canvas.clientHeight]
                const scale = Math.min((width - 160) / (right - left), (height - 200) / (bottom - top))
                app.canvas.ds.scale = scale
                app.canvas.ds.offset = [width / scale / 2 - (left + right) / 2, height / scale / 2 - (top + bottom) / 2]
              }
              app.canvas.setDirty(true, true)
            }""",
            kind,
        )
        self.page.wait_for_timeout(300)  # the canvas draws, and text boxes follow it

    def red(self):
        """The nodes that the interface marks: of unknown type, with missing inputs or in error."""
        return self.page.evaluate(
            """app.graph._nodes.filter((node) => node.has_errors || !(node.type in LiteGraph.registered_node_types)
              || node.inputs?.some((input) => input.hasErrors)).map((node) => node.type)"""
        )

    def widget(self, kind, name, value):
        """Set a widget of the only node of a type."""
        self.page.evaluate(
            """([kind, name, value]) => {
              const node = app.graph._nodes.find((one) => one.type === kind)
              const widget = node.widgets.find((one) => one.name === name)
              widget.value = value
              widget.callback?.(value)
            }""",
            [kind, name, value],
        )

    def every_widget(self, kind, name, value):
        """Set a widget of all nodes of a type, of which there may be none."""
        self.page.evaluate(
            """([kind, name, value]) => app.graph._nodes.filter((node) => node.type === kind)
              .forEach((node) => { node.widgets.find((widget) => widget.name === name).value = value })""",
            [kind, name, value],
        )

    def press_run(self):
        """Press Run, as soon as the interface lets it."""
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def add_report(self, trainer, values):
        """Put an Erasure Report, with these values, behind the node that trains and the graph's VAE Decode."""
        self.page.evaluate(_ADD_REPORT, [trainer, values])

    def words_on(self, kind):
        """The text that a node shows when it has come to its end."""
        return self.page.evaluate(
            """(kind) => app.graph._nodes.find((node) => node.type === kind).widgets
              .find((widget) => widget.name === "result")?.value ?? "" """,
            kind,
        )

    def template(self, name):
        """Open one of our workflows from Browse Templates."""
        self.command("Comfy.BrowseTemplates")
        # In Nodes 2.0 the pack's nodes show its name as well.
        self.page.get_by_role("dialog").get_by_text("unhype", exact=True).first.click()
        self.page.get_by_test_id(f"template-workflow-{WORKFLOWS[name].stem}").click()

    def command(self, name):
        """Run one of the interface's own commands, as its keys and menus do."""
        self.page.evaluate("(name) => app.extensionManager.command.execute(name)", name)


@contextlib.contextmanager
def web_page(chromium, url, shots):
    """A `WebPage` in a Chromium of its own, with a fresh profile that is removed at the end."""
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        window = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=FLAGS, viewport={"width": WIDTH, "height": HEIGHT}
        )
        try:
            window.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            window.add_init_script(_ALWAYS_NEW)
            page = WebPage(window.pages[0], url, Path(shots))
            page.open()
            yield page
        finally:
            window.close()

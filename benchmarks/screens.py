"""Pictures of the interface as users see it, on the lab's model: `python3 dev.py screens`.

Each template as it opens, a training at three moments, its result, a report and an error go to `results/screens/`; the
first picture of the README and those of the help pages are cut from the same run.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from . import commandline
from .chromium import chromium
from .environment import ROOT, say
from .graph import WORKFLOWS
from .publish import RESULTS
from .server import PACKS, ComfyServer, interface_arguments

sys.path.insert(0, str(ROOT / "tests"))  # for the driver of the browser, which the tests have

from webpage import WebPage, web_page

FOLDER, HELP = RESULTS / "screens", ROOT / "web" / "docs" / "pictures"
TRAINER, REPORT = "UnHypeTrainErasure", "UnHypeErasureReport"
CONCEPT, MAPPING = "frog", "tree"
_PROMPTS = "a photo of a frog\na green frog, watercolor\na photo of a dog\na photo of a ship"
_QUALITY, _WIDTH, _HELP_WIDTH = 75, 1200, 900
_MINUTES = 900_000  # milliseconds
# Folders of the files that the templates name: a list shows an empty file as well.
_FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "DualCLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "UnHypeLoadHypernet": "unhype",
}
_WIDEN = """(kind) => { const node = app.graph._nodes.find((one) => one.type === kind)
  node.setSize([560, node.size[1]]) }"""
_MERGE = """() => {
  app.graph.clear()
  const add = (kind, x, y) => {
    const node = LiteGraph.createNode(kind)
    node.pos = [x, y]
    app.graph.add(node)
    return node
  }
  const files = [0, 160].map((y) => add("UnHypeLoadHypernet", 0, y))
  const merge = add("UnHypeMergeErasers", 400, 0)
  files.forEach((file, slot) => file.connect(0, merge, slot))
  merge.connect(0, add("UnHypeApplyErasure", 800, 0), "unhype")
}"""
_WATCH = """window.seenTexts = []
  app.api.addEventListener("progress_text", ({ detail }) => window.seenTexts.push(detail.text))
  app.api.addEventListener("b_preview", () => { window.seenPreview = true })"""
# Whether a line has said so far that a tenth of a stage is done.
_LATER = "window.seenTexts.some((text) => parseInt(text.match(/, (\\d+)%/)?.[1]) >= 10)"
_FINISHED = """(kind) => { const node = app.graph._nodes.find((one) => one.type === kind)
  return node.imgs?.length && node.widgets.some((one) => one.name === "result" && one.value) }"""
# The part of the window that nodes of these types take.
_BOX = """(kinds) => {
  const nodes = app.graph._nodes.filter((node) => kinds.includes(node.type)), { scale, offset } = app.canvas.ds
  const [left, top] = [0, 1].map((axis) => Math.min(...nodes.map((node) => node.pos[axis])) - (axis ? 40 : 10))
  const [right, bottom] = [0, 1].map((axis) => Math.max(...nodes.map((one) => one.pos[axis] + one.size[axis])) + 10)
  return { x: (left + offset[0]) * scale, y: (top + offset[1]) * scale, width: (right - left) * scale,
           height: (bottom - top) * scale }
}"""
_PARTS = {
    "erase_sd15": ("UnHypeEraseConcept", ("CheckpointLoaderSimple", "UnHypeEraseConcept", "KSampler")),
    "train_sd15": ("UnHypeTrainErasure", ("CheckpointLoaderSimple", TRAINER)),
    "apply_sd15": (
        "UnHypeApplyErasure",
        ("CheckpointLoaderSimple", "UnHypeLoadHypernet", "UnHypeApplyErasure", "KSampler"),
    ),
    "report_sd15": ("UnHypeErasureReport", ("CheckpointLoaderSimple", "UnHypeLoadHypernet", REPORT)),
}


class Screens:
    """The pictures of one renderer. suffix: of their names."""

    def __init__(self, web: WebPage, server: ComfyServer, suffix: str) -> None:
        self.web, self.server, self.suffix = web, server, suffix

    def keep(self, name: str) -> None:
        """A screenshot of the window as a small JPEG."""
        self.web.page.wait_for_timeout(1500)
        self.web.shot(name)
        with Image.open(self.web.shots / f"{name}.png") as shot:
            small = shot.convert("RGB").resize((_WIDTH, shot.height * _WIDTH // shot.width), Image.Resampling.LANCZOS)
        path = FOLDER / f"{name}{self.suffix}.jpg"
        small.save(path, quality=_QUALITY)
        say(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")

    def templates(self) -> None:
        """The cards, and each template as it opens; the parts of some for the help pages."""
        self.web.command("Comfy.BrowseTemplates")
        self.web.page.get_by_text("unhype", exact=True).first.click()
        self.keep("cards")
        self.web.page.keyboard.press("Escape")
        for name, path in WORKFLOWS.items():
            if path.parent.name != "workflows" or path.parent.parent != ROOT:
                continue
            self.web.template(name)
            self.web.wait_for_nodes([node["type"] for node in json.loads(path.read_text("utf-8"))["nodes"]])
            self.web.command("Comfy.Canvas.FitView")
            self.keep(f"template_{name}")
            if name in _PARTS and not self.suffix:
                self._part(*_PARTS[name])

    def _part(self, name: str, kinds: tuple[str, ...]) -> None:
        shot = self.web.shots / f"part_{name}.png"
        self.web.page.screenshot(path=shot, clip=self.web.page.evaluate(_BOX, list(kinds)))
        with Image.open(shot) as part:
            size = (_HELP_WIDTH, part.height * _HELP_WIDTH // part.width)
            part.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(64).save(HELP / f"{name}.png")

    def merging(self) -> None:
        """Merge Erasers between two files and Apply Concept Erasure, for its help page."""
        self.web.page.evaluate(_MERGE)
        self.web.show()
        if not self.suffix:
            self._part("UnHypeMergeErasers", ("UnHypeLoadHypernet", "UnHypeMergeErasers", "UnHypeApplyErasure"))

    def training(self) -> None:
        """The demo with another concept, at three moments and at its end."""
        web = self.web
        web.drop(WORKFLOWS["demo"])
        web.page.wait_for_function("(kind) => app.graph._nodes.some((node) => node.type === kind)", arg=TRAINER)
        values = {"concepts": f"{CONCEPT} -> {MAPPING}", "name": CONCEPT, "preview_every": 10}
        for name, value in values.items():
            web.widget(TRAINER, name, value)
        web.page.evaluate(_WATCH)
        web.press_run()
        for moment, ready in (
            ("begin", "window.seenTexts.length > 0"),
            ("encoding", _LATER),
            ("late", "window.seenPreview"),
        ):
            web.page.wait_for_function(ready, timeout=_MINUTES)
            web.show(TRAINER)
            self.keep(f"training_{moment}")
        web.page.wait_for_function(_FINISHED, arg=TRAINER, timeout=_MINUTES)
        web.show(TRAINER)
        self.keep("result")

    def reports(self) -> None:
        """A report with prompts of its own choice, and one for the first picture of the README."""
        values = {"prompts": _PROMPTS, "steps": 12, "cfg": 3, "width": 128, "height": 128}
        self.web.add_report(TRAINER, values)
        self.web.page.evaluate(_WIDEN, REPORT)
        self._report(RESULTS / "first.jpg")
        self.web.widget(REPORT, "prompts", "")
        self._report(HELP / "UnHypeErasureReportPage.jpg")
        self.web.show(REPORT)
        self.keep("report")

    def _report(self, path: Path) -> None:
        """Run the graph, and keep the report's page."""
        folder = self.server.base / "temp"
        before = set(folder.glob("*.png"))
        self.web.press_run()
        while self.server.get("/queue")["queue_running"] or not (pages := set(folder.glob("*.png")) - before):
            time.sleep(1)
        page = max(pages, key=lambda path: path.stat().st_mtime)
        if not self.suffix:
            with Image.open(page) as picture:
                picture.convert("RGB").save(path, quality=88)

    def error(self) -> None:
        """What the interface shows of an error of ours."""
        self.web.widget(TRAINER, "concepts", '"Crosby, Stills and Nash -> a band')
        self.web.press_run()
        self.web.show(TRAINER)
        self.web.page.wait_for_timeout(3000)
        self.keep("error")


def make_named_files(base: Path) -> None:
    """Empty files with the names that the templates have, so that no list is marked as wrong."""
    for path in WORKFLOWS.values():
        for node in json.loads(path.read_text("utf-8"))["nodes"]:
            for value in node.get("widgets_values") or ():
                if node["type"] in _FOLDERS and str(value).endswith(".safetensors"):
                    file = base / "models" / _FOLDERS[node["type"]] / value
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()


def main() -> int:
    """Command line."""
    options = commandline.parser("screens").parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as shots:
        settings = Path(base) / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        chosen = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
        settings.write_text(json.dumps(chosen | {"Comfy.VueNodes.Enabled": options.nodes2}), "utf-8")
        make_named_files(Path(base))
        running = ComfyServer(base, packs=PACKS, arguments=interface_arguments(options.interface))
        with running as server, web_page(chromium(), server.url, shots) as web:
            screens = Screens(web, server, "_nodes2" if options.nodes2 else "")
            parts = {
                "templates": [screens.templates, screens.merging],
                "run": [screens.training, screens.reports, screens.error],
            }
            for part in options.only or parts:
                for step in parts[part]:
                    step()
    return 0


if __name__ == "__main__":
    sys.exit(main())

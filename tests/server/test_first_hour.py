"""README's "Ten minutes to the first eraser", as a newcomer goes through it: template by template, in the browser.

Small random weights take the checkpoint's place; with `--shots FOLDER` the lab's model does, whose pictures mean
something, and a screenshot of every step is kept.
"""

import time
from types import SimpleNamespace

import numpy
import pytest
from graphs import SIDE, kinds
from PIL import Image

from benchmarks.graph import WORKFLOWS

TRAINER, REPORT, LOADER = "UnHypeTrainErasure", "UnHypeErasureReport", "CheckpointLoaderSimple"
MINUTES = 600_000  # milliseconds
# Between the halves of the picture in before_after_sd15.
GAP = 8

# Puts a loader of another kind where it has the outputs that the graph takes from Load Checkpoint.
_INSTEAD = """([old, kind]) => {
  const nodes = app.graph._nodes, loader = nodes.find((node) => node.type === old)
  const other = LiteGraph.createNode(kind)
  other.pos = [loader.pos[0], loader.pos[1] - 200]
  app.graph.add(other)
  for (const [slot, output] of other.outputs.entries()) {
    const found = loader.outputs.find((one) => one.type === output.type)
    for (const id of [...(found.links ?? [])]) {
      const link = app.graph.links[id]
      other.connect(slot, app.graph.getNodeById(link.target_id), link.target_slot)
    }
  }
  if (loader.outputs.every((output) => !output.links?.length)) app.graph.remove(loader)
}"""
# What a person sees in a list: the names that the widget offers.
_OFFERED = """(kind) => app.graph._nodes.find((node) => node.type === kind).widgets
  .find((widget) => widget.name === "hypernet").options.values"""
_SAID = """(kind) => app.graph._nodes.find((node) => node.type === kind).widgets
  .some((widget) => widget.name === "result" && widget.value)"""
# A node loads its pictures when it is drawn.
_SHOWN = """(kind) => {
  app.canvas.setDirty(true, true)
  return app.graph._nodes.some((node) => node.type === kind && node.imgs?.some((image) => image.complete))
}"""


@pytest.fixture(scope="module")
def start(web, server, checkpoint, pytestconfig):
    """Opens a template and makes it as small as a test needs it."""
    on_lab = bool(pytestconfig.getoption("--shots"))
    loader = "UnHypeLabLoader" if on_lab else "UnHypeTestCLIP"
    if loader not in server.object_info():
        pytest.skip("the lab model is not in this checkout")
    side, steps = (128, 12) if on_lab else (SIDE, 2)
    sizes = {"width": side, "height": side}
    small = {"EmptyLatentImage": sizes, "KSampler": {"steps": steps, "cfg": 3.0}}
    small[TRAINER] = sizes | {"guidance": 3.0, "preview_every": 100} | ({} if on_lab else {"steps": 40})
    small[REPORT] = sizes | {"steps": steps, "cfg": 3.0}

    def opened(name):
        web.template(name)
        web.wait_for_nodes(kinds(WORKFLOWS[name]))
        assert not web.red()
        web.page.evaluate(_INSTEAD, [LOADER, loader])
        for kind, values in small.items():
            for widget, value in values.items():
                web.every_widget(kind, widget, value)
        web.show()

    return opened


def run(web, name, ready, kind):
    """Press Run, and wait for what the workflow is opened for."""
    web.press_run()
    web.page.wait_for_function(ready, arg=kind, timeout=MINUTES)
    look(web, name)


def look(web, name):
    """A screenshot of the whole graph, once what came is drawn."""
    web.page.wait_for_timeout(1000)
    web.show()
    web.shot(name)


@pytest.fixture(scope="module")
def eraser(web, server, start):
    """Step 1: the file that train_sd15 makes."""
    start("train_sd15")
    before = len(server.log.read_bytes())  # other tests have used the same server
    run(web, "hour_1_train", _SAID, TRAINER)
    words, log = web.words_on(TRAINER), server.log.read_bytes()[before:].decode(errors="replace")
    web.show(TRAINER)
    web.shot("hour_1_train_near")
    (path,) = (server.base / "models" / "unhype").glob("no_cats*.safetensors")
    yield SimpleNamespace(path=path, words=words, log=log)
    path.unlink()


def test_training_ends_with_a_file_and_says_so(eraser):
    assert str(eraser.path) in eraser.words
    assert "cat -> tree" in eraser.words
    assert "Kept in training: " in eraser.words


def test_the_console_is_not_flooded(eraser):
    """ComfyUI writes a line whenever it loads a model, and training reads more than a thousand prompts."""
    assert 0 < eraser.log.count("Requested to load") < 30


def test_the_eraser_is_in_the_list_and_draws(web, server, start, eraser):
    start("apply_sd15")
    assert eraser.path.name in web.page.evaluate(_OFFERED, "UnHypeLoadHypernet")
    run(web, "hour_2_apply", _SHOWN, "SaveImage")
    assert list((server.base / "output" / "unhype").glob("erased*.png"))


def halves(path):
    """The left and the right picture of two that stand side by side."""
    pixels = numpy.asarray(Image.open(path))
    width = (pixels.shape[1] - GAP) // 2
    return pixels[:, :width], pixels[:, width + GAP :]


def test_before_and_after_stand_side_by_side(web, server, start, eraser):
    start("before_after_sd15")
    folder = server.base / "output" / "unhype"
    for prompt, same in {"a photo of a cat": False, "a bowl of lemons": True}.items():
        web.widget("CLIPTextEncode", "text", prompt)
        before = set(folder.glob("before_after*.png"))
        web.press_run()
        while not (new := set(folder.glob("before_after*.png")) - before) or server.get("/queue")["queue_running"]:
            time.sleep(0.1)
        look(web, f"hour_3_{prompt.split()[-1]}")
        (path,) = new
        left, right = halves(path)
        assert numpy.array_equal(left, right) is same, prompt


def test_the_report_draws_its_page(web, start, eraser):
    start("report_sd15")
    run(web, "hour_4_report", _SAID, REPORT)
    web.show(REPORT)
    web.shot("hour_4_report_near")
    words = web.words_on(REPORT)
    assert words.startswith(f"Erasure report: {eraser.path.stem}")
    assert "a photo of a cat" in words
    assert "unchanged to the last bit" in words

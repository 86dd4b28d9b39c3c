"""The pack is loaded once, before any test module is: tests import it as `unhype`.

ComfyUI loads it in full; where only the core tier is asked for, its modules that need no ComfyUI are enough.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.environment import ROOT
from benchmarks.pack import load_core, load_pack
from benchmarks.server import PACKS, ComfyServer, interface_arguments


def pytest_configure(config):
    """Load the pack, or what of it works without ComfyUI."""
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    only_core = all(path.is_relative_to(ROOT / "tests" / "core") for path in paths)
    (load_core if only_core else load_pack)()


def pytest_addoption(parser):
    """How much the tests that draw at random draw, from which seed, and where screenshots go."""
    parser.addoption(
        "--graphs", type=int, default=40, help="random graphs in test_leftovers.py and test_random_doors.py"
    )
    parser.addoption("--patches", type=int, default=200, help="random attention patches in test_random_patches.py")
    parser.addoption("--files", type=int, default=30, help="damaged files in test_fuzz.py")
    parser.addoption("--shots", help="folder for the screenshots of the browser tests; a temporary one without it")
    parser.addoption("--nodes2", action="store_true", help="Nodes 2.0 in the browser tests of one renderer")
    parser.addoption("--interface", help="version of another web interface than this ComfyUI's own")
    parser.addoption("--seed", type=int, default=0, help="where random graphs and files start from")


@pytest.fixture(scope="session")
def pack():
    """The pack's root module."""
    return load_pack()


@pytest.fixture(scope="session")
def server(tmp_path_factory, pytestconfig):
    """A running ComfyUI with the pack and the tests' own node; its folders lie under `server.base`."""
    packs = {**PACKS, "unhype_tests": ROOT / "tests" / "nodes_for_tests"}
    arguments = interface_arguments(pytestconfig.getoption("--interface"))
    with ComfyServer(tmp_path_factory.mktemp("comfyui"), packs=packs, arguments=arguments) as running:
        yield running


@pytest.fixture(scope="session")
def checkpoint(server):
    """The checkpoint that the workflows name, small and random, in the server's folder."""
    from checkpoint import write_checkpoint
    from graphs import checkpoint_name

    path = server.base / "models" / "checkpoints" / checkpoint_name()
    write_checkpoint(path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def named_files(server, checkpoint):
    """The files that the workflows name, in the server's folders: empty, for a list shows them all the same."""
    from graphs import read

    from benchmarks.graph import WORKFLOWS

    folders = {"UNETLoader": "diffusion_models", "DualCLIPLoader": "text_encoders", "VAELoader": "vae"}
    folders |= {"UnHypeLoadHypernet": "unhype"}
    made = []
    for name in WORKFLOWS:
        for node in read(name)["nodes"]:
            for value in node.get("widgets_values", ()):
                if node["type"] in folders and str(value).endswith(".safetensors"):
                    path = server.base / "models" / folders[node["type"]] / value
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if not path.exists():
                        path.touch()
                        made.append(path)
    yield
    for path in made:
        path.unlink()


@pytest.fixture(scope="module")
def web(server, pytestconfig, tmp_path_factory):
    """The interface of the tests' ComfyUI, with the newcomer's tour already seen."""
    from webpage import web_page

    from benchmarks.chromium import chromium

    shots = Path(pytestconfig.getoption("--shots") or tmp_path_factory.mktemp("shots")).resolve()
    shots.mkdir(parents=True, exist_ok=True)
    settings = server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    chosen = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
    chosen["LiteGraph.Canvas.MinFontSizeForLOD"] = 0  # words stay on nodes, however small the screenshot shows them
    chosen["Comfy.VueNodes.Enabled"] = pytestconfig.getoption("--nodes2")
    settings.write_text(json.dumps(chosen), "utf-8")
    with web_page(chromium(), server.url, shots) as page:
        yield page


@pytest.fixture(scope="session")
def demo_run(server):
    """The demo, run on the lab's model once: its API prompt in small and its history entry."""
    from graphs import nodes_of, read, reduced

    from benchmarks.graph import to_prompt

    info = server.object_info()
    if "UnHypeLabLoader" not in info or not (ROOT / "benchmarks/lab/weights/base.safetensors").exists():
        pytest.skip("the lab model is not in this checkout")
    prompt = reduced(to_prompt(read("demo"), info))
    (trainer,) = nodes_of(prompt, "UnHypeTrainErasure")
    trainer["inputs"] |= {"steps": 40, "preview_every": 0}
    return prompt, server.run(prompt, timeout=900)


@pytest.fixture
def as_a_node_runs():
    """ComfyUI runs nodes under inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def model():
    """A tiny SD 1.x model, on which no test leaves an override."""
    from tiny import overridden, tiny_model

    model = tiny_model()
    yield model
    assert overridden(model) == []


@pytest.fixture
def ask(tmp_path):
    """Makes the request for a training run, see `runs.request_in`."""
    from runs import request_in

    return partial(request_in, tmp_path)

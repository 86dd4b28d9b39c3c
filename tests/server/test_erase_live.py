"""Erase Concept in a running ComfyUI, on the lab's model: from Run to the picture, again, and with more lines."""

import numpy
import pytest
from graphs import nodes_of, read
from PIL import Image

from benchmarks.first import drawing
from benchmarks.graph import to_prompt
from unhype.hypernet.files import load


def pictures(server, prompt):
    """The pixels that a prompt saves, and the nodes that ComfyUI had the results of."""
    entry = server.run(prompt, timeout=1800)
    pixels = [numpy.asarray(Image.open(path)) for path in server.pictures(entry, "save")]
    cached = next(message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")
    return numpy.stack(pixels), cached


@pytest.fixture(scope="module")
def folder(server):
    """models/unhype, in which this file's erasers are removed at the end."""
    if "UnHypeLabLoader" not in server.object_info():
        pytest.skip("the lab model is not in this checkout")
    folder = server.base / "models" / "unhype"
    folder.mkdir(exist_ok=True)
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        path.unlink()


@pytest.fixture(scope="module")
def first(server, folder):
    """The pixels of the first run, and the files there were before it."""
    before = set(folder.iterdir())
    return pictures(server, drawing("cat -> tree"))[0], before


def test_the_first_run_trains_and_the_second_comes_from_the_cache(server, folder, first):
    (path,) = set(folder.iterdir()) - first[1]
    assert path.name == "cat.safetensors"
    assert load(path).record.summary() == "cat -> tree"
    _, cached = pictures(server, drawing("cat -> tree", seed=4))  # ComfyUI has the results of its last prompt
    assert "erase 0" in cached
    assert "draw" not in cached


def test_a_changed_list_trains_what_is_new_and_a_chain_is_one_list(server, folder, first):
    written = {path: path.stat().st_mtime_ns for path in folder.glob("cat*")}
    one, cached = pictures(server, drawing("cat -> tree\nship -> tree"))
    assert "erase 0" not in cached
    assert {path: path.stat().st_mtime_ns for path in folder.glob("cat*")} == written
    assert (folder / "ship.safetensors").is_file()
    files = set(folder.iterdir())
    chain, _ = pictures(server, drawing("cat -> tree", "ship -> tree"))
    assert (chain == one).all()
    assert set(folder.iterdir()) == files
    assert (one == first[0]).all(), "the second eraser leaves prompts of the first to it"
    assert (one != pictures(server, drawing())[0]).any()


def test_the_template_is_of_this_node_and_a_sampler(server):
    prompt = to_prompt(read("erase_sd15"), server.object_info())
    (erase,), (draw,) = nodes_of(prompt, "UnHypeEraseConcept"), nodes_of(prompt, "KSampler")
    assert erase["inputs"]["concepts"] == "cat -> tree"
    assert prompt[draw["inputs"]["model"][0]] is erase

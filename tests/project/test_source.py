"""What the pack's source may contain, and which modules may import which."""

import ast
import sys

import pytest
from sources import imports_of

from benchmarks.environment import ROOT

ROOMS = ("hypernet", "policy", "training", "evaluation", "nodes", "commands")
SOURCES = [ROOT / "__init__.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "latent_preview", "nodes"}
HOST |= {"server", "utils"}
# Programs from files and strings, other processes, and the network.
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "subprocess", "socket", "http", "urllib", "requests", "aiohttp"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen", "os.startfile"}
# Files of the paper's authors and checkpoints are pickles, of which torch reads nothing but weights.
READ_SAFELY = ("hypernet/conversion.py", "training/checkpoint.py")
# The modules of each room that import ComfyUI.
DOORS = {
    "hypernet": ["hypernet/patch.py"],
    "policy": ["policy/guard.py", "policy/log.py", "policy/place.py", "policy/queued.py", "policy/rules.py"],
    "training": ["training/encode_batch.py", "training/frozen.py", "training/sampling.py"],
    "evaluation": ["evaluation/decoding.py"],
}


def calls_of(path):
    """The calls of a file: the function by name, such as `eval` or `torch.load`, and the call."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def of_room(room):
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] == room]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_character_shows_on_every_console(path):
    path.read_text("utf-8").encode("cp1252")


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_nothing_runs_programs_from_data_or_talks_to_the_network(path):
    assert {name.split(".")[0] for name in imports_of(path)} & FORBIDDEN_MODULES == set()
    allowed = {"torch.load"} if path.relative_to(ROOT).as_posix() in READ_SAFELY else set()
    assert {name for name, _ in calls_of(path)} & FORBIDDEN_CALLS == allowed


@pytest.mark.parametrize("name", READ_SAFELY)
def test_pickles_are_read_for_their_weights_only(name):
    loads = [call for function, call in calls_of(ROOT / name) if function == "torch.load"]
    assert [[ast.unparse(word) for word in call.keywords if word.arg == "weights_only"] for call in loads] == [
        ["weights_only=True"]
    ]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_device_and_layers_are_left_to_comfyui(path):
    text = path.read_text("utf-8")
    forbidden = ("torch.autocast(", ".cuda(", '.to("cuda', "nn.Linear(", "nn.LayerNorm(", "nn.Embedding(", "nn.Conv2d(")
    assert [words for words in forbidden if words in text] == []


@pytest.mark.parametrize("room", DOORS)
def test_the_engine_meets_comfyui_at_its_doors_only(room):
    meeting = [path for path in of_room(room) if {name.split(".")[0] for name in imports_of(path)} & HOST]
    assert sorted(path.relative_to(ROOT).as_posix() for path in meeting) == DOORS[room]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_in_one_direction(room):
    own = {name.split(".")[1] for path in of_room(room) for name in imports_of(path) if name.startswith(".")}
    assert own
    assert own <= set(ROOMS[: ROOMS.index(room) + 1])


def test_the_pack_needs_no_package_beside_comfyuis_own():
    tomllib = pytest.importorskip("tomllib")
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])
    used = {name.split(".")[0] for path in SOURCES for name in imports_of(path) if not name.startswith(".")}
    assert used - HOST - {"PIL"} - set(sys.stdlib_module_names) == declared

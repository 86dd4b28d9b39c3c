"""What the pack uses of ComfyUI, read from its own sources: every name must be there on the host that runs it."""

import ast
import copy
import importlib
import re
from functools import cache

import comfyui_version
import pytest
from comfy.patcher_extension import WrappersMP
from tiny import prompt, sample, tiny_model

from benchmarks.environment import HOSTS, ROOT

PACK = [
    ROOT / "__init__.py",
    *(
        path
        for room in ("hypernet", "policy", "training", "evaluation", "nodes")
        for path in (ROOT / room).rglob("*.py")
    ),
]
HOST_PACKAGES = (
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "node_helpers",
    "nodes",
    "server",
)
# Outside `nodes/`, the only modules that import ComfyUI.
DOORS = {"hypernet/patch.py", "training/encode_batch.py", "training/frozen.py", "training/sampling.py"}
DOORS |= {f"policy/{name}.py" for name in ("guard", "log", "place", "queued", "rules")}
# The pack's names for the host's objects; names of its own objects don't belong here.
OBJECTS = {"clone": "patcher", "patcher": "patcher", "guider": "guider"}
# What the pack looks for before it uses it, since older hosts do without.
OPTIONAL = {"comfy.model_management.in_training", "comfy.model_prefetch.pause_malloc_graph"}


def _dotted(node):
    """`a.b.c` as ["a", "b", "c"], or None."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


def _imported(tree):
    """Local name to the host's dotted one, of absolute imports."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {local: name for local, name in names.items() if name.split(".")[0] in HOST_PACKAGES}


def symbols_of(path):
    """Dotted names of the host that a source file uses; those of its objects start with patcher or guider."""
    tree = ast.parse(path.read_text("utf-8"))
    names = _imported(tree)
    # `import comfy.samplers` binds `comfy`.
    first = {name.split(".")[0]: name.split(".")[0] for name in names.values()} | names
    found = set(names.values())
    for node in ast.walk(tree):
        chain = _dotted(node) if isinstance(node, ast.Attribute) else None
        if chain and chain[0] in first:
            found.add(".".join([first[chain[0]], *chain[1:]]))
        for name, attribute in zip(chain or (), (chain or ())[1:], strict=False):
            if name in OBJECTS:
                found.add(f"{OBJECTS[name]}.{attribute}")
    return found


USED = {symbol: path for path in PACK for symbol in sorted(symbols_of(path))}


@cache
def host_object(name):
    """A MODEL, or a GUIDER as it is in the middle of a sampling."""
    model, guiders = tiny_model(), []
    if name == "patcher":
        return model

    def note(executor, *args, **kwargs):
        guiders.append(copy.copy(executor.class_obj))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "note", note)
    sample(model, prompt(1), prompt(2), steps=1)
    return guiders[0]


def look_up(symbol):
    """The thing of that dotted name; raises LookupError with the part that is missing."""
    first, *rest = symbol.split(".")
    thing = host_object(first) if first in OBJECTS.values() else importlib.import_module(first)
    for number, name in enumerate(rest, 1):
        if name == "instance" and isinstance(thing, type):
            continue  # only a running server has it, and it is of that class
        if not hasattr(thing, name):
            try:
                importlib.import_module(".".join([first, *rest[:number]]))
            except ImportError:
                raise LookupError(f"this ComfyUI has no {symbol}: {name} is missing") from None
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize("symbol", sorted(USED))
def test_the_host_has(symbol):
    try:
        look_up(symbol)
    except LookupError as lacking:
        if symbol in OPTIONAL:
            pytest.skip(str(lacking))
        pytest.fail(f"{USED[symbol].relative_to(ROOT)}: {lacking}")


def table():
    """Symbol to version to whether it is there, as CONTRIBUTING.md says."""
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## What the pack uses of ComfyUI")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {
        f"{owner.strip('`')}.{name}": dict(zip(header[2:], (mark == "yes" for mark in marks), strict=True))
        for owner, names, *marks in rows
        for name in re.findall("`(.+?)`", names)
    }


def test_the_table_lists_what_the_pack_uses():
    wanted = {symbol for symbol in USED if not any(other.startswith(f"{symbol}.") for other in USED)}
    assert wanted == table().keys()


def test_the_table_is_right_about_this_comfyui():
    version = comfyui_version.__version__
    if version not in next(iter(table().values())):
        pytest.skip(f"the table has no column for ComfyUI {version}")
    for symbol, versions in table().items():
        try:
            look_up(symbol)
        except LookupError:
            assert not versions[version], symbol
        else:
            assert versions[version], symbol


def test_the_list_is_of_what_the_pack_uses():
    assert {"comfy.patcher_extension.WrappersMP.OUTER_SAMPLE", "folder_paths.models_dir"} <= set(USED)
    assert {"patcher.add_wrapper_with_key", "comfy_api.latest.io.Combo.Input", "guider.conds"} <= set(USED)
    assert len(USED) > 50


def test_a_missing_symbol_is_named():
    with pytest.raises(LookupError, match=r"no comfy\.samplers\.NoSuchGuider\.sample: NoSuchGuider is missing"):
        look_up("comfy.samplers.NoSuchGuider.sample")


def test_the_engine_imports_comfyui_in_few_places_only():
    engine = [
        path for path in PACK if path.relative_to(ROOT).parts[0] in ("hypernet", "policy", "training", "evaluation")
    ]
    importing = [path for path in engine if _imported(ast.parse(path.read_text("utf-8")))]
    assert {path.relative_to(ROOT).as_posix() for path in importing} == DOORS


def test_the_newest_host_comes_first_and_the_oldest_is_the_one_that_is_promised():
    versions = [tuple(map(int, version.split("."))) for version in HOSTS]
    assert versions == sorted(versions, reverse=True)
    assert f'requires-comfyui = ">={list(HOSTS)[-1]}"' in (ROOT / "pyproject.toml").read_text("utf-8")

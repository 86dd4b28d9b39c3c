"""The nodes without a server: their sockets and words, names of files, and what the pack's source may contain."""

import ast
import asyncio
import sys
from dataclasses import MISSING, fields

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from tiny import tiny_eraser, tiny_model

from benchmarks.environment import ROOT
from unhype.hypernet.files import save
from unhype.nodes.folders import (
    FOLDER,
    NO_HYPERNET,
    NO_PUBLISHED,
    hypernet_names,
    hypernet_path,
    published_names,
    published_path,
    safe_name,
    training_folder,
)
from unhype.training.loop import TrainingError
from unhype.training.plan import Request
from unhype.training.prompts import PromptError
from unhype.training.settings import Settings

IDS = (
    "UnHypeLoadHypernet",
    "UnHypeApplyErasure",
    "UnHypeTrainErasure",
    "UnHypeHypernetToLora",
    "UnHypeInspectPrompt",
    "UnHypeImportWeights",
    "UnHypeErasureReport",
)


@pytest.fixture(scope="module")
def nodes(pack):
    """Node id to class, as ComfyUI gets them."""
    extension = asyncio.run(pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


def inputs_of(node):
    """Input name to its options, in the order of the node."""
    parts = node.GET_NODE_INFO_V1()["input"]
    return {name: spec[1] for part in ("required", "optional") for name, spec in parts.get(part, {}).items()}


def defaults_of(node):
    return {name: options["default"] for name, options in inputs_of(node).items() if "default" in options}


# Sockets and words


def test_the_ids_are_the_ones_that_saved_workflows_name(nodes):
    assert tuple(nodes) == IDS


@pytest.mark.parametrize("name", IDS)
def test_every_input_and_output_has_a_tooltip(nodes, name):
    inputs, outputs = inputs_of(nodes[name]), nodes[name].GET_NODE_INFO_V1()
    assert [input_name for input_name, options in inputs.items() if not options.get("tooltip")] == []
    assert len(outputs["output_tooltips"]) == len(outputs["output"]) > 0
    assert all(outputs["output_tooltips"])


@pytest.mark.parametrize("name", IDS)
def test_every_node_says_what_it_does(nodes, name):
    info = nodes[name].GET_NODE_INFO_V1()
    assert info["display_name"] != name
    assert len(info["description"]) > 60


@pytest.mark.parametrize("name", IDS)
def test_the_help_page_tells_about_every_input(nodes, name):
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text("utf-8")
    assert [input_name for input_name in inputs_of(nodes[name]) if f"**{input_name}**" not in page] == []
    assert page.startswith(f"# {nodes[name].GET_SCHEMA().display_name}\n")


def test_there_is_no_help_page_without_a_node():
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(IDS)


@pytest.mark.parametrize("name", IDS)
def test_the_node_is_found_by_what_people_search_for(nodes, name):
    if "search_aliases" not in {field.name for field in fields(io.Schema)}:
        pytest.skip("this ComfyUI knows no search aliases")
    assert {"erase", "unlearn", "remove concept"} <= set(nodes[name].GET_SCHEMA().search_aliases)


# Train Erasure and its settings

# What users are not asked: `Settings` has the numbers that were measured.
FIXED = {
    "basis",
    "hidden",
    "attention_batch",
    "jitter",
    "sentences",
    "retain_batch",
    "eta",
    "sampler_steps",
    "rollouts",
    "pictures",
    "kept_steps",
    "gradient_clip",
    "watch_every",
}
NO_SETTING = {"model", "clip", "concepts", "preserve", "name", "start_from", "resume"}
NO_SETTING |= {"checkpoint_every", "preview_every", "vae", "preset"}


def test_every_setting_is_an_input_or_fixed_on_purpose(nodes):
    assert set(inputs_of(nodes["UnHypeTrainErasure"])) - NO_SETTING == {f.name for f in fields(Settings)} - FIXED


@pytest.mark.parametrize("kind", [Settings, Request])
def test_the_defaults_of_the_node_are_the_defaults_of_training(nodes, kind):
    defaults = defaults_of(nodes["UnHypeTrainErasure"])
    own = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    shared = own.keys() & defaults.keys()
    assert len(shared) > 2
    assert {name: defaults[name] for name in shared} == {name: own[name] for name in shared}


def test_every_default_is_one_that_the_host_accepts(nodes):
    for node in nodes.values():
        for name, options in inputs_of(node).items():
            default = options.get("default")
            if "options" in options and default is not None:
                assert default in options["options"], name
            if "min" in options:
                assert options["min"] <= default <= options["max"], name


def test_training_takes_the_inputs_of_the_node_and_nothing_else(nodes):
    """Up to where a CLIP would be needed: an option that `Settings` does not know would end in a TypeError."""
    trainer = nodes["UnHypeTrainErasure"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    with pytest.raises(TrainingError, match="no CLIP is connected"):
        trainer.execute(model=tiny_model(), **defaults_of(trainer))


@pytest.mark.parametrize(
    ("concepts", "words"),
    [
        ("", "There is no concept to erase"),
        ("\n# cat -> tree\n \n", "There is no concept to erase"),
        ("cat -> tree\nCat", "'Cat' is listed twice"),
        ("cat -> Cat", "'cat' is mapped to itself"),
    ],
)
def test_a_concept_list_that_cannot_be_used_is_refused_in_words(nodes, concepts, words):
    answer = nodes["UnHypeTrainErasure"].validate_inputs(concepts=concepts)
    assert answer.startswith("Train Erasure, 'concepts': ")
    assert words in answer


@pytest.mark.parametrize("concepts", ["cat -> tree", "cat", None])
def test_a_usable_list_and_one_that_another_node_will_give_pass(nodes, concepts):
    """ComfyUI asks with None for an input that is linked."""
    assert nodes["UnHypeTrainErasure"].validate_inputs(concepts=concepts) is True


# Names of files


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("no cats", "no cats"),
        ("cats, v1.2 + dogs-b_c", "cats, v1.2 + dogs-b_c"),
        ("cats.safetensors", "cats"),
        (" cats.safetensors\n", "cats"),
        ("", "erasure"),
        (" . ", "erasure"),
        (".safetensors", "erasure"),
        ("people/jane", "people_jane"),
        ("people\\jane", "people_jane"),
        ("/etc/passwd", "_etc_passwd"),
        ("../../cats", "_.._cats"),
        ("..", "erasure"),
        (".hidden", "hidden"),
        ("C:\\cats", "C__cats"),
        ("C:cats", "C_cats"),
        ('a<b>c:d"e|f?g*h', "a_b_c_d_e_f_g_h"),
        ("a\0b\tc\nd\x7fe\u202ef", "a_b_c_d_e_f"),
        ("cats...", "cats"),
        ("cats. .", "cats"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("Com1", "_Com1"),
        ("lpt\u00b2 .x", "_lpt\u00b2 .x"),
        ("console", "console"),
        ("com10", "com10"),
        ("\u732b\u3068\u72ac", "\u732b\u3068\u72ac"),
        ("chate\u0301", "chat\u00e9"),
        ("\U0001f408 cat", "_ cat"),
        ("\ud800", "_"),
    ],
)
def test_a_typed_name_becomes_a_plain_file_name(typed, name):
    assert safe_name(typed) == name


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\u732b", "\U00020000"])
def test_a_long_name_leaves_room_for_number_suffix_and_unfinished_mark(letter, tmp_path):
    name = safe_name(letter * 1000)
    assert set(name) == {letter}
    eraser = tiny_eraser(tiny_model())
    save(eraser, tmp_path / f"{name}_1000.safetensors")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_that_is_cut_does_not_end_in_a_dot_or_blank():
    assert safe_name("a" * 179 + ". b") == "a" * 179


@pytest.fixture
def folder():
    """models/unhype of this process, with a file in a subfolder."""
    folder = training_folder()
    # Kept by the folder's time of change, which a quick test does not move.
    folder_paths.filename_list_cache.pop(FOLDER, None)
    (folder / "people").mkdir(parents=True)
    (folder / "people" / "jane.safetensors").touch()
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    folder_paths.filename_list_cache.pop(FOLDER, None)


def test_only_safetensors_are_offered(folder):
    for name in ("a.safetensors", "b.sft", "c.ckpt", "d.pt", "e.txt", ".f.safetensors.01234567.part", "g"):
        (folder / name).touch()
    assert [name.replace("\\", "/") for name in hypernet_names()] == [
        "a.safetensors",
        "b.sft",
        "people/jane.safetensors",
    ]


def test_a_listed_name_is_found_in_its_subfolder(folder):
    (name,) = hypernet_names()
    assert hypernet_path(name) == folder / "people" / "jane.safetensors"


def test_files_outside_the_model_folder_are_not_found(folder):
    outside = folder.parent / "outside.safetensors"
    outside.touch()
    for name in ("../outside.safetensors", "people/../../outside.safetensors", str(outside)):
        with pytest.raises(FileNotFoundError):
            hypernet_path(name)
    outside.unlink()


def test_files_of_the_authors_are_listed_apart_and_only_inside_the_folder(folder):
    for name in ("people/theirs.pth", "a.pth", "b.pt"):
        (folder / name).touch()
    outside = folder.parent / "outside.pth"
    outside.touch()
    assert published_names() == ["a.pth", "people/theirs.pth"]
    assert [name.replace("\\", "/") for name in hypernet_names()] == ["people/jane.safetensors"]
    assert published_path("people/theirs.pth") == folder / "people" / "theirs.pth"
    for name in ("../outside.pth", "people/../../outside.pth", str(outside), "b.pt"):
        with pytest.raises(FileNotFoundError):
            published_path(name)
    outside.unlink()


def test_a_list_without_files_says_how_to_get_one(nodes, folder):
    (folder / "people" / "jane.safetensors").rename(folder / "people" / "jane.txt")
    folder_paths.filename_list_cache.pop(FOLDER, None)
    for kind, entry, way_out in (
        ("UnHypeLoadHypernet", NO_HYPERNET, "Load UnHype Hypernet, 'hypernet': .* Train one with Train Erasure"),
        ("UnHypeImportWeights", NO_PUBLISHED, "Import UnHype Weights, 'weights': .* Put one there .* press R"),
    ):
        chosen = nodes[kind].define_schema().inputs[0]
        assert chosen.options == [entry]
        with pytest.raises(FileNotFoundError, match=way_out):
            nodes[kind].execute(entry, *([""] if kind == "UnHypeImportWeights" else []))


def test_an_authors_file_is_imported_by_the_node(nodes, folder):
    from core_parts import seeded
    from published_parts import their_file, their_layers

    state, config = their_file("flux", 1, their_layers("flux"), seeded(1))
    torch.save({"state_dict": state, "config": config}, folder / "theirs.pth")
    node = nodes["UnHypeImportWeights"].PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    first = node.fingerprint_inputs("theirs.pth", "")
    (eraser,) = node.execute("theirs.pth", "airplane -> sky").result
    assert eraser.record.concepts == (("airplane", "sky"),)
    assert hypernet_path("theirs.safetensors").is_file()
    assert node.fingerprint_inputs("theirs.pth", "airplane -> sky") != first
    with pytest.raises(PromptError, match=r"Import UnHype Weights, 'erases': .* not of the form"):
        node.execute("theirs.pth", "a -> b -> c")


def test_the_folder_is_comfyuis_own(folder):
    assert folder.parent.samefile(folder_paths.models_dir)


# The pack's source

SOURCES = [
    ROOT / "__init__.py",
    *(path for room in ("hypernet", "training", "evaluation", "nodes") for path in (ROOT / room).rglob("*.py")),
]
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]
# Programs from files and strings, other processes, and the network.
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "subprocess", "socket", "http", "urllib", "requests", "aiohttp"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen", "os.startfile"}


def imports_of(path):
    """The modules that a file imports, anywhere in it, with the pack's own as `.room.module`."""
    room = path.parent.name if path.parent != ROOT else ""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            own = f".{room}." if node.level == 1 and room else "."
            yield from ([own + node.module] if node.module else [own + alias.name for alias in node.names])


def calls_of(path):
    """What a file calls by name, such as `eval` or `torch.load`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def of_room(room):
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] == room]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_character_shows_on_every_console(path):
    path.read_text("utf-8").encode("cp1252")


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_nothing_runs_programs_from_data_or_talks_to_the_network(path):
    assert {name.split(".")[0] for name in imports_of(path)} & FORBIDDEN_MODULES == set()
    # The authors' files and checkpoints are pickles, of which torch loads nothing but weights.
    loaded_safely = {"torch.load"} if path.name in ("conversion.py", "checkpoint.py") else set()
    assert set(calls_of(path)) & FORBIDDEN_CALLS == loaded_safely


@pytest.mark.parametrize("name", ["hypernet/conversion.py", "training/checkpoint.py"])
def test_pickles_are_loaded_for_their_weights_only(name):
    source = ast.parse((ROOT / name).read_text("utf-8"))
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert [[ast.unparse(word) for word in call.keywords if word.arg == "weights_only"] for call in calls] == [
        ["weights_only=True"]
    ]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_device_and_layers_are_left_to_comfyui(path):
    text = path.read_text("utf-8")
    forbidden = ("torch.autocast(", ".cuda(", '.to("cuda', "nn.Linear(", "nn.LayerNorm(", "nn.Embedding(", "nn.Conv2d(")
    assert [words for words in forbidden if words in text] == []


@pytest.mark.parametrize(
    ("room", "doors"),
    [
        ("hypernet", ["hypernet/patch.py"]),
        ("training", ["training/frozen.py", "training/sampling.py"]),
        ("evaluation", ["evaluation/decoding.py"]),
    ],
    ids=lambda v: str(v),
)
def test_the_engine_meets_comfyui_at_its_doors_only(room, doors):
    host = {
        "comfy",
        "comfy_api",
        "comfy_extras",
        "comfy_execution",
        "folder_paths",
        "latent_preview",
        "nodes",
        "server",
        "execution",
    }
    meeting = [path for path in of_room(room) if {name.split(".")[0] for name in imports_of(path)} & host]
    assert sorted(path.relative_to(ROOT).as_posix() for path in meeting) == doors


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("hypernet", ("training", "evaluation", "nodes")),
        ("training", ("evaluation", "nodes")),
        ("evaluation", ("nodes",)),
    ],
)
def test_rooms_import_in_one_direction(room, others):
    own = {name for path in of_room(room) for name in imports_of(path) if name.startswith(".")}
    assert own
    assert not [name for name in own if name.lstrip(".").split(".")[0] in others]


def test_the_pack_needs_no_package_beside_comfyuis_own():
    tomllib = pytest.importorskip("tomllib")
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"])
    used = {name.split(".")[0] for path in SOURCES for name in imports_of(path) if not name.startswith(".")}
    host = {"comfy", "comfy_api", "folder_paths", "latent_preview", "server", "PIL"}
    assert used - host - set(sys.stdlib_module_names) == declared

"""The nodes without a server: their sockets and texts, names of files, and what they do."""

import asyncio
import re
import sys
from dataclasses import MISSING, fields
from functools import partial

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from published_parts import their_file, their_layers
from tiny import TinyClip, seeded, tiny_eraser, tiny_model

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
    "UnHypeEraseConcept",
    "UnHypeLoadHypernet",
    "UnHypeApplyErasure",
    "UnHypeTrainErasure",
    "UnHypeMergeErasers",
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


# Sockets and texts


def test_the_ids_are_the_ones_that_saved_workflows_name(nodes):
    assert tuple(nodes) == IDS


@pytest.mark.parametrize("name", IDS)
def test_every_input_and_output_has_a_tooltip(nodes, name):
    inputs, outputs = inputs_of(nodes[name]), nodes[name].GET_NODE_INFO_V1()
    assert [input_name for input_name, options in inputs.items() if not options.get("tooltip")] == []
    assert len(outputs["output_tooltips"]) == len(outputs["output"]) > 0
    assert all(outputs["output_tooltips"])


@pytest.mark.parametrize("name", IDS)
def test_every_node_has_a_name_and_a_description(nodes, name):
    info = nodes[name].GET_NODE_INFO_V1()
    assert info["display_name"] != name
    assert len(info["description"]) > 60


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


def test_training_takes_the_inputs_of_the_node_and_no_others(nodes):
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


@pytest.mark.parametrize("inputs", [("cat -> tree",), ("cat",), (None,), ("", None)])
def test_a_usable_list_and_one_that_another_node_will_give_pass(nodes, inputs):
    """ComfyUI asks with None for an input that is linked."""
    assert nodes["UnHypeTrainErasure"].validate_inputs(*inputs) is True


def test_an_unknown_preset_is_refused_before_anything_runs(nodes):
    answer = nodes["UnHypeTrainErasure"].validate_inputs(concepts="", preset="animals of mine")
    assert answer.startswith("Train Erasure, 'preset': 'animals of mine' is not in the list. Choose one of custom, ")


# Values of lists


@pytest.mark.parametrize("wrong", ["STRICT", "", None, 1e308, {}])
@pytest.mark.parametrize(
    ("name", "entry", "sockets"),
    [
        ("UnHypeApplyErasure", "unknown_prompts", ("model", "unhype")),
        ("UnHypeTrainErasure", "kind", ("model", "clip")),
        ("UnHypeTrainErasure", "objective", ("model", "clip")),
        ("UnHypeTrainErasure", "preset", ("model", "clip")),
        ("UnHypeErasureReport", "sampler_name", ("model", "clip", "vae", "unhype")),
        ("UnHypeErasureReport", "scheduler", ("model", "clip", "vae", "unhype")),
    ],
)
def test_a_value_that_its_list_does_not_have_is_refused_before_anything_runs(nodes, name, entry, sockets, wrong):
    """It may come by a link, at which no ComfyUI looks; another policy than the user's would be applied."""
    node = executable(nodes, name)
    inputs = {socket: object() for socket in sockets} | defaults_of(node) | {entry: wrong}
    message = f"{node.define_schema().display_name}, '{entry}': {wrong!r} is not in the list. Choose one of "
    with pytest.raises(ValueError, match=re.escape(message)):
        node.execute(**inputs)


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


def test_the_folder_is_comfyuis_own(folder):
    assert folder.parent.samefile(folder_paths.models_dir)


# What they do


def executable(nodes, name):
    """A node as ComfyUI runs it where no interface is open."""
    return nodes[name].PREPARE_CLASS_CLONE({"hidden_inputs": {}})


def test_an_authors_file_is_imported_by_the_node(nodes, folder):
    state, config = their_file("flux", 1, their_layers("flux"), seeded(1))
    torch.save({"state_dict": state, "config": config}, folder / "theirs.pth")
    node = executable(nodes, "UnHypeImportWeights")
    first = node.fingerprint_inputs("theirs.pth", "")
    output = node.execute("theirs.pth", "airplane -> sky")
    assert output.args[0].record.concepts == (("airplane", "sky"),)
    assert output.ui.as_dict()["text"] == ("Saved as theirs.safetensors.\nErases:\nairplane -> sky",)
    assert hypernet_path("theirs.safetensors").is_file()
    assert node.fingerprint_inputs("theirs.pth", "airplane -> sky") != first
    with pytest.raises(PromptError, match=r"Import UnHype Weights, 'erases': .* not of the form"):
        node.execute("theirs.pth", "a -> b -> c")


@pytest.fixture(scope="module")
def trained(nodes):
    """What Train Erasure returns after two runs of the same inputs, without a VAE."""
    small = {"steps": 2, "preview_every": 1, "width": 64, "height": 64, "rank": 1}
    inputs = {**defaults_of(nodes["UnHypeTrainErasure"]), **small, "preserve": "tiger"}
    node = executable(nodes, "UnHypeTrainErasure")
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        # The number of sampler steps is no input.
        patch.setattr(node_module("train"), "Settings", partial(Settings, sampler_steps=2))
        outputs = [node.execute(model=tiny_model(), clip=TinyClip(), **inputs) for _ in range(2)]
    yield outputs
    for path in sorted(training_folder().glob("*")):
        path.unlink()
    training_folder().rmdir()


def node_module(name):
    return sys.modules[f"unhype.nodes.{name}"]


def test_train_erasure_gives_eraser_losses_and_page(trained):
    eraser, losses, page = trained[0].args
    assert eraser.record.concepts == (("cat", "tree"),)
    assert len(losses["loss"]) == 2
    assert (page.shape[0], page.shape[2:]) == (1, (640, 3))
    (text,) = trained[0].ui["text"]
    assert re.match(r"Finished after 2 steps\. It took \d+ s\.\nErases:\ncat -> tree\n", text)
    assert text.endswith(f"Saved as {training_folder() / 'my_erasure.safetensors'}")
    (text,) = trained[1].ui["text"]
    assert text.startswith("These settings were trained before; nothing to do. Finished after 2 steps.")


def test_without_a_vae_the_page_has_rough_pictures(trained):
    """Two cards of pictures: much higher than the curves and texts alone."""
    assert trained[0].args[2].shape[1] > 600

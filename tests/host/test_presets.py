"""The presets of Train Erasure: lists that parse, train and leave their neighbours alone, and when they count."""

import asyncio
import shutil
import subprocess

import pytest
from runs import go, request_in
from tiny import WordClip, tiny_model

from benchmarks.environment import ROOT
from unhype.training.presets import CUSTOM, PRESETS, with_preset
from unhype.training.prompts import TEMPLATES, parse_concepts, phrasings, preserved_lines, retain_split

NAMES = list(PRESETS)


@pytest.fixture(scope="module")
def trainer(pack):
    """Train Erasure's class."""
    extension = asyncio.run(pack.comfy_entrypoint())
    return next(
        node for node in asyncio.run(extension.get_node_list()) if node.GET_SCHEMA().node_id == "UnHypeTrainErasure"
    )


def test_there_is_one_for_each_thing_people_want_to_erase():
    assert NAMES == ["object", "person", "style", "explicit content"]


@pytest.mark.parametrize("name", NAMES)
def test_the_lists_can_be_used_and_keep_nothing_that_they_erase(name):
    preset = PRESETS[name]
    concepts = parse_concepts(preset.concepts)
    assert preset.kind in TEMPLATES
    assert all(mapping for _, mapping in concepts)
    kept = [line.casefold() for line in preserved_lines(preset.preserve)]
    assert len(kept) == len(set(kept)) >= 8
    erased = [concept.casefold() for concept, _ in concepts]
    assert [line for line in kept for concept in erased if concept in line] == []
    split = retain_split(preset.preserve, concepts, preset.kind)
    wordings = {phrase.prompt.casefold() for phrase in phrasings(concepts, preset.kind)}
    assert wordings.isdisjoint(text.casefold() for text in (*split.train, *split.held_out))


@pytest.mark.parametrize("name", NAMES)
def test_its_concepts_are_above_the_threshold_after_training_and_held_out_prompts_below(name, tmp_path):
    """On a CLIP whose vectors are made of a prompt's words, all that such a model can distinguish."""
    preset = PRESETS[name]
    wish = request_in(tmp_path, preset.concepts, preset.preserve, kind=preset.kind, steps=1)
    eraser = go(tiny_model(), wish, clip=WordClip()).eraser
    assert eraser.record.concepts == parse_concepts(preset.concepts)
    assert eraser.record.training.preserve == preserved_lines(preset.preserve)
    assert eraser.record.training.held_out_unchanged > 0.8
    assert eraser.score(eraser.concept_embeddings).shape == (len(eraser.record.concepts),)
    assert (eraser.score(eraser.concept_embeddings) >= 1).all()


def test_what_stands_in_the_node_counts_before_the_preset():
    preset = PRESETS["style"]
    assert with_preset("style", "object", "cat -> tree", "") == ("object", "cat -> tree", "")
    assert with_preset(CUSTOM, "object", "", "") == ("object", "", "")
    assert with_preset("style", "object", " \n", "") == preset
    assert with_preset("style", "object", "", "tiger") == (preset.kind, preset.concepts, "tiger")


def test_the_node_takes_an_empty_list_only_with_a_preset(trainer):
    assert trainer.validate_inputs(concepts="", preset="person") is True
    assert "There is no concept to erase" in trainer.validate_inputs(concepts="", preset=CUSTOM)
    assert "There is no concept to erase" in trainer.validate_inputs(concepts="")
    assert "There is no concept to erase" in trainer.validate_inputs(concepts="# only this", preset="person")


def test_the_interface_gets_the_lists_with_the_node(trainer):
    inputs = trainer.GET_NODE_INFO_V1()["input"]
    name, spec = next((name, spec) for name, spec in inputs["optional"].items() if "default" in spec[1])
    assert name == "preset", "it fills the fields below it"
    assert spec[1]["default"] == CUSTOM
    assert spec[1]["options"] == [CUSTOM, *PRESETS]
    assert spec[1]["presets"] == {name: preset._asdict() for name, preset in PRESETS.items()}
    assert set(spec[1]["presets"]["style"]) <= set(inputs["optional"])


CHOOSING = """
import { readFileSync } from "node:fs"
const source = readFileSync(process.argv[1], "utf8").replace(/^import .*$/m, "")
let extension
const app = { registerExtension: (found) => { extension = found } }
new Function("app", source)(app)
const lists = { style: { kind: "style", concepts: "A", preserve: "B" } }
const widget = (name, value) => ({ name, value })
const node = {
  comfyClass: "UnHypeTrainErasure",
  constructor: { nodeData: { input: { optional: { preset: ["COMBO", { presets: lists }] } } } },
  widgets: [
    widget("concepts", "mine"), widget("preserve", "own"), widget("kind", "object"), widget("preset", "custom"),
  ],
}
extension.nodeCreated(node)
const shown = () => node.widgets.slice(0, 3).map((one) => one.value).join(" ")
const states = [shown()]
for (const choice of ["style", "custom", "style"]) {
  node.widgets[3].callback(choice)
  states.push(shown())
}
node.widgets[0].value = "A and more"
for (const choice of ["custom", "style", "custom"]) {
  node.widgets[3].callback(choice)
  states.push(shown())
}
console.log(states.join("|"))
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_choosing_one_fills_the_fields_and_custom_brings_back_what_was_typed(tmp_path):
    script = tmp_path / "choosing.mjs"
    script.write_text(CHOOSING.replace("process.argv[1]", "process.argv[2]"), encoding="utf-8")
    command = ["node", str(script), str(ROOT / "web" / "js" / "presets.js")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mine, style, changed = "mine own object", "A B style", "A and more B style"
    assert done.stdout.strip().split("|") == [mine, style, mine, style, changed, style, changed]

"""Erase Concept and Merge Erasers: what is trained, what is found again, and what is drawn."""

import asyncio
import shutil
import sys
from functools import partial

import pytest
import torch
from runs import out_of_memory, request_in
from tiny import TinyClip, WordClip, sample, tiny_model

from unhype.hypernet.files import load
from unhype.hypernet.merged import MergedEraser
from unhype.hypernet.patch import apply_erasure
from unhype.nodes.folders import training_folder
from unhype.training.parts import trained
from unhype.training.plan import Request
from unhype.training.prompts import PromptError
from unhype.training.settings import Settings

SMALL = partial(Settings, rank=2, basis=4, hidden=8, steps=3, attention_batch=6, sentences=8, retain_batch=8)
CLIP = WordClip()

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def nodes(pack):
    """Node id to class, as ComfyUI gets them."""
    extension = asyncio.run(pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


@pytest.fixture
def erase(nodes, monkeypatch):
    """Erase Concept in small, on WordClip; returns the model."""
    monkeypatch.setattr(sys.modules["unhype.nodes.erase"], "Settings", SMALL)

    def erased(model, concepts, strength=1.0, clip=CLIP):
        return nodes["UnHypeEraseConcept"].execute(model, clip, concepts, strength)[0]

    return erased


@pytest.fixture
def folder():
    """models/unhype of this process."""
    training_folder().mkdir(parents=True, exist_ok=True)
    yield training_folder()
    for path in sorted(training_folder().glob("*")):
        path.unlink()
    training_folder().rmdir()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The files of 'cat -> tree' and 'dog -> house', trained once."""
    folder = tmp_path_factory.mktemp("two")
    requests = [
        Request(line, "", folder, line[:3], folder / "checkpoints", SMALL(), preview_every=0)
        for line in ("cat -> tree", "dog -> house")
    ]
    return [trained(tiny_model(), CLIP, request, lambda *_, **__: None).path for request in requests]


@pytest.fixture
def ready(folder, two):
    """models/unhype with these files."""
    for path in two:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def trainings(monkeypatch):
    """The concepts of the runs that really train."""
    parts, noted = sys.modules["unhype.training.parts"], []
    train = parts.train_erasure

    def noting(model, clip, request, report, split):
        noted.append(request.concepts)
        return train(model, clip, request, report, split)

    monkeypatch.setattr(parts, "train_erasure", noting)
    return noted


def texts(*words):
    return [CLIP.encode_from_tokens_scheduled(CLIP.tokenize(word)) for word in words]


def drawn(model, text):
    positive, negative = texts(text, "")
    return sample(model, positive, negative, pictures=1, steps=2)


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_each_line_is_trained_once_and_a_changed_list_trains_what_is_new(erase, folder, trainings):
    model = tiny_model()
    first = erase(model, "cat -> tree\ndog -> tree")
    assert trainings == ["cat -> tree", "dog -> tree"]
    assert names(folder) == ["cat.safetensors", "dog.safetensors"]
    again = erase(model, "# my list\ncat -> tree\ndog -> tree")
    assert len(trainings) == 2
    assert torch.equal(drawn(again, "a photo of a cat"), drawn(first, "a photo of a cat"))
    erase(model, "horse -> tree\ncat -> tree")
    erase(model, "cat -> house")
    assert trainings[2:] == ["horse -> tree", "cat -> house"]
    assert names(folder)[:2] == ["cat.safetensors", "cat_2.safetensors"]


def test_the_eraser_is_the_one_that_train_erasure_writes_whatever_its_name_is(
    nodes, erase, folder, trainings, monkeypatch
):
    monkeypatch.setattr(sys.modules["unhype.nodes.train"], "Settings", SMALL)
    model = tiny_model()
    nodes["UnHypeTrainErasure"].execute(
        model, concepts="cat -> tree", preserve="", name="mine", kind="object", clip=CLIP, preview_every=0
    )
    erase(model, "cat -> tree")
    assert trainings == []
    assert names(folder) == ["mine.safetensors"]


def test_the_defaults_of_train_erasure_are_those_of_erase_concept(nodes):
    inputs = {entry.id: entry for entry in nodes["UnHypeTrainErasure"].define_schema().inputs}
    defaults = Settings()
    widgets = {name for name in vars(defaults) if name in inputs}
    assert widgets > {"steps", "seed", "kind", "objective", "rank"}
    assert {name: inputs[name].default for name in widgets} == {name: getattr(defaults, name) for name in widgets}


def test_two_in_a_chain_draw_what_one_with_both_lines_draws(erase, ready, trainings):
    model = tiny_model()
    one = erase(model, "cat -> tree\ndog -> house")
    chain = erase(erase(model, "cat -> tree"), "dog -> house")
    for text in ("a photo of a cat", "a photo of a dog", "a cat and a dog", "a boat"):
        assert torch.equal(drawn(chain, text), drawn(one, text)), text
        base = drawn(model, text)
        assert torch.equal(drawn(one, text), base) == (text == "a boat"), text
    assert trainings == []
    repeated = erase(one, "cat -> tree")
    assert torch.equal(drawn(repeated, "a photo of a cat"), drawn(one, "a photo of a cat"))


def test_each_in_a_chain_has_its_own_strength(erase, ready):
    model = tiny_model()
    chain = erase(erase(model, "cat -> tree", 0.5), "dog -> house", 1.0)
    for strength, text in ((0.5, "a photo of a cat"), (1.0, "a photo of a dog")):
        alone = erase(model, "cat -> tree" if "cat" in text else "dog -> house", strength)
        assert torch.equal(drawn(chain, text), drawn(alone, text))


def test_an_apply_behind_it_adds_up_as_ever(erase, ready):
    model = tiny_model()
    cat = erase(model, "cat -> tree")
    eraser = load(ready / "cat.safetensors")
    doubled = apply_erasure(cat, eraser)
    assert not torch.equal(drawn(doubled, "a photo of a cat"), drawn(cat, "a photo of a cat"))


def test_at_strength_0_nothing_is_trained_and_the_model_is_the_same(erase, folder, trainings):
    model = tiny_model()
    assert erase(model, "cat -> tree", 0.0) is model
    assert trainings == []


def test_errors_name_the_node(nodes, erase, folder, monkeypatch):
    model = tiny_model()
    assert "'cat' is listed twice" in nodes["UnHypeEraseConcept"].validate_inputs("cat\ncat")
    with pytest.raises(PromptError, match="Erase Concept: The concept 'cat' is listed twice"):
        erase(model, "cat\ncat")
    with pytest.raises(ValueError, match="Erase Concept, 'clip': connect the output"):
        erase(model, "cat", clip=None)
    monkeypatch.setattr(sys.modules["unhype.training.run"], "train", out_of_memory)
    with pytest.raises(
        RuntimeError, match=r"Erase Concept: the GPU ran out .* train with Train Erasure, and use Apply"
    ):
        erase(model, "cat -> tree")


# Merge Erasers


@pytest.fixture
def merge(nodes):
    """Merge Erasers; returns the eraser and the words."""

    def merged(*erasers, name="merged"):
        first, second, *rest = erasers
        more = {f"unhype_{number}": eraser for number, eraser in enumerate(rest, start=3)}
        output = nodes["UnHypeMergeErasers"].execute(unhype_1=first, unhype_2=second, name=name, **more)
        return output[0], output[1]

    return merged


@pytest.fixture
def parts(ready):
    """The model and two erasers of one concept each."""
    return tiny_model(), load(ready / "cat.safetensors"), load(ready / "dog.safetensors")


def test_pictures_through_a_merged_file_are_those_through_its_parts(parts, merge, folder):
    model, cat, dog = parts
    eraser, words = merge(cat, dog)
    assert words == "cat -> tree\ndog -> house"
    assert names(folder) == ["cat.safetensors", "dog.safetensors", "merged.safetensors"]
    merged = apply_erasure(model, load(folder / "merged.safetensors"))
    assert isinstance(eraser, MergedEraser)
    for own, text in ((cat, "a photo of a cat"), (dog, "a photo of a dog"), (cat, "cat"), (dog, "a dog in the snow")):
        through_part = drawn(apply_erasure(model, own), text)
        assert torch.equal(drawn(merged, text), through_part), text
        assert not torch.equal(through_part, drawn(model, text)), text
    assert torch.equal(drawn(merged, "a boat"), drawn(model, "a boat"))


def test_merging_twice_writes_one_file_and_a_merged_one_merges_again(parts, merge, folder):
    _, cat, dog = parts
    first, _ = merge(cat, dog)
    second, _ = merge(cat, dog)
    assert [first.name, second.name] == ["merged", "merged"]
    again, words = merge(first, dog, cat)
    assert again.name == "merged", "the parts are the same"
    other, words = merge(dog, first)
    assert (other.name, words) == ("merged_2", "dog -> house\ncat -> tree")
    (folder / "merged_3.safetensors").write_bytes(b"somebody else's")
    assert len(names(folder)) == 5


def test_erasers_of_different_models_are_refused_by_name(parts, merge, folder, tmp_path):
    _, cat, _ = parts
    request = request_in(tmp_path, name="other", settings=SMALL())
    other = trained(tiny_model("sdxl"), TinyClip(), request, lambda *_, **__: None).eraser
    with pytest.raises(ValueError, match="Merge Erasers: 'cat' and 'other' can't be merged"):
        merge(cat, other)


def test_a_merged_eraser_cant_be_trained_further(parts, merge, tmp_path):
    model, cat, dog = parts
    eraser, _ = merge(cat, dog)
    with pytest.raises(RuntimeError, match=r"'merged' is merged of several.*Merge Erasers"):
        trained(model, CLIP, request_in(tmp_path, start_from=eraser), lambda *_, **__: None)


def test_inspect_shows_the_part_with_the_highest_score(nodes, parts, merge):
    _, cat, dog = parts
    eraser, _ = merge(cat, dog)
    for concept in ("cat", "dog"):
        (conditioning,) = texts(f"a photo of a {concept}")
        words = nodes["UnHypeInspectPrompt"].execute(eraser, conditioning)[0]
        assert words.startswith("Erased: 1 of 1 parts.")
        assert f"nearest to '{concept}'" in words

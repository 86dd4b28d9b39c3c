"""Hypernet files: saved ones come back bit for bit, and everything else is refused in plain words."""

import json
import math
import os
import random
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_parts import CONCEPTS as PAIRS
from core_parts import LAYERS, POOLED, full_eraser, normal, random_detector, same_tensors, small_eraser
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from unhype.hypernet import files
from unhype.hypernet.files import check_fits, load, save, tensors_of, written_aside
from unhype.hypernet.lora import to_lora
from unhype.hypernet.record import HypernetFileError, Record, TrainingRun
from unhype.hypernet.targets import UnsupportedModelError, family_by_key
from unhype.training.prompts import parse_concepts

CONCEPTS = (("cat", "tree"), ("Caf\u00e9 \u732b", ""))


@pytest.fixture
def eraser():
    made = small_eraser(concepts=CONCEPTS)
    training = TrainingRun(steps=3, losses=[1.5, 0.5])
    return replace(made, record=replace(made.record, training=training), name="mine")


@pytest.fixture
def path(eraser, tmp_path):
    save(eraser, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def metadata_of(path):
    with safe_open(str(path), framework="pt") as file:
        return file.metadata()


def rewrite(path, config=None, record=None, metadata=None, tensors=None):
    """Change parts of a hypernet file; each argument is a function that edits its part in place."""
    words, weights = metadata_of(path), load_file(path)
    for key, edit in (("unhype.config", config), ("unhype.record", record)):
        if edit is not None:
            values = json.loads(words[key])
            edit(values)
            words[key] = json.dumps(values)
    for part, edit in ((words, metadata), (weights, tensors)):
        if edit is not None:
            edit(part)
    save_file(weights, str(path), metadata=words)


def refusal(path):
    with pytest.raises(HypernetFileError) as error:
        load(path)
    return str(error.value)


# Round trip


@pytest.mark.parametrize("make", [small_eraser, full_eraser])
def test_a_saved_eraser_comes_back_bit_for_bit(make, tmp_path):
    before = make()
    save(before, tmp_path / "small.safetensors")
    after = load(tmp_path / "small.safetensors")
    assert (after.record, after.name) == (before.record, before.name)
    assert after.hypernet.config == before.hypernet.config
    assert same_tensors(tensors_of(after), tensors_of(before))
    c = normal(5, POOLED, seed=8)
    assert torch.equal(after.score(c), before.score(c))
    for one, other in zip(before.factors(c, 0.7), after.factors(c, 0.7), strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)


def test_weights_are_stored_in_half_precision(tmp_path):
    before = small_eraser()
    with torch.no_grad():
        before.hypernet.trunk.weight.add_(1e-5)
    save(before, tmp_path / "eraser.safetensors")
    assert {weight.dtype for weight in load_file(tmp_path / "eraser.safetensors").values()} == {torch.float16}
    own, after = (one.hypernet.trunk.weight for one in (before, load(tmp_path / "eraser.safetensors")))
    assert torch.equal(after, own.half().float())
    assert not torch.equal(after, own)


def test_a_loaded_hypernet_is_ready_for_use(path):
    loaded = load(path)
    assert loaded.name == "mine"
    assert not loaded.hypernet.training
    for tensor in (*loaded.hypernet.parameters(), *loaded.hypernet.buffers()):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad


def test_the_summary_lists_the_concepts_as_train_erasure_takes_them(path):
    assert load(path).record.summary() == "cat -> tree\nCaf\u00e9 \u732b -> "


@pytest.mark.parametrize("concept", ["Tyler, the Creator", "cat,dog", "\u732b\u3001\u72ac", "1,000 cats"])
def test_train_erasure_takes_the_summary_of_any_concept(concept):
    record = Record("sd15", ((concept, "a tree, a house"), ("cat", "")))
    assert parse_concepts(record.summary()) == record.concepts


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("former", [None, 0o600])
def test_a_file_has_the_rights_of_any_new_file(eraser, tmp_path, mask, former):
    path = tmp_path / "eraser.safetensors"
    if former is not None:
        path.touch(former)
    before = os.umask(mask)
    try:
        save(eraser, path)
        (tmp_path / "any").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("sd15", "stable-diffusion-v1-5"), ("sd20", "stable-diffusion-v2-1"), ("sdxl", "stable-diffusion-xl-v1-base")],
)
def test_the_model_library_finds_its_keys(family, architecture, tmp_path):
    made = small_eraser(concepts=CONCEPTS)
    save(replace(made, record=replace(made.record, family=family)), tmp_path / "eraser.safetensors")
    found = metadata_of(tmp_path / "eraser.safetensors")
    assert found["modelspec.architecture"] == f"{architecture}/unhype"
    assert found["modelspec.title"] == "UnHype: cat, Caf\u00e9 \u732b"
    assert "Erases: cat -> tree" in found["modelspec.description"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["modelspec.date"])
    assert found["modelspec.sai_model_spec"]
    assert found["format"] == "pt"


def test_our_own_keys_are_readable_json(path):
    found = metadata_of(path)
    assert found["unhype.format"] == "6"
    assert json.loads(found["unhype.config"])["embedding_width"] == POOLED
    assert json.loads(found["unhype.record"])["training"]["losses"] == [1.5, 0.5]


def test_the_workflow_rides_along(eraser, tmp_path):
    save(eraser, tmp_path / "with.safetensors", {"workflow": "{}", "prompt": '{"1": {}}'})
    found = metadata_of(tmp_path / "with.safetensors")
    assert (found["workflow"], found["prompt"]) == ("{}", '{"1": {}}')
    assert load(tmp_path / "with.safetensors").record == eraser.record


def test_many_concepts_make_no_endless_title(tmp_path):
    concepts = tuple((f"a rather long name of concept {number}", "tree") for number in range(500))
    save(small_eraser(concepts=concepts), tmp_path / "many.safetensors")
    assert len(metadata_of(tmp_path / "many.safetensors")["modelspec.title"]) <= 200
    assert load(tmp_path / "many.safetensors").record.concepts == concepts


# Files that are no hypernet


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_to_its_header(path):
    path.write_bytes(path.read_bytes()[:500])


def empty(path):
    path.write_bytes(b"")


def fill_with_text(path):
    path.write_text("<html>404 Not Found</html>" * 40)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"more")


def claim_a_huge_header(path):
    path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:])


def make_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [cut, cut_to_its_header, empty, fill_with_text, lengthen, claim_a_huge_header, make_a_folder]
)
def test_a_damaged_file_is_refused(path, damage):
    damage(path)
    message = refusal(path)
    assert "'mine.safetensors' is damaged, cut short or no safetensors file" in message
    assert message.endswith("Download or train it again.")


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "gone.safetensors") == f"There is no file '{tmp_path / 'gone.safetensors'}'."


def test_a_lora_is_no_hypernet(eraser, tmp_path):
    save_file(to_lora(eraser, normal(POOLED), "a cat"), tmp_path / "lora.safetensors", {"ss_tag": "x"})
    message = refusal(tmp_path / "lora.safetensors")
    assert "'lora.safetensors' is a safetensors file but no UnHype hypernet (a LoRA or a checkpoint perhaps)" in message
    assert message.endswith("Pick a file that Train Erasure wrote.")


def test_a_file_without_metadata_is_refused_alike(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "bare.safetensors")
    assert "but no UnHype hypernet" in refusal(tmp_path / "bare.safetensors")


def test_a_newer_format_asks_for_an_update(path):
    rewrite(path, metadata=lambda words: words.update({"unhype.format": "9"}))
    message = refusal(path)
    assert "has UnHype format 9, this version reads 2 to 6" in message
    assert message.endswith("Update the UnHype node pack, or train the file again if it is an old one.")


def test_a_family_of_a_newer_version_is_named(path):
    rewrite(path, record=lambda record: record.update(family="sd99"))
    with pytest.raises(UnsupportedModelError, match="Model family 'sd99' is not one that this version"):
        load(path)


# Files that lie


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (10**9, "rank is 1000000000"),
        (257, "rank is 257"),
        (0, "rank is 0"),
        (-3, "rank is -3"),
        (2.0, "rank is 2.0"),
        ("2", "rank is '2'"),
        (None, "rank is None"),
        (True, "rank is True"),
    ],
)
def test_an_impossible_rank_is_refused_before_anything_is_built(path, value, shown):
    rewrite(path, config=lambda config: config.update(rank=value))
    assert f"The description inside 'mine.safetensors' is damaged ({shown})" in refusal(path)


@pytest.mark.parametrize("name", ["basis", "hidden", "trajectory", "octaves", "embedding_width"])
@pytest.mark.parametrize("value", [0, -1, 10**12, "x"], ids=str)
def test_every_size_has_its_limits(path, name, value):
    rewrite(path, config=lambda config: config.update({name: value}))
    assert f"is damaged ({name} is {value!r})" in refusal(path)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda config: config.update(layers=[]), "0 layers"),
        (lambda config: config.update(layers=config["layers"] * 1400), "4200 layers"),
        (lambda config: config["layers"][0].update(inputs=-1), "inputs"),
        (lambda config: config["layers"][0].update(outputs=10**9), "outputs"),
        (lambda config: config["layers"][0].pop("name"), "'name'"),
        (lambda config: config.pop("layers"), "'layers'"),
        (lambda config: config.pop("embedding_width"), "embedding_width"),
        (lambda config: config.update(surprise=1), "surprise"),
        (lambda config: config.update(alpha=1.0), "alpha"),
        (lambda config: config.update(bounded="no"), "bounded is 'no'"),
        (lambda config: config["layers"][0].update(name=["a"]), "name"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(path, change, shown):
    rewrite(path, config=change)
    message = refusal(path)
    assert message.startswith("The description inside 'mine.safetensors' is damaged (")
    assert shown in message


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda record: record.pop("family"), "'family'"),
        (lambda record: record.pop("concepts"), "'concepts'"),
        (lambda record: record.update(concepts=[["cat"]]), "unpack"),
        (lambda record: record.update(concepts=7), "iterable"),
        (lambda record: record.update(base="SD"), "must be a dict"),
        (lambda record: record.update(training=None), "must be a dict"),
        (lambda record: record.update(text_encoder=[1]), "must be a dict"),
        (lambda record: record.update(embedding="mean"), "embedding is 'mean'"),
        (lambda record: record["base"].update(weight_std=[0.1, "x"]), "not numbers"),
        (lambda record: record["base"].update(weight_std=[math.inf]), "not numbers"),
        (lambda record: record["training"].update(losses="many"), "losses is 'many'"),
        (lambda record: record["training"].update(steps=1.5), "steps is 1.5"),
        (lambda record: record.update(text_encoder={"chunk": 0, "widths": [8], "layers": 1, "rank": 1}), "0 tokens"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [-1], "layers": 1, "rank": 1}), "[-1]"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": "32", "layers": 1, "rank": 1}), "'32'"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [32], "layers": 0, "rank": 1}), "0 layers"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [32], "layers": 1e9, "rank": 1}), "layers"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [32], "layers": 1, "rank": 0}), "rank 0"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(path, change, shown):
    rewrite(path, record=change)
    message = refusal(path)
    assert message.startswith("The description inside 'mine.safetensors' is damaged (")
    assert shown in message


@pytest.mark.parametrize("key", ["unhype.config", "unhype.record"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "[" * 100_000], ids=lambda text: text[:8])
def test_a_description_that_is_no_description_is_refused(path, key, text):
    rewrite(path, metadata=lambda words: words.update({key: text}))
    assert refusal(path).startswith("The description inside 'mine.safetensors' is damaged (")


def test_a_missing_record_is_refused(path):
    rewrite(path, metadata=lambda words: words.pop("unhype.record"))
    assert "is damaged ('unhype.record')" in refusal(path)


def test_a_missing_tensor_is_named(path):
    rewrite(path, tensors=lambda weights: weights.pop("trunk.bias"))
    message = refusal(path)
    assert "do not match its description: 1 tensors are missing or unknown, 'trunk.bias' among them" in message


def test_an_unknown_tensor_is_named(path):
    rewrite(path, tensors=lambda weights: weights.update(extra=torch.zeros(1)))
    assert "'extra' among them" in refusal(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32], ids=str)
def test_a_tensor_of_another_type_is_named(path, dtype):
    rewrite(path, tensors=lambda weights: weights.update({"trunk.bias": weights["trunk.bias"].to(dtype)}))
    expected = r"Tensor 'trunk\.bias' in 'mine\.safetensors' is \w+ \(16,\), expected F16 \(16,\)"
    assert re.search(expected, refusal(path))


def test_a_tensor_of_another_shape_is_named(path):
    rewrite(path, tensors=lambda weights: weights.update({"trunk.bias": torch.zeros(15).half()}))
    assert "Tensor 'trunk.bias' in 'mine.safetensors' is F16 (15,), expected F16 (16,)" in refusal(path)


def test_another_rank_than_the_weights_have_is_refused(path):
    rewrite(path, config=lambda config: config.update(rank=3))
    assert "Download or train it again." in refusal(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(path, value):
    def spoil(weights):
        weights["left.weight"][3, 1] = value

    rewrite(path, tensors=spoil)
    assert "Tensor 'left.weight' in 'mine.safetensors' holds values that are not numbers" in refusal(path)


# What lies beside the network


@pytest.mark.parametrize("gone", ["detector.bias", "detector.weight", "regressor.key", "concept_embeddings"])
def test_half_of_what_lies_beside_the_network_is_refused(tmp_path, gone):
    path = tmp_path / "mine.safetensors"
    save(full_eraser(), path)
    rewrite(path, tensors=lambda weights: weights.pop(gone))
    assert "do not match its description: 1 tensors are missing or unknown" in refusal(path)


def test_a_detector_for_another_number_of_concepts_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    save(small_eraser(detector=random_detector()), path)
    rewrite(path, record=lambda record: record["concepts"].append(["dog", ""]))
    assert "'detector." in refusal(path)
    assert len(PAIRS) == 2


STRANGE = [None, True, -1, 0, 1.5, 10**400, math.nan, math.inf, "", "x", [], [None], {}, {"a": 1}, [[1, 2]]]


def attempt(path):
    """Load a file and hold it against a model's layers; returns the message of a refusal, if any."""
    try:
        check_fits(load(path), family_by_key("sd15"), LAYERS)
    except (HypernetFileError, UnsupportedModelError) as error:
        return str(error)
    return None


def places(value, at=()):
    """Every place in a JSON value: the paths of keys and indices that lead to it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        if not at or at[-1] != "layers" or key < 2:
            yield from places(value[key], (*at, key))


@pytest.mark.parametrize("part", ["config", "record"])
def test_strange_values_anywhere_in_the_description_raise_nothing_else(tmp_path, part):
    path = tmp_path / "mine.safetensors"
    save(full_eraser(), path)
    words, weights = metadata_of(path), load_file(path)
    original = json.loads(words[f"unhype.{part}"])
    outcomes = []
    dice = random.Random(0)
    for place in list(places(original)):
        for strange in dice.sample(STRANGE, 3):
            values = json.loads(words[f"unhype.{part}"])
            holder = values
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = strange
            save_file(weights, str(path), metadata={**words, f"unhype.{part}": json.dumps(values)})
            outcomes.append(attempt(path))
    assert len(outcomes) >= 60
    assert sum(outcome is not None for outcome in outcomes) > len(outcomes) / 4


# Writing


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "kept.safetensors"
    path.write_bytes(b"the file from before")
    return path


def partly_written(error):
    def write(tensors, name, metadata):
        Path(name).write_bytes(b"half of it")
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("Error while serializing: I/O error: os error 28")],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_leaves_the_old_file_and_no_litter(eraser, old_file, monkeypatch, error):
    monkeypatch.setattr(files, "save_file", partly_written(error))
    with pytest.raises(OSError, match=r"No space left|Could not write .*kept\.safetensors: .*os error 28"):
        save(eraser, old_file)
    assert old_file.read_bytes() == b"the file from before"
    assert list(old_file.parent.iterdir()) == [old_file]


def test_a_file_that_cannot_be_replaced_stays(eraser, old_file, monkeypatch):
    """As on Windows while another program has it open."""

    def refuse(self, target):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Access is denied"):
        save(eraser, old_file)
    assert old_file.read_bytes() == b"the file from before"
    assert list(old_file.parent.iterdir()) == [old_file]


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_litter(eraser, old_file, monkeypatch):
    monkeypatch.setattr(files, "save_file", partly_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save(eraser, old_file)
    assert list(old_file.parent.iterdir()) == [old_file]


def test_a_folder_in_the_way_is_an_os_error(eraser, tmp_path):
    (tmp_path / "folder.safetensors" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        save(eraser, tmp_path / "folder.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.safetensors"]


def test_saving_replaces_and_makes_its_folder(eraser, tmp_path):
    path = tmp_path / "new" / "folder" / "eraser.safetensors"
    save(eraser, path)
    save(eraser, path)
    assert load(path).record == eraser.record
    assert list(path.parent.iterdir()) == [path]


def test_a_part_is_moved_into_place_when_it_is_whole(tmp_path):
    with written_aside(tmp_path / "t") as part:
        part.write_bytes(b"whole")
        assert not (tmp_path / "t").exists()
    assert (tmp_path / "t").read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [tmp_path / "t"]


def test_tensors_of_any_layout_are_saved(tmp_path):
    eraser = small_eraser()
    moved = replace(eraser, detector=random_detector(), concept_embeddings=normal(POOLED, 2).T)
    save(moved, tmp_path / "t.safetensors")
    assert torch.equal(load_file(tmp_path / "t.safetensors")["concept_embeddings"], normal(POOLED, 2).T.half())

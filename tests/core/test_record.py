"""The record of a file: every key of it, files of format 2, and the fingerprint of the base model."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from core_parts import full_eraser, random_detector, same_tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unhype.hypernet.base_model import same_base
from unhype.hypernet.files import load, save, tensors_of
from unhype.hypernet.record import BaseModel, HypernetFileError, Record, TextEncoder, TrainingRun
from unhype.training.settings import Settings

# Trained by the version before format 3, on the tests' tiny model: cat -> tree, dog -> a red car, tiger preserved.
FORMAT_2 = Path(__file__).parents[1] / "data" / "format2.safetensors"


def described(path):
    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["unhype.record"])


def test_a_file_has_the_keys_of_the_dataclasses_and_no_others(tmp_path):
    save(full_eraser(), tmp_path / "full.safetensors")
    values = described(tmp_path / "full.safetensors")
    for kind, part in ((Record, values), (BaseModel, values["base"]), (TrainingRun, values["training"])):
        assert set(part) == {field.name for field in fields(kind)}
    assert set(values["text_encoder"]) == {field.name for field in fields(TextEncoder)}


def test_keys_of_a_later_version_are_left_out(tmp_path):
    eraser = full_eraser()
    settings = asdict(Settings()) | {"a later setting": 1}
    later = replace(eraser, record=replace(eraser.record, training=TrainingRun(settings=settings)))
    save(later, tmp_path / "later.safetensors")
    assert load(tmp_path / "later.safetensors").record.training.settings == settings


def test_a_file_of_format_2_gives_a_record_in_the_names_of_today():
    record, former = load(FORMAT_2).record, described(FORMAT_2)
    assert record.concepts == (("cat", "tree"), ("dog", "a red car"))
    assert record.base == BaseModel("BaseModel", former["base"]["weight_spread"], "")
    assert record.text_encoder.chunk == former["reading"]["tokens"] == 20
    training = former["training"]
    assert record.training == TrainingRun(
        recipe=training["recipe"],
        settings=training["settings"],
        steps=12,
        stopped="finished",
        seconds=training["seconds"],
        losses=training["losses"],
        retention_error=training["drift"],
        retention_curve=training["drift_curve"],
        erased_norms=training["erased_norms"],
        retain_prompts=training["retain_prompts"],
        regressor_r2=training["reader_explains"],
        preserve=["tiger"],
        preserve_detected=training["preserve_heard"],
        held_out_unchanged=training["held_out_silent"],
    )


def test_a_file_of_format_2_keeps_every_number():
    stored, eraser = load_file(FORMAT_2), load(FORMAT_2)
    names = {"switch.weight": "detector.weight", "switch.bias": "detector.bias", "concepts.c": "concept_embeddings"}
    former = {names.get(name, name.replace("reader.", "regressor.")): tensor.float() for name, tensor in stored.items()}
    found = tensors_of(eraser)
    assert set(found) == set(former)
    assert all(torch.equal(found[name], former[name]) for name in found)


def test_a_file_of_format_2_saved_anew_is_the_same_eraser(tmp_path):
    former = load(FORMAT_2)
    save(former, tmp_path / "format2.safetensors")
    again = load(tmp_path / "format2.safetensors")
    assert again.record == former.record
    assert same_tensors(tensors_of(again), tensors_of(former))


def in_format_2(path):
    """Rewrite a file of today in the names of format 2."""
    with safe_open(str(path), framework="pt") as file:
        words = file.metadata()
    record = json.loads(words["unhype.record"])
    base, training, encoder = record["base"], record["training"], record.pop("text_encoder")
    base["weight_spread"] = base.pop("weight_std")
    for today, former in FORMER.items():
        training[former] = training.pop(today)
    record |= {"dead_zone": 1.0, "reading": {**encoder, "tokens": encoder["chunk"]}}
    del record["reading"]["chunk"]
    tensors = load_file(path)
    for name in list(tensors):
        former = name.replace("detector.", "switch.").replace("regressor.", "reader.")
        tensors[former.replace("concept_embeddings", "concepts.c")] = tensors.pop(name)
    words |= {"unhype.format": "2", "unhype.record": json.dumps(record)}
    save_file(tensors, str(path), words)


FORMER = {
    "retention_error": "drift",
    "retention_curve": "drift_curve",
    "held_out_unchanged": "held_out_silent",
    "preserve_detected": "preserve_heard",
    "regressor_r2": "reader_explains",
}
RUN = TrainingRun(
    recipe="a1",
    settings=asdict(Settings()),
    steps=7,
    stopped="early",
    seconds=1.5,
    losses=[0.5, 0.25],
    retention_error=0.125,
    retention_curve=[[5, 0.25], [7, 0.125]],
    erased_norms=[1.0, 2.0, 3.0],
    retain_prompts=[8, 3],
    regressor_r2=0.75,
    preserve=["tiger", "lion"],
    preserve_detected=["lion"],
    held_out_unchanged=0.99,
)


def test_every_part_of_a_file_of_format_2_is_found(tmp_path):
    """The regressor too, which the small file above has none of."""
    eraser = full_eraser()
    encoder = replace(eraser.record.text_encoder, token_widths=[], token_spans=[], neighbours=0)
    record = replace(eraser.record, training=RUN, text_encoder=encoder)
    eraser = replace(eraser, record=record, token_detector=None, detector=random_detector())
    path = tmp_path / "full.safetensors"
    save(eraser, path)
    in_format_2(path)
    loaded = load(path)
    assert loaded.record == eraser.record
    assert same_tensors(tensors_of(loaded), tensors_of(eraser))


def test_names_of_format_2_in_a_file_of_format_3_are_refused(tmp_path):
    path = tmp_path / "full.safetensors"
    save(full_eraser(), path)
    tensors = load_file(path)
    tensors["switch.weight"] = tensors.pop("detector.weight")
    with safe_open(str(path), framework="pt") as file:
        words = file.metadata()
    save_file(tensors, str(path), words)
    with pytest.raises(HypernetFileError, match="do not match its description"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"chunk": -1}, "makes -1 tokens"),
        ({"chunk": 10**6}, "makes 1000000 tokens"),
        ({"chunk": 0}, "makes 0 tokens"),
        ({"chunk": 8.0}, "chunk is 8.0"),
        ({"widths": [0]}, r"widths of the text encoder are \[0\]"),
        ({"widths": ["32"]}, "widths of the text encoder are"),
        ({"widths": 32}, "widths is 32"),
        ({"token_spans": [1, 1, 1]}, "spans of the concepts' tokens"),
        ({"token_spans": [0, 1]}, "spans of the concepts' tokens"),
        ({"token_spans": [1, 9999]}, "spans of the concepts' tokens"),
        ({"token_spans": ["1", 1]}, "spans of the concepts' tokens"),
        ({"layers": 0}, "knows 0 layers"),
        ({"layers": 10**6}, "knows 1000000 layers"),
        ({"rank": 0}, "rank 0"),
        ({"rank": 10**6}, "rank 1000000"),
    ],
    ids=str,
)
def test_a_text_encoder_that_makes_no_sense_is_refused(tmp_path, changes, shown):
    eraser = full_eraser()
    encoder = replace(eraser.record.text_encoder, **changes)
    path = tmp_path / "full.safetensors"
    save(replace(eraser, record=replace(eraser.record, text_encoder=encoder)), path)
    with pytest.raises(HypernetFileError, match=rf"description inside 'full\.safetensors' is damaged .*{shown}"):
        load(path)


# The base model


@pytest.mark.parametrize(
    ("recorded", "found", "expected"),
    [
        ([0.5, 0.25], [0.5, 0.25], True),
        ([0.5, 0.25], [0.501, 0.2501], True),  # another dtype
        ([0.5, 0.25], [0.5, 0.26], False),
        ([0.5, 0.25], [], True),  # weights that can't be read
        ([], [0.5, 0.25], True),
        ([0.0], [1e-3], False),
    ],
)
def test_the_base_is_told_by_the_deviation_of_its_weights_as_far_as_known(recorded, found, expected):
    assert same_base(BaseModel("BaseModel", recorded), found) is expected

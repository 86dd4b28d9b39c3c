"""The description of a file: every key of it, and files of format 2."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from core_parts import full_eraser, same_tensors
from safetensors import safe_open
from safetensors.torch import load_file

from unhype.hypernet.files import load, save, tensors_of
from unhype.hypernet.record import BaseModel, Record, TextEncoder, TrainingRun
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

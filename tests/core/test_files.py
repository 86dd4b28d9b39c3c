"""Hypernet files come back bit for bit and can be read by others."""

import json
import os
import re
import stat
from dataclasses import replace

import pytest
import torch
from core_parts import POOLED, full_eraser, normal, same_tensors, small_eraser
from eraser_files import CONCEPTS, metadata_of
from safetensors.torch import load_file

from unhype.hypernet.files import load, save, tensors_of
from unhype.hypernet.record import Record
from unhype.training.prompts import parse_concepts


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
    assert found["unhype.format"] == "7"
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

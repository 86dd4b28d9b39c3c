"""A file is written aside and moved into place: nothing is lost to a full disk or an interrupt."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_parts import POOLED, normal, random_detector, small_eraser
from safetensors import SafetensorError
from safetensors.torch import load_file

from unhype.hypernet import files
from unhype.hypernet.files import load, save, written_aside


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

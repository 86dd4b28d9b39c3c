"""A small eraser and the file of it."""

from dataclasses import replace

import pytest


@pytest.fixture
def eraser():
    """An eraser of `eraser_files.CONCEPTS` with a record of its training."""
    from core_parts import small_eraser
    from eraser_files import CONCEPTS

    from unhype.hypernet.record import TrainingRun

    made = small_eraser(concepts=CONCEPTS)
    training = TrainingRun(steps=3, losses=[1.5, 0.5])
    return replace(made, record=replace(made.record, training=training), name="mine")


@pytest.fixture
def path(eraser, tmp_path):
    """Its file."""
    from unhype.hypernet.files import save

    save(eraser, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"

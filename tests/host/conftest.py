"""Fixtures of the host tier."""

import pytest
import torch


@pytest.fixture(scope="session")
def texts():
    """An eraser of two concepts and texts for it, see `chunks.Texts`; it fits the tiny SD 1.x model."""
    from chunks import texts_for
    from tiny import tiny_model

    with torch.inference_mode():
        return texts_for(tiny_model())

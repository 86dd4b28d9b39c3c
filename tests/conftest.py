"""The pack is loaded once, as ComfyUI loads it, before any test module is: tests import it as `unhype`."""

import pytest

from benchmarks.pack import load_pack
from benchmarks.server import ComfyServer

load_pack()


@pytest.fixture(scope="session")
def pack():
    """The pack's root module."""
    return load_pack()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with the pack; its folders lie under `server.base`."""
    with ComfyServer(tmp_path_factory.mktemp("comfyui")) as running:
        yield running

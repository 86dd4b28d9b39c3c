"""The pack in this process is the one and only copy of its modules."""

import sys
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.pack import load_pack


def test_the_pack_is_loaded_once(pack):
    assert load_pack() is pack is sys.modules["unhype"]
    import unhype.hypernet

    assert unhype.hypernet is sys.modules["unhype.hypernet"]
    assert "hypernet" not in sys.modules
    assert "training" not in sys.modules


def test_comfyui_keeps_its_own_module_of_the_same_name():
    import nodes

    assert ROOT not in Path(nodes.__file__).parents
    assert hasattr(nodes, "NODE_CLASS_MAPPINGS")


def test_the_server_has_the_nodes(server):
    known = server.object_info()
    own = ("LoadHypernet", "ApplyErasure", "TrainErasure", "HypernetToLora", "ImportWeights")
    for name in (f"UnHype{node}" for node in own):
        assert known[name]["python_module"] == "custom_nodes.unhype"

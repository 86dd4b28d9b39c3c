"""The nodes' functions called by scripts, files that were deleted between two runs, and the types of errors."""

import asyncio
import sys
from functools import partial

import execution
import pytest
import torch
from published_parts import their_file, their_layers
from tiny import TinyClip, seeded, tiny_eraser, tiny_model

from unhype.hypernet.errors import UserError
from unhype.nodes.folders import training_folder, written_note
from unhype.policy.guard import _Seen
from unhype.training.row_memory import _UnknownYetError
from unhype.training.settings import Settings
from unhype.training.token_rows import UnknownRowError


@pytest.fixture(scope="module")
def nodes(pack):
    """Node id to class, as ComfyUI gets them."""
    extension = asyncio.run(pack.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


def executable(nodes, name):
    """A node as ComfyUI runs it where no interface is open."""
    return nodes[name].PREPARE_CLASS_CLONE({"hidden_inputs": {}})


@pytest.fixture
def folder():
    """models/unhype of this process."""
    training_folder().mkdir(parents=True, exist_ok=True)
    yield training_folder()
    for path in sorted(training_folder().glob("*")):
        path.unlink()
    training_folder().rmdir()


# Without a server


@pytest.fixture
def small(nodes, monkeypatch):
    """Inputs of Train Erasure for a run of moments."""
    monkeypatch.setattr(
        sys.modules["unhype.nodes.train"], "Settings", partial(Settings, sampler_steps=2, rank=1, steps=2)
    )
    return {"concepts": "cat -> tree", "preserve": "", "kind": "object", "preview_every": 0, "width": 64, "height": 64}


def test_a_script_may_call_train_erasure(nodes, small, folder):
    """Scripts call the class as it is, which no server has given its hidden inputs, and as exports of graphs do."""
    node = nodes["UnHypeTrainErasure"]
    assert node.hidden is None
    with torch.inference_mode():
        output = node.execute(model=tiny_model(), clip=TinyClip(), name="scripted", **small)
        again = node.EXECUTE_NORMALIZED(model=tiny_model(), clip=TinyClip(), name="scripted", **small)
    assert (folder / "scripted.safetensors").is_file()
    assert output.args[0].record == again.args[0].record


def test_a_script_may_call_import_weights_and_erasure_report(nodes, folder):
    state, config = their_file("sd", 1, their_layers("sd"), seeded(1))
    torch.save({"state_dict": state, "config": config}, folder / "theirs.pth")
    assert nodes["UnHypeImportWeights"].execute("theirs.pth", "airplane -> sky").args[0].name == "theirs"
    model = tiny_model()
    report = partial(nodes["UnHypeErasureReport"].execute, model, TinyClip(), PlainVae(), tiny_eraser(model))
    with torch.inference_mode():
        page, text = report("a cat", steps=1, cfg=1.0, width=64, height=64).args
    assert page.dim() == 4
    assert "a cat" in text


class PlainVae:
    """Shows three of the latent's channels."""

    def decode(self, latents):
        return latents[:, :3].movedim(1, -1).sigmoid()


# Files that were deleted since


def test_the_fingerprint_of_train_erasure_changes_when_its_file_is_gone_and_only_then(nodes, small, folder):
    node = executable(nodes, "UnHypeTrainErasure")

    def train(name):
        with torch.inference_mode():
            node.execute(model=tiny_model(), clip=TinyClip(), name=name, **small)

    before = node.fingerprint_inputs(name="one", **small)
    train("one")
    train("two")
    note = written_note().read_text("utf-8")
    assert "one.safetensors" in note
    assert str(folder) not in note, "browsers may read it"
    train("one")
    assert node.fingerprint_inputs(name="one", **small) == before
    (folder / "one.safetensors").unlink()
    after = node.fingerprint_inputs(name="one", **small)
    assert after != before
    assert node.fingerprint_inputs(**small) == after, "the name may come from another node"
    train("one")
    assert node.fingerprint_inputs(name="one", **small) == after


def test_the_fingerprint_of_import_weights_changes_when_its_file_is_gone(nodes, folder):
    state, config = their_file("sd", 1, their_layers("sd"), seeded(1))
    torch.save({"state_dict": state, "config": config}, folder / "theirs.pth")
    node = executable(nodes, "UnHypeImportWeights")
    before = node.fingerprint_inputs("theirs.pth", "")
    node.execute("theirs.pth", "")
    assert node.fingerprint_inputs("theirs.pth", "") == before
    (folder / "theirs.safetensors").unlink()
    assert node.fingerprint_inputs("theirs.pth", "") != before


# Errors


def test_the_type_of_an_error_names_the_pack_and_no_path():
    """ComfyUI shows the type with its module, whose name is the path of the pack on the server."""
    kinds = {
        kind
        for name, module in sys.modules.items()
        if name == "unhype" or name.startswith("unhype.")
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__.partition(".")[0] == "unhype"
    }
    assert {"PromptError", "HypernetFileError", "UnsupportedModelError", "TrainingError"} <= {k.__name__ for k in kinds}
    # The last two never leave training.encode_batch, the one before them not policy.guard.
    shown = kinds - {UserError, _Seen, UnknownRowError, _UnknownYetError}
    assert {execution.full_type_name(kind) for kind in shown} == {f"unhype.{kind.__name__}" for kind in shown}

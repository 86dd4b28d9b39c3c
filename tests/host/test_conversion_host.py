"""The files of the paper's authors on ComfyUI's models: applied, exported, and not trained further."""

from dataclasses import replace

import pytest
import torch
from families import instance, prompt
from published_parts import saved, their_file, their_name, their_update
from tiny import noted_calls, replay, sample, seeded, tiny_model

from unhype.hypernet.conversion import import_weights
from unhype.hypernet.files import load
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.targets import PREFIX, recognise, target_layers
from unhype.training.loop import TrainingError
from unhype.training.plan import Request
from unhype.training.run import train_erasure


@pytest.fixture
def model(request):
    return tiny_model() if request.param == "sd" else instance("flux")


BACKENDS = pytest.mark.parametrize(("backend", "model"), [("sd", "sd"), ("flux", "flux")], indirect=["model"])


@BACKENDS
def test_their_layers_are_the_target_layers(backend, model, tmp_path):
    layers = target_layers(model.model, recognise(model.model))
    state, config = their_file(backend, 2, layers, seeded(1))
    eraser = import_weights(saved(tmp_path / "theirs.pth", state, config))
    assert set(eraser.hypernet.config.layers) == set(layers)


@BACKENDS
@torch.inference_mode()
def test_an_imported_file_erases(backend, model, tmp_path):
    state, config = their_file(backend, 4, target_layers(model.model, recognise(model.model)), seeded(5))
    import_weights(saved(tmp_path / "theirs.pth", state, config), (("cat", "tree"),))
    eraser = load(tmp_path / "theirs.safetensors")
    name = "flux" if backend == "flux" else "sd3"  # prompts with a pooled vector
    a, negative = prompt(name, 1), prompt(name, 3)
    with noted_calls(apply_erasure(model, eraser)) as (clone, calls):
        sample(clone, a, negative, steps=1)
    (call,) = calls
    rows, base = call.reads(a), replay(model, call)
    patched = model.clone()
    c = a[0][1]["pooled_output"][0]
    for layer in eraser.hypernet.config.layers:
        delta = their_update(state, their_name(layer), c, torch.eye(layer.inputs), 4).T
        patched.add_patches({(f"{PREFIX}{layer.name}.weight", (0, layer.start, layer.outputs)): ("diff", (delta,))})
    expected, effect = replay(patched, call)[rows], (replay(patched, call) - base)[rows].abs().max()
    assert (call.output[rows] - expected).abs().max() <= 1e-4 * effect + 1e-6 * expected.abs().max()
    assert torch.equal(call.output[~rows], base[~rows])


def test_an_imported_hypernet_is_not_trained_further(tmp_path):
    model = tiny_model()
    layers = target_layers(model.model, recognise(model.model))
    eraser = import_weights(saved(tmp_path / "theirs.pth", *their_file("sd", 2, layers, seeded(4))))
    request = Request("dog -> tree", "", tmp_path, "more", tmp_path, start_from=replace(eraser, name="theirs"))
    with pytest.raises(TrainingError, match="'theirs' was imported from the paper's authors"):
        train_erasure(model, object(), request, lambda *_, **__: None)

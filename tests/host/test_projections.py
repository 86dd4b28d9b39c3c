"""Erasers on the text projections of every joint family: the layers by which text enters get the deltas."""

from dataclasses import replace

import pytest
import torch
from deltas import closely
from families import INSTANCES, NAMES, embedding_of, instance, key_of, prompt
from tiny import CONTEXT, detector_of, overridden, sample, seeded, tiny_eraser

from unhype.hypernet.doors import ErasureLapsedError
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.targets import PREFIX, projection_layers, recognise

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

# The projections of each family, of the pooled embedding and of the token states.
VECTORS = {"flux": "vector_in.in_layer", "sd3": "y_embedder.mlp.0"}
TOKENS = {
    "flux": "txt_in",
    "flux2": "txt_in",
    "chroma": "txt_in",
    "sd3": "context_embedder",
    "qwen_image": "txt_in",
    "lumina2": "cap_embedder.1",
    "wan": "text_embedding.0",
}


@pytest.fixture(params=NAMES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    with torch.inference_mode():
        return instance(name)


def eraser_for(name, model, detector=None):
    """An eraser with random weights for the projections of an instance."""
    given = tiny_eraser(model, width=INSTANCES[name].pooled or CONTEXT, detector=detector)
    layers = projection_layers(model.model, recognise(model.model))
    generator = seeded(3)
    network = Hypernet(HypernetConfig(given.hypernet.config.embedding_width, layers, rank=2, hidden=8), generator)
    with torch.no_grad():
        for weight in network.right.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return Eraser(network.half().float().requires_grad_(False).eval(), given.record, "projections", detector)


def test_the_projections_are_those_of_the_family(name, model):
    found = {layer.name for layer in projection_layers(model.model, recognise(model.model))}
    vectors = {VECTORS[key_of(name)]} if key_of(name) in VECTORS else set()
    assert found == {TOKENS[key_of(name)]} | vectors


def test_an_erased_prompt_runs_as_if_the_weights_were_changed(name, model):
    a, negative = prompt(name, 1), prompt(name, 3)
    eraser = eraser_for(name, model)
    patched = model.clone()
    for layer, own in zip(
        eraser.hypernet.config.layers, eraser.hypernet(embedding_of(name, a).unsqueeze(0), 300), strict=True
    ):
        patched.add_patches({f"{PREFIX}{layer.name}.weight": ("diff", (own.B[0] @ own.A[0],))})
    # At CFG 1 the negative prompt isn't drawn.
    expected = sample(patched, a, negative, cfg=1.0, steps=2)
    erased = sample(apply_erasure(model, eraser), a, negative, cfg=1.0, steps=2)
    base = sample(model, a, negative, cfg=1.0, steps=2)
    assert closely(erased, expected, base)
    assert overridden(model) == []


def test_a_prompt_below_the_threshold_is_the_base_models_beside_an_erased_one(name, model):
    a, b, negative = (prompt(name, seed) for seed in (1, 2, 3))
    eraser = eraser_for(name, model, detector_of([embedding_of(name, a)], [embedding_of(name, b)]))
    erased = apply_erasure(model, eraser)
    assert torch.equal(sample(erased, b, negative), sample(model, b, negative))
    assert not torch.equal(sample(erased, a, negative), sample(model, a, negative))


def test_an_eraser_for_some_of_the_projections_is_refused():
    model = instance("flux")
    eraser = eraser_for("flux", model)
    config = replace(eraser.hypernet.config, layers=eraser.hypernet.config.layers[:1])
    with pytest.raises(HypernetFileError, match="1 layers that read the prompt"):
        apply_erasure(model, replace(eraser, hypernet=Hypernet(config)))


@pytest.mark.parametrize("strict", [False, True])
def test_text_that_joins_behind_the_projection_is_named(strict):
    model, told = instance("flux"), []
    a, negative = prompt("flux", 1), prompt("flux", 3)

    def longer(args):
        return {**args, "txt": args["txt"].repeat(1, 2, 1), "txt_ids": args["txt_ids"].repeat(1, 2, 1)}

    unknown = "strict" if strict else "base"
    eraser = replace(eraser_for("flux", model), concept_embeddings=embedding_of("flux", a).unsqueeze(0))
    erased = apply_erasure(model, eraser, unknown=unknown, tell=told.append)
    erased.set_model_patch(longer, "post_input")
    if strict:
        with pytest.raises(ErasureLapsedError, match="text joins the model behind its text projection"):
            sample(erased, a, negative, steps=1)
    else:
        sample(erased, a, negative, steps=1)
        (message,) = told
        assert "text joins the model behind its text projection, where it gets no delta" in message


@pytest.mark.parametrize("change", ["copied", "reordered", "moved"])
def test_states_that_passed_no_text_embedding_are_named_in_wan(change):
    model, told = instance("wan"), []
    order = {"reordered": [1, 0]}.get(change, [0, 1])

    def block(args, rest):
        txt = args["txt"][order]
        return rest["original_block"]({**args, "txt": txt + 1 if change == "moved" else txt})

    erased = apply_erasure(model, eraser_for("wan", model), tell=told.append)
    erased.set_model_patch_replace(block, "dit", "double_block", 0)
    sample(erased, prompt("wan", 1), prompt("wan", 3), pictures=1, steps=1)
    assert ["text joins the model behind its text projection" in line for line in told] == [True] * (change == "moved")

"""Which models and layers an eraser fits, and what is refused with which words."""

import logging

import pytest
import torch
from tiny import CONTEXT, FAMILIES, POOLED, merged, prompt, sample, tiny_eraser, tiny_model

from unhype.hypernet.eraser import Eraser
from unhype.hypernet.lora import to_lora
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.targets import UnsupportedModelError, family_by_key, recognise, target_layers

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def models():
    """One tiny model a family."""
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def model(models):
    return models["sd15"]


@pytest.fixture(scope="module")
def eraser(model):
    return tiny_eraser(model)


def test_a_hypernet_of_another_family_is_refused(models):
    eraser = tiny_eraser(models["sdxl"])
    with pytest.raises(
        HypernetFileError, match=r"trained for Stable Diffusion XL, but the model is Stable Diffusion 1\.x"
    ):
        apply_erasure(models["sd15"], eraser)


def test_a_hypernet_for_a_model_of_another_size_is_refused(model):
    eraser = tiny_eraser(tiny_model(context=16))
    with pytest.raises(HypernetFileError, match=r"layer 'input_blocks\.1\.1.*' is 32 to 32 in the model and 16 to 32"):
        apply_erasure(model, eraser)


def test_a_hypernet_for_layers_that_the_model_lacks_is_refused(model, eraser):
    layers = eraser.hypernet.config.layers
    strange = type(layers[0])("input_blocks.9.1.transformer_blocks.0.attn2.to_k", CONTEXT, 32)
    network = Hypernet(HypernetConfig(POOLED, (strange,), hidden=4))
    with pytest.raises(HypernetFileError, match=r"layer 'input_blocks\.9.*' is missing in the model"):
        apply_erasure(model, Eraser(network, eraser.record, "strange"))


def test_refusal_holds_at_strength_zero_too(models):
    with pytest.raises(HypernetFileError):
        apply_erasure(models["sd15"], tiny_eraser(models["sdxl"]), 0.0)


def test_a_relative_of_the_trained_model_is_taken_with_a_note(model, caplog):
    other = tiny_eraser(tiny_model(seed=9))
    with caplog.at_level(logging.INFO):
        apply_erasure(model, other)
    assert "was trained on another Stable Diffusion 1.x model" in caplog.text


def test_the_trained_model_itself_gets_no_note_even_with_a_lora_merged_into_it(model, eraser, caplog):
    lora = to_lora(eraser, torch.ones(POOLED), "a cat")
    sample(merged(model, lora), prompt(1), prompt(3))
    with caplog.at_level(logging.INFO):
        apply_erasure(model, eraser)
    assert "another" not in caplog.text


# Families


def test_each_family_is_recognised_by_its_classes(models):
    assert [recognise(models[family].model).key for family in FAMILIES] == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_targets_are_keys_and_values_of_cross_attention(models, family):
    layers = target_layers(models[family].model, recognise(models[family].model))
    assert len(layers) == 14
    assert all(layer.name.endswith((".attn2.to_k", ".attn2.to_v")) and layer.inputs == CONTEXT for layer in layers)
    assert {layer.outputs for layer in layers} == {32, 64}


def test_subclasses_of_a_family_made_by_other_packs_are_recognised(models):
    base = models["sd15"].model
    config = type("MySD15", (type(base.model_config),), {}).__new__(type(base.model_config))
    stand_in = type("Wrapped", (), {"model_config": config, "diffusion_model": base.diffusion_model})()
    assert recognise(stand_in).key == "sd15"


def test_other_models_are_refused_by_their_name():
    with pytest.raises(UnsupportedModelError, match=r"This model is a Flux9, .* Supported: Stable Diffusion 1\.x, "):
        recognise(type("Flux9", (), {})())


def test_a_family_that_this_version_does_not_know_is_named():
    with pytest.raises(UnsupportedModelError, match="'sd99' is not one that this version of UnHype knows"):
        family_by_key("sd99")


def test_a_model_without_cross_attention_is_refused(models):
    gutted = type("Gutted", (), {"diffusion_model": torch.nn.Sequential()})()
    with pytest.raises(UnsupportedModelError, match="none of the layers that UnHype steers"):
        target_layers(gutted, family_by_key("sd15"))


def test_blocks_wrapped_for_compilation_keep_their_names(models):
    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    base = models["sd15"].model
    plain = target_layers(base, family_by_key("sd15"))
    blocks = torch.nn.ModuleDict({name: Wrapped(module) for name, module in base.diffusion_model.named_children()})
    stand_in = type("Compiled", (), {"diffusion_model": blocks})()
    assert target_layers(stand_in, family_by_key("sd15")) == plain


# Networks that another node has rebuilt


class Rebuilt(torch.nn.Module):
    """Stands for a network of another pack's own, as those of Nunchaku."""


def test_a_network_of_another_packs_own_is_refused_without_contradiction(models):
    stand_in = type("Flux", (), {"model_config": models["sdxl"].model.model_config, "diffusion_model": Rebuilt()})()
    with pytest.raises(UnsupportedModelError) as refusal:
        recognise(stand_in)
    message = str(refusal.value)
    assert message.startswith("This model is Stable Diffusion XL, but not as ComfyUI builds it")
    assert "a network of its own, Rebuilt," in message
    assert "Load the model with a loader of ComfyUI's own" in message
    assert "Supported" not in message


def test_a_layer_that_another_node_has_replaced_is_refused_by_name():
    model = tiny_model()
    model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_v = Rebuilt()
    message = r"layer 'middle_block\.1\.transformer_blocks\.0\.attn2\.to_v' of this .* is a Rebuilt"
    with pytest.raises(UnsupportedModelError, match=message):
        target_layers(model.model, family_by_key("sd15"))


def test_a_hypernet_that_leaves_out_a_layer_of_the_model_is_refused(model, eraser):
    network = Hypernet(HypernetConfig(POOLED, eraser.hypernet.config.layers[1:], hidden=4))
    with pytest.raises(HypernetFileError, match=r"1 layers that read the prompt, 'input_blocks\.1.*' among them"):
        apply_erasure(model, Eraser(network, eraser.record, "some"))

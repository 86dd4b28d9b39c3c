"""The model that training learns from is the user's: its class, its LoRAs of either kind, and no copy without need."""

from types import MethodType

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from allocated import Allocated
from model_parts import style_lora
from runs import go, same_weights
from tiny import CPU, Call, TinyClip, embedding, merged, prompt, replay, sample, seeded, tiny_model

from unhype.hypernet.base_model import lora_fingerprint
from unhype.training.encode import EncodedPrompt
from unhype.training.frozen import FrozenModel
from unhype.training.loop import TrainingError

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


def bypassed(model, lora=None, strength=1.0):
    """The model with a LoRA loaded by core's bypass loader, which newer hosts have."""
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass LoRAs")
    return comfy.sd.load_bypass_lora_for_models(model, None, lora or style_lora(), strength, 0.0)[0]


def bytes_of(model):
    return comfy.model_management.module_size(model.model)


def forwards(model):
    """The modules whose forward is another object's method or a function at the moment."""
    return [
        name
        for name, module in model.model.named_modules()
        if getattr(module.__dict__.get("forward", module.forward), "__self__", None) is not module
    ]


def predictions(model, copied=True):
    """What a `FrozenModel` of the model predicts for two rows of a prompt, and the host for the same."""
    z, sigma = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.full((2,), 2.0)
    frozen = FrozenModel(model, copied=copied)
    frozen.load()
    given = EncodedPrompt("", embedding(prompt(1)), prompt(1))
    found = frozen.predict(z, sigma, [frozen.model_conds(given, z)] * 2)
    frozen.release()
    call = Call(z, sigma, prompt(1)[0][0].expand(2, -1, -1), {}, None)
    return found, (z - replay(model, call)) / 2


def all_close(one, other, **tolerance):
    return all(
        torch.allclose(tensor, other.hypernet.state_dict()[name], **tolerance)
        for name, tensor in one.hypernet.state_dict().items()
    )


# Bypass LoRAs


@pytest.mark.parametrize("copied", [True, False])
def test_a_bypass_lora_is_part_of_the_teacher(copied):
    model = tiny_model()
    found, expected = predictions(bypassed(model), copied)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    without, _ = predictions(model, copied)
    assert (found - without).abs().max() > 0.01
    assert forwards(model) == []


def test_a_bypass_lora_gives_the_eraser_of_the_same_lora_merged(ask):
    """The attention objective sees the target layers, which this LoRA changes."""
    outcomes = [go(load(tiny_model(), style_lora()), ask(name=load.__name__)) for load in (bypassed, merged)]
    plain = go(tiny_model(), ask(name="plain"))
    assert all_close(outcomes[0].eraser, outcomes[1].eraser, rtol=1e-3, atol=2e-3)
    assert not all_close(outcomes[0].eraser, plain.eraser, rtol=1e-3, atol=2e-3)


def test_gradients_go_through_a_copy_with_a_bypass_lora(ask):
    model = bypassed(tiny_model())
    before = sample(model, prompt(1), prompt(2))
    outcome = go(model, ask(objective="direct"))
    assert outcome.reason == "finished"
    assert all(map(bool, outcome.losses))
    assert torch.equal(sample(model, prompt(1), prompt(2)), before), "the user's LoRA works on"
    comfy.model_management.unload_all_models()
    assert forwards(model) == []


def test_a_model_with_another_bypass_lora_is_another_training(ask):
    model = tiny_model()
    styles = [bypassed(model), bypassed(model, strength=0.5), bypassed(model, style_lora(seed=40)), model]
    outcomes = [go(style, ask()) for style in styles]
    assert [outcome.reason for outcome in outcomes] == ["finished"] * 4
    assert len({outcome.path for outcome in outcomes}) == 4
    assert [go(style, ask()).reason for style in styles] == ["already trained"] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fingerprint_of_a_bypass_lora_is_the_same_before_and_after_its_first_use(dtype):
    """The host casts the LoRA to the layer's dtype when it is first used."""
    model = bypassed(tiny_model(dtype=dtype), style_lora(seed=60))
    before = lora_fingerprint(model)
    sample(model, prompt(1), prompt(2), steps=1)
    assert lora_fingerprint(model) == before != ""


def test_the_fingerprint_of_merged_loras_is_that_of_earlier_files():
    """Else every file that was trained with a LoRA would be trained again."""
    assert lora_fingerprint(merged(tiny_model(), style_lora())) == "8af3e59f7c7d85c4"


# Patchers of other packs


class QuantisedLinear(torch.nn.Module):
    """Computes with its bytes over 16, plus the patches that its patcher has put beside it."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.nn.Parameter(linear.weight.mul(16).round().to(torch.int8), requires_grad=False)
        self.added = []

    def forward(self, x):
        weight = sum(self.added, self.weight.to(x.dtype) / 16)
        return torch.nn.functional.linear(x, weight)


class OtherPatcher(comfy.model_patcher.ModelPatcher):
    """The patcher of another pack: merges no patch into bytes, but hands it to the layer."""

    def patch_weight_to_device(self, key, *arguments, **options):
        module = self.model.get_submodule(key.rpartition(".")[0])
        if not isinstance(module, QuantisedLinear):
            return super().patch_weight_to_device(key, *arguments, **options)
        if key in self.patches:
            size = torch.zeros(module.weight.shape)
            module.added = [comfy.lora.calculate_weight(self.patches[key], size, key)]
        return module.weight

    def unpatch_model(self, *arguments, **options):
        for module in self.model.modules():
            if isinstance(module, QuantisedLinear):
                module.added = []
        return super().unpatch_model(*arguments, **options)


def quantised():
    """A tiny model whose cross-attention keys and values are bytes, behind a patcher of its own class."""
    network = tiny_model().model
    for name, module in [*network.named_modules()]:
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            network.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = QuantisedLinear(module)
    return OtherPatcher(network, CPU, CPU)


@pytest.mark.parametrize("copied", [True, False])
def test_a_patcher_keeps_its_class_and_its_way_with_loras(copied):
    model = merged(quantised(), style_lora())
    assert type(FrozenModel(model, copied=copied).patcher) is OtherPatcher
    found, expected = predictions(model, copied)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    without, _ = predictions(quantised(), copied)
    assert (found - without).abs().max() > 0.01


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_a_model_of_another_packs_patcher_is_trained(ask, objective):
    model = merged(quantised(), style_lora())
    bytes_before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    assert go(model, ask(objective=objective)).reason == "finished"
    assert all(torch.equal(weight, bytes_before[name]) for name, weight in model.model.state_dict().items())


# What can't be copied


class Paged(comfy.model_patcher.ModelPatcher):
    """Stands for a model under dynamic VRAM, which a CPU hasn't: it can't be cloned but by loading it again."""

    def is_dynamic(self):
        return True

    def clone(self, disable_dynamic=False, force_deepcopy=False, **options):
        if force_deepcopy and self.cached_patcher_init is None:
            raise RuntimeError("Cannot create non-dynamic delegate: cached_patcher_init is not initialized.")
        return super().clone(**options)


def paged():
    return Paged(tiny_model().model, CPU, CPU)


def test_a_paged_model_that_cannot_be_loaded_again_is_refused_in_words_before_anything_is_encoded(ask):
    message = r"Train Erasure, 'model': an objective other than attention needs a copy.*--disable-dynamic-vram"
    with pytest.raises(TrainingError, match=message):
        go(paged(), ask(objective="direct"), clip=NoClip())


def test_a_bypass_lora_on_a_paged_model_is_refused_in_words(ask):
    model = bypassed(paged())
    model.cached_patcher_init = (paged, ())
    with pytest.raises(TrainingError, match=r"what bypass_lora adds to it can't be copied.*isn't of the bypass kind"):
        go(model, ask(objective="paper"), clip=NoClip())


class NoClip(TinyClip):
    """Fails where it is used."""

    def tokenize(self, text):
        raise AssertionError("the texts were encoded")


def test_the_attention_objective_trains_on_a_paged_model(ask):
    assert same_weights(go(paged(), ask()).eraser, go(tiny_model(), ask(name="plain")).eraser)


LAYER = "diffusion_model.middle_block.1.proj_in"


def overriding(model, as_patch, make):
    """The model with a layer's forward replaced by what `make` makes of the layer, by the host's patch or for good."""
    layer = model.model.get_submodule(LAYER)
    if not as_patch:
        layer.forward = make(layer)
        return model
    clone = model.clone()
    clone.add_object_patch(f"{LAYER}.forward", make(layer))
    return clone


@pytest.mark.parametrize("as_patch", [True, False])
def test_a_layer_whose_forward_is_a_function_is_refused_by_name(ask, as_patch):
    def function(layer):
        forward = layer.forward
        return lambda x: 2 * forward(x)

    model = overriding(tiny_model(), as_patch, function)
    with pytest.raises(TrainingError, match=r"has replaced 'diffusion_model\.middle_block\.1\.proj_in\.forward'"):
        go(model, ask(objective="direct"))
    assert go(model, ask()).reason == "finished"


@pytest.mark.parametrize("as_patch", [True, False])
def test_a_layer_whose_forward_is_a_method_is_copied_with_it(ask, as_patch):
    def double(self, x):
        return 2 * type(self).forward(self, x)

    model = overriding(tiny_model(), as_patch, lambda layer: MethodType(double, layer))
    found, expected = predictions(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    without, _ = predictions(tiny_model())
    assert (found - without).abs().max() > 0.01
    assert go(model, ask(objective="direct")).reason == "finished"


# Memory


def test_the_attention_objective_copies_no_weights():
    model = tiny_model()
    weights = {weight.data_ptr() for weight in model.model.parameters()}
    with Allocated() as allocated:
        frozen = FrozenModel(model, copied=False)
        frozen.load()
    assert allocated.bytes < bytes_of(model) / 100
    assert {weight.data_ptr() for weight in frozen.network.parameters()} == weights
    with Allocated() as allocated:
        FrozenModel(model)
    assert allocated.bytes > 0.9 * bytes_of(model)


def test_a_run_of_the_attention_objective_asks_for_no_copy(ask, monkeypatch):
    made = []

    def noted(self, model, *arguments):
        made.append(arguments[1])
        init(self, model, *arguments)

    init = FrozenModel.__init__
    monkeypatch.setattr(FrozenModel, "__init__", noted)
    go(tiny_model(), ask())
    go(tiny_model(), ask(objective="direct"))
    assert made == [False, True]

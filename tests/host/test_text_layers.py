"""Every layer by which text reaches the picture is a target layer, or it is named here as one that is not."""

import re
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature

import comfy.supported_models
import families
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from families import INSTANCES, NAMES, FamilyClip, build, key_of, sizes_of
from runs import Reports
from tiny import TRAINING, WordClip, overridden, sample

from unhype.hypernet.families import FAMILIES
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.targets import recognise, target_layers
from unhype.training.encode import encode
from unhype.training.plan import Request
from unhype.training.run import train_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

# By family: layers that text enters by and that H leaves alone, as regular expressions. The pooled embedding
# modulates whole blocks.
LEFT = {
    "sdxl": r"label_emb\.0\.0",
    "sd3": r"y_embedder\.mlp\.0",
    "flux": r"vector_in\.in_layer",
}
_NERF = {
    "nerf_hidden_size": 8,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 1,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 0,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": torch.float32,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
_DECODER = {"decoder_hidden_size": 32, "decoder_num_res_blocks": 1, "decoder_max_freqs": 2}
_PIXELS = {"in_channels": 3, "out_channels": 3, "patch_size": 2}
# Other networks that count as a family of `families`: the host's configuration, and what is other than there.
VARIANTS = {
    "chroma-radiance": ("ChromaRadiance", {**_PIXELS, **_NERF}),
    "lumina2-pixels": ("ZImagePixelSpace", {**_DECODER, "in_channels": 3}),
    "wan-i2v": ("WAN21_I2V", {"model_type": "i2v", "in_dim": 36}),
    "wan-fun_control": ("WAN21_FunControl2V", {"model_type": "i2v", "in_dim": 48}),
    "wan-camera": ("WAN21_Camera", {"model_type": "camera", "in_dim": 32}),
    "wan-camera_2.2": ("WAN22_Camera", {"model_type": "camera_2.2", "in_dim": 36}),
    "wan-humo": ("WAN21_HuMo", {"model_type": "humo", "in_dim": 36}),
    "wan-s2v": ("WAN22_S2V", {"model_type": "s2v"}),
    "wan-animate": ("WAN22_Animate", {"model_type": "animate", "in_dim": 36}),
    "wan-animate2": ("WAN_Animate2", {"model_type": "animate2", "in_dim": 36}),
    "wan-2.2": ("WAN22_T2V", {"in_dim": 48, "out_dim": 48}),
    "wan-flow_rvs": ("WAN21_FlowRVS", {"model_type": "t2v"}),
    "wan-scail": ("WAN21_SCAIL", {"model_type": "scail", "in_dim": 20}),
    "wan-scail2": ("WAN21_SCAIL2", {"model_type": "scail2", "in_dim": 20}),
    "wan-dancer": ("WAN22_WanDancer", {"model_type": "wandancer", "in_dim": 36}),
    "wan-causal": ("WAN21_CausalAR_T2V", {"causal_ar": True}),
}
# Configurations over a network of the same class as one that is tried here.
SAME_NETWORK = {
    *("SD15_instructpix2pix", "SD21UnclipL", "SD21UnclipH", "SD_X4Upscaler", "LotusD"),
    *("SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B", "SDXL_instructpix2pix", "FluxInpaint"),
}


def known_nerf(sizes):
    """The sizes that this host's Chroma Radiance takes: newer ones have more."""
    module = pytest.importorskip("comfy.ldm.chroma_radiance.model")
    return {name: size for name, size in sizes.items() if name in signature(module.ChromaRadianceParams).parameters}


def model_of(name):
    if name in tiny.FAMILIES:
        return tiny.tiny_model(name)
    if name in VARIANTS:
        config, changes = VARIANTS[name]
        sizes = {**sizes_of(key_of(name)), **changes}
        return build(config, known_nerf(sizes) if "nerf_depth" in sizes else sizes)
    return families.instance(name)


def prompt_of(name, seed):
    if name in tiny.FAMILIES:
        return tiny.prompt(seed)
    return families.prompt(key_of(name) if name in VARIANTS else name, seed)


def given(model, conditioning):
    """What the network is given for a prompt, at the first step of a sampling: positional and named arguments."""
    clone, found = model.clone(), []

    def note(executor, *arguments, **named):
        found.append((arguments, named))
        return executor(*arguments, **named)

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "noted", note)
    sample(clone, conditioning, conditioning, cfg=1.0, pictures=1, steps=1)
    return found[0]


def run(model, call):
    arguments, named = call
    return model.model.apply_model(*arguments, **named)


@contextmanager
def forwards(model, names, make):
    """While open, the layers run what `make` makes of their name and own forward."""
    modules = {name: model.model.diffusion_model.get_submodule(name) for name in names}
    for name, module in modules.items():
        module.forward = make(name, module.forward)
    try:
        yield
    finally:
        for module in modules.values():
            del module.__dict__["forward"]


def with_outputs_of(model, names, first, second):
    """What the network gives for the call `second` when the layers give what they gave in the call `first`."""
    noted = {name: [] for name in names}

    def noting(name, forward):
        def run_and_note(*arguments, **named):
            noted[name].append(forward(*arguments, **named))
            return noted[name][-1].clone()

        return run_and_note

    with forwards(model, names, noting):
        run(model, first)
    with forwards(model, names, lambda name, _: lambda *_, **__: noted[name].pop(0).clone()):
        return run(model, second)


@pytest.mark.parametrize("name", [*tiny.FAMILIES, *NAMES, *VARIANTS])
def test_text_reaches_the_picture_by_the_target_layers_and_those_that_are_listed(name):
    """With their outputs held, whole rows of fused layers too, another prompt gives the same picture."""
    model = model_of(name)
    family = recognise(model.model)
    one, other = (given(model, prompt_of(name, seed)) for seed in (1, 2))
    pictures = [run(model, call) for call in (one, other)]
    assert not torch.equal(*pictures)
    targets = [layer.name for layer in target_layers(model.model, family)]
    left = LEFT.get(family.key, "none")
    listed = [layer for layer, _ in model.model.diffusion_model.named_modules() if re.fullmatch(left, layer)]
    assert torch.equal(with_outputs_of(model, [*targets, *listed], one, other), pictures[0])
    assert not torch.equal(with_outputs_of(model, listed, one, other), pictures[0])
    if family.key in LEFT:
        assert not torch.equal(with_outputs_of(model, targets, one, other), pictures[0])
    assert overridden(model) == []


def test_every_configuration_that_counts_as_a_family_is_tried_here():
    """A newer host's may bring a network that reads the text elsewhere."""
    own = {family.config for family in FAMILIES}
    counted = {
        name
        for name, kind in vars(comfy.supported_models).items()
        if isinstance(kind, type) and own.intersection(cls.__name__ for cls in kind.__mro__)
    }
    tried = {"SD15", "SD20", "SDXL", *(one.config for one in INSTANCES.values())}
    assert counted <= tried | {config for config, _ in VARIANTS.values()} | SAME_NETWORK


def trained(model, clip, folder, objective):
    settings = replace(TRAINING, steps=1, batch=2, guidance=3.5, objective=objective)
    wish = Request("cat -> tree", "", folder, "eraser", folder, settings, checkpoint_every=0, preview_every=0)
    with torch.inference_mode():
        return train_erasure(model, clip, wish, Reports()).eraser


def test_an_eraser_is_trained_for_a_network_that_gives_text_to_the_layers_of_the_picture_prompt(tmp_path):
    model = model_of("wan-i2v")
    eraser = trained(model, FamilyClip("wan"), tmp_path, "direct")
    own = {name.rpartition(".")[2] for name in (layer.name for layer in eraser.hypernet.config.layers)}
    assert own == {"k", "v", "k_img", "v_img"}
    c = encode(FamilyClip("wan"), "cat", eraser.record.embedding).c
    assert all(bool((B @ A).any()) for A, B in eraser.hypernet(c.unsqueeze(0), 300)), "each of them gets a change"
    apply_erasure(model, eraser)
    cat, negative = prompt_of("wan-i2v", 1), prompt_of("wan-i2v", 3)
    erased = apply_erasure(model, families.eraser_for("wan", model))
    assert not torch.equal(sample(erased, cat, negative, steps=1), sample(model, cat, negative, steps=1))
    message = r"4 layers that read the prompt, 'blocks\.0\.cross_attn\.k_img' among them, are not in the hypernet"
    with pytest.raises(HypernetFileError, match=message):
        apply_erasure(model, families.eraser_for("wan", families.instance("wan")))


@pytest.mark.parametrize("text", ["cat", "a photo of cat"])
def test_by_the_attention_objective_the_layers_of_the_picture_prompt_get_the_mapping(tmp_path, text):
    """Trained is a layer before them, by which all text passes."""
    model, clip = model_of("wan-i2v"), WordClip()
    eraser = trained(model, clip, tmp_path, "attention")
    layers = [layer.name for layer in target_layers(model.model, recognise(model.model))]
    assert {name.rpartition(".")[2] for name in layers} == {"k", "v", "k_img", "v_img"}

    def outputs(patcher, prompt):
        found = {}

        def noting(name, forward):
            def run_and_note(*arguments, **named):
                found[name] = forward(*arguments, **named)
                return found[name]

            return run_and_note

        conditioning = encode(clip, prompt).conditioning
        with forwards(model, layers, noting):
            sample(patcher, conditioning, conditioning, cfg=1.0, pictures=1, steps=1)
        return found

    before, wanted = (outputs(model, prompt) for prompt in (text, text.replace("cat", "tree")))
    after = outputs(apply_erasure(model, eraser), text)
    for name in layers:
        assert (after[name] - wanted[name]).norm() < 0.5 * (before[name] - wanted[name]).norm()


def test_an_eraser_that_knows_only_the_first_stack_of_blocks_is_refused_by_vace():
    plain, vace = families.instance("wan"), families.instance("wan-vace")
    message = r"2 layers that read the prompt, 'vace_blocks\.0\.cross_attn\.k' among them, are not in the hypernet"
    with pytest.raises(HypernetFileError, match=message):
        apply_erasure(vace, families.eraser_for("wan", plain))
    with pytest.raises(HypernetFileError, match=r"layer 'vace_blocks\.0\.cross_attn\.k' is missing in the model"):
        apply_erasure(plain, families.eraser_for("wan-vace", vace))

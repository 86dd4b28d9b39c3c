"""Models of a few thousand weights, made of ComfyUI's own classes, with a sampler run for them."""

import copy
from contextlib import contextmanager
from typing import NamedTuple

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.supported_models
import torch
from comfy.patcher_extension import WrappersMP
from core_parts import (  # noqa: F401 - tests of models take their prompts from here too
    CONTEXT,
    POOLED,
    TOKENS,
    TRAINING,
    TinyClip,
    WordClip,
    detector_of,
    detector_scoring,
    embedding,
    prompt,
    seeded,
)

from unhype.hypernet.base_model import base_model_of
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.record import Record
from unhype.hypernet.targets import recognise, target_layers

CPU = torch.device("cpu")
LATENT = 8

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "disable_self_attentions": None,
    "dtype": torch.float32,
}
_ADM = {"num_classes": "sequential", "adm_in_channels": POOLED + 6 * 256}


class _Tiny(NamedTuple):
    config: type
    base: type
    prediction: comfy.model_base.ModelType
    unet: dict


_FAMILIES = {
    "sd15": _Tiny(
        comfy.supported_models.SD15,
        comfy.model_base.BaseModel,
        comfy.model_base.ModelType.EPS,
        {"use_linear_in_transformer": False},
    ),
    "sd20": _Tiny(
        comfy.supported_models.SD20,
        comfy.model_base.BaseModel,
        comfy.model_base.ModelType.V_PREDICTION,
        {"use_linear_in_transformer": True},
    ),
    "sdxl": _Tiny(
        comfy.supported_models.SDXL,
        comfy.model_base.SDXL,
        comfy.model_base.ModelType.EPS,
        {"use_linear_in_transformer": True, **_ADM},
    ),
}
FAMILIES = tuple(_FAMILIES)


def draw_weights(network, seed):
    """Give every parameter of a host's network, which comes uninitialised, random numbers of a sane size."""
    generator = seeded(seed)
    values = [*network.named_parameters(), *((n, v) for n, v in network.named_buffers() if v.is_floating_point())]
    with torch.no_grad():
        for name, weight in sorted(values, key=lambda pair: pair[0]):
            if weight.dim() > 1:
                drawn = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
            elif name.endswith("weight"):
                drawn = torch.ones(weight.shape)
            else:
                drawn = torch.randn(weight.shape, generator=generator) * 0.1
            weight.copy_(drawn)


def tiny_model(family="sd15", seed=0, context=CONTEXT, dtype=torch.float32, operations=None):
    """A ModelPatcher over a UNet with random weights; the same `seed` gives the same weights.

    operations: the host's layer classes, when not those that it picks for the dtype.
    """
    tiny = _FAMILIES[family]
    config = tiny.config({**copy.deepcopy(_UNET), **tiny.unet, "context_dim": context, "dtype": dtype})
    config.unet_config.update(num_heads=2, num_head_channels=-1)
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    config.custom_operations = operations
    base = tiny.base(config, model_type=tiny.prediction, device="cpu")
    draw_weights(base.diffusion_model, seed)
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base, CPU, CPU)


def tiny_eraser(model, seed=0, size=0.05, rank=2, width=POOLED, concepts=(("cat", "tree"),), detector=None):
    """An eraser for `model` with random weights everywhere; without a detector every prompt gets a delta."""
    family = recognise(model.model)
    layers = target_layers(model.model, family)
    generator = seeded(seed)
    network = Hypernet(HypernetConfig(width, layers, rank=rank, hidden=16), generator)
    with torch.no_grad():
        for weight in network.right.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    record = Record(family.key, tuple(concepts), base_model_of(model, layers), embedding=family.embedding)
    return Eraser(network.half().float().requires_grad_(False).eval(), record, "tiny", detector)


def sample(model, positive, negative, cfg=3.0, pictures=2, steps=3, seed=5):
    """Latents as KSampler would make them, (pictures, 4, 8, 8) for SD."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    latent = model.model.latent_format
    frames = [1] if latent.latent_dimensions == 3 else []
    noise = torch.randn(pictures, latent.latent_channels, *frames, LATENT, LATENT, generator=seeded(seed))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    euler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)


class Call(NamedTuple):
    """One call of the network: what its rows were given and what they gave."""

    x: torch.Tensor
    t: torch.Tensor
    context: torch.Tensor
    others: dict
    output: torch.Tensor

    def reads(self, conditioning):
        """Which rows read this prompt, (rows,) bool; the host repeats tokens to make lengths equal."""
        cross = conditioning[0][0][0]
        if self.context.shape[1] % cross.shape[0]:
            return torch.zeros(len(self.context), dtype=torch.bool)
        cross = cross.repeat(self.context.shape[1] // cross.shape[0], 1)
        return torch.tensor([torch.equal(row, cross) for row in self.context])


@contextmanager
def noted_calls(model):
    """Yields a clone of `model` and the list of `Call`s that sampling with it makes."""
    clone, calls = model.clone(), []

    def note(executor, x, t, c_concat, c_crossattn, control, transformer_options, **others):
        output = executor(x, t, c_concat, c_crossattn, control, transformer_options, **others)
        calls.append(Call(x.clone(), t.clone(), c_crossattn.clone(), dict(others), output.clone()))
        return output

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "noted", note)
    yield clone, calls


def replay(model, call):
    """What `model` gives for the inputs of a call, as its weights are after ComfyUI merged its LoRAs."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return model.model.apply_model(call.x, call.t, c_crossattn=call.context, transformer_options={}, **call.others)


def merged(model, lora):
    """A clone of `model` with a LoRA state dict loaded as core's own loader does."""
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def overridden(model):
    """Names of the modules that carry a `forward` of their own."""
    return [name for name, module in model.model.diffusion_model.named_modules() if "forward" in module.__dict__]

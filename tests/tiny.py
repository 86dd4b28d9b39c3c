"""Models of a few thousand weights, made of ComfyUI's own classes, with prompts and a sampler run for them."""

import copy
import hashlib
import re
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

from unhype.hypernet.base_model import base_model_of
from unhype.hypernet.detector import Detector
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.record import Record
from unhype.hypernet.targets import recognise, target_layers
from unhype.training.settings import Settings

CPU = torch.device("cpu")
CONTEXT, POOLED, TOKENS, LATENT = 32, 24, 8, 8
# A training run that such models bear.
TRAINING = Settings(
    rank=2,
    hidden=8,
    retain_batch=8,
    width=64,
    height=64,
    rollouts=2,
    pictures=2,
    sampler_steps=3,
    kept_steps=2,
)

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


def seeded(seed):
    """A generator of its own for each draw that has to be repeated."""
    return torch.Generator().manual_seed(seed)


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


def prompt(seed, tokens=TOKENS, width=POOLED):
    """The CONDITIONING of a made-up prompt."""
    generator = seeded(seed)
    cross = torch.randn(1, tokens, CONTEXT, generator=generator)
    return [[cross, {"pooled_output": torch.randn(1, width, generator=generator)}]]


def embedding(conditioning):
    """The vector that drives H for a made-up prompt, (POOLED,)."""
    return conditioning[0][1]["pooled_output"][0]


class TinyClip:
    """A CLIP without an encoder: each text has its own random conditioning, the same on every machine."""

    def clone(self):
        return self

    def clip_layer(self, layer):
        """As in encoders that have no such choice."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return prompt(int.from_bytes(hashlib.sha256(tokens.encode()).digest()[:4], "big"))


class WordClip(TinyClip):
    """A CLIP whose tokens are the words of a text, with ids as ComfyUI's tokenizers give them.

    A token's state is its word's own vector and a little of its place. The pooled vector is the mean of others, of
    the words of more than two letters; it is wide enough to tell a word among others.
    """

    LENGTH, WIDTH, BEGIN, END = 20, 128, 1, 2

    def tokenize(self, text):
        words = re.findall(r"\w+", text.lower())[: self.LENGTH - 2]
        ids = [self.BEGIN, *(int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in words)]
        ids += [self.END] * (self.LENGTH - len(ids))
        spoken = [word for word in zip(ids[1:], words, strict=False) if len(word[1]) > 2]
        return {"words": [[(number, 1.0) for number in ids]], "spoken": [number for number, _ in spoken]}

    def encode_from_tokens_scheduled(self, tokens):
        def vectors(ids, width=CONTEXT):
            return torch.stack([torch.randn(width, generator=seeded(number)) for number in ids])

        ids = [number for number, _ in tokens["words"][0]]
        cross = vectors(ids) + 0.1 * vectors(range(100, 100 + self.LENGTH))
        pooled = vectors(tokens["spoken"] or [self.END], self.WIDTH).mean(0)
        return [[cross.unsqueeze(0), {"pooled_output": pooled.unsqueeze(0)}]]


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


def detector_scoring(c, scores):
    """A `Detector` that gives the embeddings c (n, width) these scores (n, concepts), n at most width."""
    return Detector((torch.linalg.pinv(c) @ scores).T.contiguous(), torch.zeros(scores.shape[1]))


def detector_of(above, below, score=2.0):
    """A `Detector` of one concept that gives the embeddings `above` (width,) this score and those `below` zero."""
    scores = torch.tensor([[score]] * len(above) + [[0.0]] * len(below))
    return detector_scoring(torch.stack([*above, *below]), scores)


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

"""A tiny instance of every family, of the host's own classes: one entry each, beside the UNets of `tiny`.

Families that an older host lacks are skipped with the reason.
"""

import hashlib
import inspect
from typing import NamedTuple

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.lumina.model import NextDiT
from tiny import CONTEXT, CPU, LATENT, POOLED, TOKENS, draw_weights, seeded, tiny_eraser

WIDE = 256


class Instance(NamedTuple):
    """config: the host's class; network: its sizes. rows: name of each target to (start, outputs, features).

    pooled: width of the pooled embedding, None for families whose c comes from their tokens.
    """

    config: str
    network: dict
    rows: dict
    pooled: int | None = None


def _flux(**changes):
    sizes = {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": POOLED,
        "context_in_dim": CONTEXT,
        "hidden_size": 32,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }
    return {**sizes, **changes}


def _flux_rows(fused=7 * 32):
    rows = {f"single_blocks.{i}.linear1": (64, 32, fused) for i in (0, 1)}
    for i in (0, 1):
        rows |= {f"double_blocks.{i}.{side}_attn.qkv": (64, 32, 96) for side in ("img", "txt")}
        rows[f"double_blocks.{i}.img_attn.proj"] = (0, 32, 32)
    return rows


def _lumina(**changes):
    sizes = {
        "patch_size": 2,
        "in_channels": 16,
        "dim": WIDE,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 4,
        "multiple_of": 8,
        "ffn_dim_multiplier": 1.0,
        "qk_norm": True,
        "cap_feat_dim": CONTEXT,
        "axes_dims": [16, 24, 24],
        "axes_lens": [64, 64, 64],
        "rope_theta": 10000.0,
    }
    return {**sizes, **changes}


def _lumina_rows(start, outputs, features):
    return {
        name: rows
        for i in (0, 1)
        for name, rows in (
            (f"layers.{i}.attention.qkv", (start, outputs, features)),
            (f"layers.{i}.attention.out", (0, WIDE, WIDE)),
        )
    }


_SD3 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "depth": 2,
    "adm_in_channels": POOLED,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": CONTEXT, "out_features": 128},
    },
    "context_size": CONTEXT,
    "pos_embed_max_size": LATENT,
    "num_patches": LATENT * LATENT,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
}
_QWEN = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": CONTEXT,
    "axes_dims_rope": (4, 6, 6),
}
_WAN = {
    "model_type": "t2v",
    "in_dim": 16,
    "out_dim": 16,
    "dim": 32,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": CONTEXT,
    "num_heads": 2,
    "num_layers": 2,
}


def _wan_rows(*blocks):
    return {f"{block}.cross_attn.{name}": (0, 32, 32) for block in blocks for name in "kv"}


INSTANCES = {
    "flux": Instance("Flux", _flux(), _flux_rows(), POOLED),
    "flux-schnell": Instance("FluxSchnell", _flux(guidance_embed=False), _flux_rows(), POOLED),
    "flux2": Instance(
        "Flux2",
        _flux(
            in_channels=128,
            out_channels=128,
            vec_in_dim=None,
            mlp_ratio=3.0,
            axes_dim=[4, 4, 4, 4],
            patch_size=1,
            qkv_bias=False,
            txt_ids_dims=[3],
            global_modulation=True,
            mlp_silu_act=True,
            ops_bias=False,
        ),
        _flux_rows(9 * 32),
    ),
    "chroma": Instance(
        "Chroma",
        _flux(in_channels=64, out_channels=64, in_dim=64, out_dim=32, hidden_dim=32, n_layers=1),
        _flux_rows(),
    ),
    "sd3": Instance(
        "SD3",
        _SD3,
        {
            "joint_blocks.0.x_block.attn.qkv": (256, 128, 384),
            "joint_blocks.0.x_block.attn.proj": (0, 128, 128),
            "joint_blocks.0.context_block.attn.qkv": (256, 128, 384),
            "joint_blocks.1.x_block.attn.qkv": (256, 128, 384),
            "joint_blocks.1.x_block.attn.proj": (0, 128, 128),
            "joint_blocks.1.context_block.attn.qkv": (256, 128, 384),
        },
        POOLED,
    ),
    "qwen_image": Instance(
        "QwenImage",
        _QWEN,
        {f"transformer_blocks.{i}.attn.{n}": (0, 32, 32) for i in (0, 1) for n in ("to_v", "add_v_proj", "to_out.0")},
    ),
    "lumina2": Instance("Lumina2", _lumina(n_kv_heads=2), _lumina_rows(WIDE + 128, 128, WIDE + 256)),
    "lumina2-z_image": Instance(
        "ZImage",
        _lumina(z_image_modulation=True, pad_tokens_multiple=8, time_scale=1000.0),
        _lumina_rows(2 * WIDE, WIDE, 3 * WIDE),
    ),
    "wan": Instance("WAN21_T2V", _WAN, _wan_rows("blocks.0", "blocks.1")),
    "wan-vace": Instance(
        "WAN21_Vace",
        {**_WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        _wan_rows("blocks.0", "blocks.1", "vace_blocks.0"),
    ),
}
NAMES = tuple(INSTANCES)


def key_of(name):
    """The key in the pack's table of an instance's family."""
    return name.split("-")[0]


def sizes_of(name):
    """The sizes of an instance's network that this host's takes: newer ones have more."""
    config, sizes = getattr(comfy.supported_models, INSTANCES[name].config, object), INSTANCES[name].network
    makers = {"Flux": FluxParams, "Chroma": ChromaParams, "Lumina2": NextDiT}
    maker = next((makers[cls.__name__] for cls in config.__mro__ if cls.__name__ in makers), None)
    if maker is None:
        return sizes
    taken = inspect.signature(maker).parameters
    return {name: value for name, value in sizes.items() if name in taken}


def instance(name, seed=0, dtype=torch.float32):
    """A ModelPatcher over a network with random weights; skips the test where this host has no such family."""
    return build(INSTANCES[name].config, sizes_of(name), seed, dtype)


def build(config_name, network, seed=0, dtype=torch.float32):
    """A ModelPatcher over the network of these sizes for the host's configuration of that name, as `instance`."""
    config = getattr(comfy.supported_models, config_name, None)
    if config is None:
        pytest.skip(f"this ComfyUI has no {config_name}")
    config = config({**network, "dtype": dtype})
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    base = config.get_model({}, device="cpu")
    draw_weights(base.diffusion_model, seed)
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base, CPU, CPU)


def prompt(name, seed, tokens=TOKENS):
    """The CONDITIONING of a made-up prompt, of the shape that this family's encoder gives."""
    generator = seeded(seed)
    cross = torch.randn(1, tokens, CONTEXT, generator=generator)
    width = INSTANCES[name].pooled
    pooled = None if width is None else torch.randn(1, width, generator=generator)
    # Gemma and Qwen give a mask of valid tokens, which Lumina of older hosts needs.
    mask = {"attention_mask": torch.ones(1, tokens, dtype=torch.long)} if key_of(name) == "lumina2" else {}
    return [[cross, {"pooled_output": pooled, **mask}]]


def embedding_of(name, conditioning):
    """The c of a made-up prompt, computed by hand."""
    ((cross, entry),) = conditioning
    if INSTANCES[name].pooled:
        return entry["pooled_output"][0]
    return (cross[0] / cross[0].square().mean(1, keepdim=True).sqrt()).mean(0)


def eraser_for(name, model, **options):
    """An eraser with random weights for an instance."""
    return tiny_eraser(model, width=INSTANCES[name].pooled or CONTEXT, **options)


class FamilyClip:
    """A CLIP without an encoder: each text has its own random conditioning, language models' of several lengths."""

    def __init__(self, name):
        self.name = name

    def clone(self):
        return self

    def clip_layer(self, layer):
        """As in encoders that have no such choice."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return prompt(self.name, seed, tokens=8 if INSTANCES[self.name].pooled else 6 + seed % 3)

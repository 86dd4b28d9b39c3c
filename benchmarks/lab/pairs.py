"""The lab's text encoders side by side, as SDXL, Stable Diffusion 3, Flux.1 and Qwen-Image have theirs.

The lab's CLIP stands for CLIP-L, MiniLM for CLIP-G, T5 and Qwen. States lie where ComfyUI's classes of these families
put them; narrower ones are padded with zeros to the family's width. There are tiny networks that read them, with random
weights: what they draw shows nothing, but whether a prompt gets a delta in them can be seen.
"""

from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import torch
from torch.nn.functional import pad

from . import clip, flux_text, text

_G = 1280
_SD3_WIDTH = 4096
# Of Stable Diffusion 3's tokens all numbers behind these are zeros here.
SD3_STATES = 768 + text.WIDTH


class _Padded77(text._Words):
    """MiniLM's words, 77 tokens as CLIP-G has."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data)
        self.max_length = clip.TOKENS


class _Long77(flux_text.Sequence):
    """At least 77 tokens, as Stable Diffusion 3's T5 has."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data)
        self.min_length = clip.TOKENS


class _L(clip.Encoder):
    """The lab's CLIP in CLIP-L's width."""

    def forward(self, tokens):
        """States (n, tokens, 768) and pooled vectors (n, 768)."""
        return _widened(super().forward(tokens), 768)


class _Sentence(text._Sentence):
    """MiniLM in the width of the encoder that it stands for."""

    width = _G

    def forward(self, tokens):
        """States (n, tokens, width) and pooled vectors (n, width)."""
        return _widened(super().forward(tokens), self.width)


class _T5(_Sentence):
    width = _SD3_WIDTH


def _widened(found, width):
    return tuple(pad(tensor, (0, width - tensor.shape[-1])) for tensor in found)


class _SDXLTokenizer(comfy.sdxl_clip.SDXLTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.clip_l, self.clip_g = clip.Words(embedding_directory), _Padded77(embedding_directory)


class _SDXLModel(comfy.sdxl_clip.SDXLClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)
        self.clip_l, self.clip_g = _L(device, dtype, model_options), _Sentence(device, dtype, model_options)
        self.dtypes = {dtype}


class _SD3Tokenizer(comfy.text_encoders.sd3_clip.SD3Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.clip_l, self.clip_g = clip.Words(embedding_directory), _Padded77(embedding_directory)
        self.t5xxl = _Long77(embedding_directory)


class _SD3Model(comfy.text_encoders.sd3_clip.SD3ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)
        self.clip_l, self.clip_g = _L(device, dtype, model_options), _Sentence(device, dtype, model_options)
        self.t5xxl, self.t5_attention_mask, self.dtypes = _T5(device, dtype, model_options), False, {dtype}

    def encode_token_weights(self, token_weight_pairs):
        """As the host's, without the numbers that are always zero."""
        states, *others = super().encode_token_weights(token_weight_pairs)
        return states[..., :SD3_STATES], *others


class _Whole(flux_text.Sequence):
    """As long a prompt as MiniLM has places for."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data)
        self.max_length = 512


class _WholeTokenizer(text.LabTokenizer):
    words = _Whole


_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768 + _G,
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": _G + 6 * 256,
    "legacy": False,
    "use_temporal_attention": False,
    "disable_self_attentions": None,
}
_SD3 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "depth": 2,
    "adm_in_channels": 768 + _G,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": SD3_STATES, "out_features": 128},
    },
    "context_size": SD3_STATES,
    "pos_embed_max_size": 8,
    "num_patches": 64,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
}
_QWEN = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": text.WIDTH,
    "axes_dims_rope": (4, 6, 6),
}


def _network(config_name: str, sizes: dict[str, Any]) -> comfy.model_patcher.ModelPatcher:
    """A MODEL with random weights, fp32."""
    config = getattr(comfy.supported_models, config_name)({**sizes, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    base, generator = config.get_model({}, device="cpu"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (own for own in base.diffusion_model.parameters() if own.numel()):
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(drawn / weight[0].numel() ** 0.5 if weight.dim() > 1 else 1 + 0.1 * drawn)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base.eval().requires_grad_(False), device, device)


def load_sdxl():
    """MODEL and CLIP of an SDXL."""
    return _network("SDXL", _UNET), flux_text.loaded(_SDXLTokenizer, _SDXLModel)


def load_sd3():
    """MODEL and CLIP of a Stable Diffusion 3."""
    return _network("SD3", _SD3), flux_text.loaded(_SD3Tokenizer, _SD3Model)


def load_qwen():
    """MODEL and CLIP of a Qwen-Image, whose text encoder takes prompts of any length at once."""
    return _network("QwenImage", _QWEN), text.load_clip(_WholeTokenizer)

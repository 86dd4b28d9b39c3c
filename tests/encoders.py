"""Text encoders of a few thousand weights, made of ComfyUI's own classes: one for each kind of prompt."""

import importlib

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import pytest
import torch
from tiny import CONTEXT, draw_weights

from benchmarks.lab import clip as lab_clip
from benchmarks.lab import text as lab_text

WIDTH = CONTEXT
_CLIP = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 2 * WIDTH,
}
_T5 = {"d_model": WIDTH, "d_ff": 2 * WIDTH, "d_kv": 16, "num_heads": 2, "num_layers": 3}
_QWEN = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_SIZES = {f"{name}_model_config": _CLIP for name in ("clip_l", "clip_g", "clip_h")}
_SIZES |= {"t5xxl_model_config": _T5, "qwen3_4b_model_config": _QWEN}


def _module(name):
    return importlib.import_module(f"comfy.text_encoders.{name}")


def _targets():
    """Tokenizer and model of each kind, as ComfyUI pairs them for a model family."""
    return {
        "sd15": lambda: (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sd20": lambda: (_module("sd2_clip").SD2Tokenizer, _module("sd2_clip").SD2ClipModel),
        "sdxl": lambda: (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        "flux": lambda: (_module("flux").FluxTokenizer, _module("flux").flux_clip()),
        "pixart": lambda: (_module("pixart_t5").PixArtTokenizer, _module("pixart_t5").pixart_te()),
        "cosmos": lambda: (_module("cosmos").CosmosT5Tokenizer, _module("cosmos").te()),
        "z_image": lambda: (_module("z_image").ZImageTokenizer, _module("z_image").te()),
    }


# Those whose prompts have a pooled embedding.
POOLING = ("sd15", "sd20", "sdxl", "flux", "lab clip", "minilm")
NAMES = (*POOLING, "pixart", "cosmos", "z_image")


def encoder(name, embeddings=None):
    """A CLIP with random weights, or one of the lab's; embeddings: the folder of textual inversions.

    Skips the test where this host has no such encoder.
    """
    if name == "minilm":
        return lab_text.load_clip()
    if name == "lab clip":
        made = lab_clip.build(embeddings)
    else:
        try:
            target = comfy.supported_models_base.ClipTarget(*_targets()[name]())
        except ModuleNotFoundError:
            pytest.skip(f"this ComfyUI has no text encoder {name}")
        options = {"dtype": torch.float32, "initial_device": torch.device("cpu"), **_SIZES}
        made = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=options)
    draw_weights(made.cond_stage_model, seed=0)
    return made

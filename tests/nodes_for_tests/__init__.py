"""Nodes that only the tests' servers have, the host's own classes with small random weights.

A text encoder of one narrow layer, widened to SD 1.x's width: Train Erasure encodes more than a thousand prompts, which
takes minutes with CLIP-L itself on a CPU. A CLIP Vision model: ComfyUI's loader takes none under 300 M weights.
"""

import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy_api.latest import ComfyExtension, io

from . import ways_round

_SIZES = {"num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 64}
_WIDTH = 768

_VISION = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 32,
    "intermediate_size": 64,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 8,
    "projection_dim": 16,
}


def small_clip_vision():
    """ComfyUI's CLIP_VISION."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"  # older hosts read it from a file only
        path.write_text(json.dumps(_VISION), "utf-8")
        encoder = comfy.clip_vision.ClipVisionModel(str(path))
    generator = torch.Generator().manual_seed(0)
    for name, weight in encoder.model.named_parameters():
        weight.data = torch.ones_like(weight) if "norm" in name else torch.randn(weight.shape, generator=generator)
    return encoder


class SmallCLIPVision(io.ComfyNode):
    """An image encoder to compare pictures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="UnHypeTestCLIPVision", category="UnHype", inputs=[], outputs=[io.ClipVision.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(small_clip_vision())


class NarrowEncoder(comfy.sd1_clip.SD1CheckpointClipModel):
    """The host's own CLIP-L in small, its states widened by a random matrix."""

    def __init__(self, **options):
        super().__init__(**options)
        self.widen = torch.nn.Parameter(torch.empty(_SIZES["hidden_size"], _WIDTH), requires_grad=False)

    def forward(self, tokens):
        states, pooled = super().forward(tokens)
        return states @ self.widen, pooled @ self.widen


class NarrowTextModel(comfy.sd1_clip.SD1ClipModel):
    """What ComfyUI's CLIP calls."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=NarrowEncoder)


class SmallCLIP(io.ComfyNode):
    """The host's own CLIP class, random weights."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="UnHypeTestCLIP", category="UnHype", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, NarrowTextModel)
        clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": _SIZES, "dtype": torch.float32})
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in clip.cond_stage_model.named_parameters():
                if "norm" in name:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
                else:
                    weight.normal_(0.0, 0.05, generator=generator)
        return io.NodeOutput(clip)


class TestNodes(ComfyExtension):
    """What ComfyUI asks for."""

    async def get_node_list(self):
        return [SmallCLIP, SmallCLIPVision, *ways_round.NODES]


async def comfy_entrypoint():
    """ComfyUI's entry. The host tests import this module without a server, to which the handlers belong."""
    ways_round.register()
    return TestNodes()

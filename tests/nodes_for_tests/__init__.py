"""A node that only the tests' servers have: a text encoder of SD 1.x's width, with one small layer.

Train Erasure encodes some eight hundred prompts. With CLIP-L itself that takes minutes on a CPU.
"""

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy_api.latest import ComfyExtension, io

_SIZES = {"num_hidden_layers": 1, "intermediate_size": 64}


class SmallCLIP(io.ComfyNode):
    """The host's own CLIP class, random weights."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="UnHypeTestCLIP", category="UnHype", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
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
        return [SmallCLIP]


async def comfy_entrypoint():
    """ComfyUI's entry."""
    return TestNodes()

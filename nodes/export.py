"""Hypernet to LoRA."""

from typing import Any

from comfy_api.latest import io

from ..hypernet.lora import to_lora
from ..hypernet.merged import AnyEraser
from ..policy.enforced import check_export
from ..training.encode import encode
from .schema import CATEGORY, Hypernet, only_links, schema


class HypernetToLora(io.ComfyNode):
    """UNHYPE and one prompt to a plain LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeHypernetToLora",
            display_name="Hypernet to LoRA",
            category=CATEGORY,
            description="Freezes the weights for one prompt into a plain LoRA, for other programs. It acts on every "
            "prompt: it has no detector.",
            search_aliases=["export lora", "erase", "unlearn", "remove concept"],
            inputs=[
                Hypernet.Input("unhype", tooltip="From Load UnHype Hypernet or Train Erasure."),
                io.Clip.Input("clip", tooltip="The CLIP of the model that the hypernet was trained on."),
                io.String.Input("text", multiline=True, tooltip="The prompt to freeze, such as 'a photo of a cat'."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.05,
                    max=3.0,
                    step=0.05,
                    optional=True,
                    tooltip="As in Apply Concept Erasure.",
                ),
            ],
            outputs=[
                io.Custom("LORA_MODEL").Output("lora", display_name="LORA_MODEL", tooltip="For Save LoRA Weights.")
            ],
        )

    @classmethod
    def execute(cls, unhype: AnyEraser, clip: Any, text: str, strength: float = 1.0) -> io.NodeOutput:
        only_links("Hypernet to LoRA", unhype=unhype, clip=clip)
        check_export()
        return io.NodeOutput(to_lora(unhype, encode(clip, text, unhype.record.embedding).c, text, strength))

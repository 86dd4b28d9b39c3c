"""Apply Concept Erasure."""

from typing import Any

from comfy_api.latest import io

from ..hypernet.deltas import POLICIES
from ..hypernet.merged import AnyEraser
from ..hypernet.patch import apply_erasure
from .progress import NodeText
from .schema import APPLIED, CATEGORY, Hypernet, advanced, node_id, only_choices, only_links, schema, strength_input


class ApplyErasure(io.ComfyNode):
    """MODEL and UNHYPE to a MODEL that can't draw the erased concepts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeApplyErasure",
            display_name="Apply Concept Erasure",
            category=CATEGORY,
            description="Makes a model unable to draw the erased concepts. Other prompts give the same picture as "
            "before. Put it after LoRAs, before the sampler.",
            search_aliases=[*APPLIED],
            inputs=[
                io.Model.Input("model", tooltip="The model to protect. The one you connect here stays as it is."),
                Hypernet.Input("unhype", tooltip="From Load UnHype Hypernet or Train Erasure."),
                strength_input(
                    "How far the erasure goes: 0 changes nothing, 1 is as trained. Above 1 stubborn wordings go too, "
                    "and pictures may break."
                ),
                io.Boolean.Input(
                    "keep_others_exact",
                    default=True,
                    optional=True,
                    tooltip="On: other prompts give the same picture, identical to the last bit. Off: every prompt "
                    "changes a little, and more distant wordings are caught.",
                ),
                advanced(
                    io.Combo.Input,
                    "unknown_prompts",
                    options=list(POLICIES),
                    default=POLICIES[0],
                    tooltip="For text that the eraser can't read. base: leave it alone, show a warning. strict: treat "
                    "it as erased, or stop with an error.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the erasure on it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        unhype: AnyEraser,
        strength: float = 1.0,
        keep_others_exact: bool = True,
        unknown_prompts: str = POLICIES[0],
    ) -> io.NodeOutput:
        only_links("Apply Concept Erasure", model=model, unhype=unhype)
        only_choices(cls, unknown_prompts=unknown_prompts)
        text = NodeText(node_id(cls))
        return io.NodeOutput(
            apply_erasure(model, unhype, strength, keep_others_exact, unknown_prompts, lambda line: text(line, True))
        )

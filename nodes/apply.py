"""Apply Concept Erasure."""

from typing import Any

from comfy_api.latest import io

from ..hypernet.deltas import POLICIES
from ..hypernet.merged import AnyEraser
from ..hypernet.patch import apply_erasure
from .progress import NodeText
from .schema import CATEGORY, Hypernet, advanced, only_choices, only_links, schema


class ApplyErasure(io.ComfyNode):
    """MODEL and UNHYPE to a MODEL that can't draw the erased concepts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeApplyErasure",
            display_name="Apply Concept Erasure",
            category=CATEGORY,
            description="Makes a model unable to draw the erased concepts. Every other prompt gives the same picture "
            "as before. Put it last, after LoRAs, right before the sampler.",
            search_aliases=["erase", "unlearn", "remove concept", "safety", "concept erasure"],
            inputs=[
                io.Model.Input("model", tooltip="The model to protect. The one you connect here stays as it is."),
                Hypernet.Input("unhype", tooltip="From Load UnHype Hypernet or Train Erasure."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="How far the erasure goes. 0 changes nothing at all, values up to 1 move along the path "
                    "that was trained, from the untouched model to full erasure. Above 1 the full change is "
                    "multiplied, which may erase stubborn wordings and may also spoil pictures.",
                ),
                io.Boolean.Input(
                    "keep_others_exact",
                    default=True,
                    tooltip="On: a prompt without an erased concept runs the original model, identical to the last "
                    "bit. Off: the hypernet acts on every prompt, even if only a little, which can catch distant "
                    "wordings.",
                ),
                advanced(
                    io.Combo.Input,
                    "unknown_prompts",
                    options=list(POLICIES),
                    default=POLICIES[0],
                    optional=True,
                    tooltip="What to do with text that the eraser can't read, such as a prompt from the text encoder "
                    "of another model, or tokens that another node adds inside the model. base: leave it alone and "
                    "show a warning. strict: treat it as erased, and stop where that isn't possible.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the erasure on it.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, unhype: AnyEraser, strength: float, keep_others_exact: bool, unknown_prompts: str = POLICIES[0]
    ) -> io.NodeOutput:
        only_links("Apply Concept Erasure", model=model, unhype=unhype)
        only_choices(cls, unknown_prompts=unknown_prompts)
        # Scripts call this without a server, and so without an id.
        text = NodeText(getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(
            apply_erasure(model, unhype, strength, keep_others_exact, unknown_prompts, lambda line: text(line, True))
        )

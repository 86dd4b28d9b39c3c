"""Inspect Prompt."""

from comfy_api.latest import io

from ..evaluation.bars import bar_picture
from ..evaluation.detection import detect, report_text
from ..evaluation.other_text import other_text
from ..hypernet.embedding import Conditioning
from ..hypernet.merged import AnyEraser
from .schema import CATEGORY, Hypernet, only_links, schema
from .shown import shown


class InspectPrompt(io.ComfyNode):
    """UNHYPE and CONDITIONING to words and a picture of what the eraser makes of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeInspectPrompt",
            display_name="Inspect Prompt",
            category=CATEGORY,
            description="Shows for each part of a prompt the nearest concept, the detector's score, and whether it is "
            "erased or stays as it is.",
            search_aliases=["erase", "unlearn", "remove concept", "concept erasure", "debug", "why", "detector"],
            is_output_node=True,  # so that a prompt can be looked at without drawing anything
            inputs=[
                Hypernet.Input("unhype", tooltip="From Load UnHype Hypernet or Train Erasure."),
                io.Conditioning.Input("conditioning", tooltip="The prompt as it goes into the sampler."),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The results, a line for each part."),
                io.Image.Output("picture", display_name="IMAGE", tooltip="The scores as bars."),
            ],
        )

    @classmethod
    def execute(cls, unhype: AnyEraser, conditioning: Conditioning) -> io.NodeOutput:
        only_links("Inspect Prompt", unhype=unhype, conditioning=conditioning)
        detections = detect(unhype, conditioning)
        text = "\n".join([report_text(detections), *other_text(unhype, conditioning)])
        image, display = shown(cls, bar_picture(detections), text)
        return io.NodeOutput(text, image, ui=display)

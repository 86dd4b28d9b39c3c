"""Merge Erasers."""

from typing import Any

from comfy_api.latest import io, ui

from ..hypernet.merged import AnyEraser
from ..hypernet.merging import merge, save_once
from .folders import safe_name, training_folder
from .progress import there_is_a_new_file
from .schema import CATEGORY, PURPOSES, Hypernet, node_id, only_links, schema
from .written import fingerprint, remember

_NAME = "Merge Erasers"
_FILE = "my_merged_erasure"
_MOST = 4


class MergeErasers(io.ComfyNode):
    """Several UNHYPE of one base model to one UNHYPE and its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = [
            Hypernet.Input(f"unhype_{n}", optional=True, tooltip="One more eraser of the same model.")
            for n in range(3, _MOST + 1)
        ]
        return schema(
            node_id="UnHypeMergeErasers",
            display_name=_NAME,
            category=CATEGORY,
            description="Puts several erasers of one model into one file, without training: each concept keeps its own "
            "weights. A merged eraser can be merged again.",
            search_aliases=[*PURPOSES, "merge", "join", "combine", "list"],
            is_output_node=True,
            inputs=[
                Hypernet.Input("unhype_1", tooltip="From Load UnHype Hypernet or Train Erasure."),
                Hypernet.Input("unhype_2", tooltip="Another eraser that was trained on the same model."),
                io.String.Input("name", default=_FILE, optional=True, tooltip="Name of the file in models/unhype."),
                *more,
            ],
            outputs=[
                Hypernet.Output("unhype", display_name="UNHYPE", tooltip="The eraser, for Apply Concept Erasure."),
                io.String.Output("erases", display_name="erases", tooltip="Erased concepts and their replacements."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return fingerprint()

    @classmethod
    def execute(
        cls, unhype_1: AnyEraser, unhype_2: AnyEraser, name: str = _FILE, **more: AnyEraser | None
    ) -> io.NodeOutput:
        only_links(_NAME, more, unhype_1=unhype_1, unhype_2=unhype_2)
        others = [eraser for _, eraser in sorted(more.items()) if eraser is not None]
        eraser, path = save_once(merge([unhype_1, unhype_2, *others], safe_name(name)), training_folder())
        remember(path.name)
        there_is_a_new_file(node_id(cls))
        summary = eraser.record.summary()
        return io.NodeOutput(eraser, summary, ui=ui.PreviewText(f"Erases:\n{summary}\nSaved as {path}"))

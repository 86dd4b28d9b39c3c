"""Load UnHype Hypernet."""

from comfy_api.latest import io, ui

from ..hypernet.files import load
from .folders import hypernet_names, hypernet_path
from .schema import CATEGORY, PURPOSES, Hypernet, schema


class LoadHypernet(io.ComfyNode):
    """A file from models/unhype to an UNHYPE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeLoadHypernet",
            display_name="Load UnHype Hypernet",
            category=CATEGORY,
            description="Loads a trained concept eraser from models/unhype and shows the concepts that it erases.",
            search_aliases=[*PURPOSES],
            is_output_node=True,  # so that what the file erases can be read without drawing anything
            inputs=[
                io.Combo.Input(
                    "hypernet",
                    options=hypernet_names(),
                    tooltip="A file from the folder models/unhype. Train Erasure saves there; files that others "
                    "trained go there too.",
                ),
            ],
            outputs=[
                Hypernet.Output("unhype", display_name="UNHYPE", tooltip="The eraser, for Apply Concept Erasure."),
                io.String.Output("erases", display_name="erases", tooltip="Erased concepts and their replacements."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, hypernet: str) -> str:
        state = hypernet_path(hypernet).stat()
        return f"{state.st_mtime_ns} {state.st_size}"

    @classmethod
    def execute(cls, hypernet: str) -> io.NodeOutput:
        eraser = load(hypernet_path(hypernet))
        summary = eraser.record.summary()
        return io.NodeOutput(eraser, summary, ui=ui.PreviewText(f"Erases:\n{summary}"))

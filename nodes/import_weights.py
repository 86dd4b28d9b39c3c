"""Import UnHype Weights."""

from pathlib import Path

from comfy_api.latest import io, ui

from ..hypernet.conversion import import_weights
from ..hypernet.files import SUFFIX
from ..training.prompts import PromptError, parse_concepts
from .folders import published_names, published_path
from .progress import there_is_a_new_file
from .schema import CATEGORY, Hypernet, node_id, schema
from .written import fingerprint, remember


class ImportWeights(io.ComfyNode):
    """A .pth file of the paper's authors to an UNHYPE, and to a file that Load UnHype Hypernet takes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeImportWeights",
            display_name="Import UnHype Weights",
            category=CATEGORY,
            description="Opens .pth files that the authors of the UnHype paper published, for Stable Diffusion 1.x or "
            "Flux.1, and saves them for Load UnHype Hypernet.",
            search_aliases=["erase", "unlearn", "remove concept", "convert", "pth"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "weights",
                    options=published_names(),
                    tooltip="A .pth file from the folder models/unhype. Put the file there and press R.",
                ),
                io.String.Input(
                    "erases",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The concepts that the file erases, such as 'airplane -> sky'. For display only. Left "
                    "empty, the file's name is shown.",
                ),
            ],
            outputs=[
                Hypernet.Output("unhype", display_name="UNHYPE", tooltip="The eraser, for Apply Concept Erasure."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str, erases: str = "") -> str:
        state = published_path(weights).stat()
        return f"{state.st_mtime_ns} {state.st_size} {erases} {fingerprint()}"

    @classmethod
    def execute(cls, weights: str, erases: str = "") -> io.NodeOutput:
        try:
            concepts = parse_concepts(erases) if erases.strip() else ()
        except PromptError as error:
            raise PromptError(f"Import UnHype Weights, 'erases': {error}") from error
        path = published_path(weights)
        eraser = import_weights(path, concepts)
        remember(Path(weights).with_suffix(SUFFIX).as_posix())
        there_is_a_new_file(node_id(cls))
        summary = f"Saved as {path.with_suffix(SUFFIX).name}.\nErases:\n{eraser.record.summary()}"
        return io.NodeOutput(eraser, ui=ui.PreviewText(summary))

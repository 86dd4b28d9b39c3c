"""Nodes that give the lab models to ComfyUI. dev.py puts this folder into custom_nodes; the pack does without it."""

import importlib
import importlib.util
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

# Through a link, so the lab lies beside this file's real place, not beside the link.
_LAB = Path(__file__).resolve().parent.parent
_NAME = "unhype_lab_model"


def _lab(module):
    """A module of the lab. Nothing goes on sys.path, where the repository's `nodes` would hide ComfyUI's."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            _NAME, _LAB / "__init__.py", submodule_search_locations=[str(_LAB)]
        )
        package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        sys.modules[_NAME] = package
    return importlib.import_module(f"{_NAME}.{module}")


def _schema(node_id, display_name, description):
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category="UnHype/lab",
        description=description,
        inputs=[],
        outputs=[
            io.Model.Output("model", display_name="MODEL"),
            io.Clip.Output("clip", display_name="CLIP"),
            io.Vae.Output("vae", display_name="VAE"),
        ],
    )


class LabLoader(io.ComfyNode):
    """The small text-to-image model on which erasure is shown and measured."""

    @classmethod
    def define_schema(cls):
        return _schema(
            "UnHypeLabLoader",
            "Load UnHype Lab Model",
            "A small text-to-image model of 32x32 emoji, for trying out and testing concept erasure. "
            "Use an empty latent of 128x128.",
        )

    @classmethod
    def execute(cls):
        model = _lab("model")
        return io.NodeOutput(model.load_model(), _lab("text").load_clip(), model.LabVAE())


class LabFluxLoader(io.ComfyNode):
    """The small Flux."""

    @classmethod
    def define_schema(cls):
        return _schema(
            "UnHypeLabFluxLoader",
            "Load UnHype Lab Flux",
            "A small Flux.1 that draws the same 32x32 emoji. Use an empty latent of 128x128.",
        )

    @classmethod
    def execute(cls):
        text = _lab("text")
        clip = text.load_clip(text.LabFluxTokenizer)
        return io.NodeOutput(_lab("flux").load_model(), clip, _lab("model").LabVAE())


class LabExtension(ComfyExtension):
    """What ComfyUI asks for the lab's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LabLoader, LabFluxLoader]


async def comfy_entrypoint() -> LabExtension:
    """ComfyUI's entry into this folder."""
    return LabExtension()

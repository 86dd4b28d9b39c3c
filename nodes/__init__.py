"""The nodes: sockets, words and one call into the engine each."""

from comfy_api.latest import ComfyExtension, io

from ..policy.enforced import enforced
from .apply import ApplyErasure
from .erase import EraseConcept
from .export import HypernetToLora
from .import_weights import ImportWeights
from .inspect import InspectPrompt
from .load import LoadHypernet
from .merge import MergeErasers
from .report import ErasureReport
from .server_policy import ServerPolicy, ServerRefusal
from .train import TrainErasure


class UnHypeExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            EraseConcept,
            LoadHypernet,
            ApplyErasure,
            TrainErasure,
            MergeErasers,
            HypernetToLora,
            InspectPrompt,
            ImportWeights,
            ErasureReport,
            *([] if enforced() is None else [ServerPolicy, ServerRefusal]),
        ]


async def comfy_entrypoint() -> UnHypeExtension:
    """ComfyUI's entry into the pack."""
    return UnHypeExtension()

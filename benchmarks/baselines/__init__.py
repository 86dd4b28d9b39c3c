"""Other methods on the lab model: small implementations from the papers' equations, all with one interface.

Each takes the same concepts, phrasings, retain prompts, latents, batch and steps as ours, as far as it
uses them, and its strengths come from a search on the lab that its module states. `METHODS` maps a name to
erase(lab, concepts, retain, seed, settings) -> ErasedModel, where lab is a `lab.measure.Lab`, concepts are pairs
(concept, mapping) as `training.prompts.parse_concepts` gives, retain is a `training.prompts.RetainSplit` of
which `train` alone is read, and settings are `training.settings.Settings` with the lab's sizes.
"""

from ..pack import load_pack

load_pack()

from . import esd, gate, nullspace, spm, uce  # noqa: E402
from .erased_model import ErasedModel  # noqa: E402

METHODS = {
    "esd": esd.erase,
    "esd mapping": esd.erase_to_mapping,
    "uce": uce.erase,
    "nullspace": nullspace.erase,
    "gate": gate.erase,
    "spm": spm.erase,
}

__all__ = ["METHODS", "ErasedModel"]

"""A small Flux.1 for the lab: both streams, pooled vector and token sequence, flow matching.

It draws what the SD lab model draws, from the same text encoder into the same latents, so that erasing
can be measured on the two kinds of network alike.
"""

import comfy.supported_models
import torch
from comfy.ldm.flux.model import FluxParams

from . import storage, text
from .model import WEIGHTS, LabLatent, as_model

PATH = WEIGHTS / "flux.safetensors"
# The one that takes the pair of `flux_text`.
PAIR = WEIGHTS / "flux_pair.safetensors"
_VECTOR = "vector_in.in_layer.weight"  # (hidden, width of the pooled vector)

NETWORK = {
    "image_model": "flux",
    "in_channels": 12,
    "out_channels": 12,
    "vec_in_dim": text.WIDTH,
    "context_in_dim": text.WIDTH,
    "hidden_size": 192,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [16, 16, 16],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
}


class LabFluxConfig(comfy.supported_models.FluxSchnell):
    """Flux.1 schnell in small, which has no guidance input; guided by CFG, as nothing was distilled."""

    latent_format = LabLatent


def build(device=None, vector_width=text.WIDTH):
    """The model with random weights (`Flux`), fp32; vector_width: of the pooled vector."""
    # Newer hosts want to know where text has places; Flux.1's has none.
    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
    config = LabFluxConfig({**NETWORK, **newer, "vec_in_dim": vector_width})
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, device=device).eval().requires_grad_(False)


def load_model(path=PATH, disable_dynamic=True):
    """A trained small Flux as a MODEL: `PATH` takes MiniLM's pooled vector, `PAIR` that of the lab's CLIP."""
    del disable_dynamic  # ComfyUI asks for it when it loads a model again
    if not path.is_file():
        raise FileNotFoundError(f"The lab's Flux isn't trained yet: python3 dev.py lab base --family {path.stem}")
    width = storage.load(path)[_VECTOR].shape[1]
    return as_model(lambda device: build(device, width), path, load_model)

"""The lab's CLIP with a network that draws nothing: for what is measured on texts alone.

An eraser's detector and regressor come from the text encoder, not from the network, so that they are what a trained
network would get. Its weights are random, and H learns nothing by them.
"""

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import torch

from unhype.hypernet.families import POOLED
from unhype.training.encode_batch import in_batches

from . import ours
from .lab import clip, model


class CachingClip(ours.CachingClip):
    """The lab's CLIP, which encodes each text once, many at a time."""

    def clone(self):
        """A clone with the same cache."""
        return CachingClip(self.clip.clone(), self.cache)

    def encode_ahead(self, texts):
        """Encode these texts in batches."""
        layer = self.clip.layer_idx
        texts = [text for text in dict.fromkeys(texts) if (layer, text) not in self.cache]
        with torch.no_grad():
            for (prompt,) in in_batches([self.clip], texts, POOLED, lambda *_: None):
                self.cache[layer, prompt.text] = prompt.conditioning


class TextLab:
    """What `ours.erase` takes of a lab: a MODEL whose cross-attention has the CLIP's width, and the CLIP."""

    def __init__(self):
        config = model.LabConfig({**model.UNET, "context_dim": clip.WIDTH})
        config.unet_config["num_heads"] = model.UNET["num_heads"]
        config.set_inference_dtype(torch.float32, None)
        offload = comfy.model_management.unet_offload_device()
        network = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=offload)
        generator = torch.Generator().manual_seed(0)
        for weight in network.eval().requires_grad_(False).parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
        device = comfy.model_management.get_torch_device()
        self.patcher = comfy.model_patcher.ModelPatcher(network, device, offload)
        self.clip = CachingClip(clip.load_clip())

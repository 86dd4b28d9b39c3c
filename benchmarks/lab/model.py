"""The lab model in ComfyUI's own classes: an SD 1.x UNet, its patcher and a VAE to go with it.

A latent is the 2x2 Haar transform of a 32x32 picture: 12 channels of 16x16, lossless, so that the
model works on what a latent diffusion model works on and nothing is lost on the way to the picture.
"""

from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from . import storage, text

WEIGHTS = Path(__file__).with_name("weights")
BASE, BASE_CLIP = WEIGHTS / "base.safetensors", WEIGHTS / "base_clip.safetensors"
_SCALE = 1.3  # makes the latents' spread about one
_GREY = 0.84  # the pictures' mean brightness, so that latents are centred
_CONTEXT = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"  # (channels, width of the text encoder's states)
_HAAR = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def to_latent(rgb):
    """RGB (n, 3, 32, 32) in [0, 1] to latents (n, 12, 16, 16), all three means first."""
    n, _, height, width = rgb.shape
    blocks = ((rgb - _GREY) * 2).reshape(n, 3, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
    return torch.einsum("fb,ncbhw->nfchw", _HAAR.to(rgb), blocks).flatten(1, 2)


def to_picture(latent):
    """Latents (n, 12, h, w) to RGB (n, 3, 2 h, 2 w) in [0, 1], the inverse of `to_latent`."""
    n, _, height, width = latent.shape
    blocks = torch.einsum("fb,nfchw->ncbhw", _HAAR.to(latent), latent.unflatten(1, (4, 3)))
    pixels = blocks.unflatten(2, (2, 2)).permute(0, 1, 4, 2, 5, 3).reshape(n, 3, height * 2, width * 2)
    return (pixels / 2 + _GREY).clamp(0, 1)


class LabLatent(comfy.latent_formats.LatentFormat):
    """12 channels; the first three are a picture of half the size, which is all that previews need."""

    latent_channels = 12
    scale_factor = _SCALE
    latent_rgb_factors = [[0.5 / _SCALE if color == channel else 0.0 for color in range(3)] for channel in range(12)]  # noqa: RUF012
    latent_rgb_factors_bias = [2 * _GREY - 1] * 3


class LabConfig(comfy.supported_models.SD15):
    """SD 1.x in small."""

    latent_format = LabLatent


UNET = {
    "image_size": 16,
    "in_channels": 12,
    "out_channels": 12,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": (1, 2, 3),
    "num_heads": 4,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    # Attention over 16x16 would be half of all work on a CPU; text enters at 8x8 and 4x4.
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "disable_self_attentions": None,
}


def build(device=None, context_width=text.WIDTH):
    """The model with random weights (`BaseModel`), fp32; context_width: of the text encoder's states."""
    config = LabConfig({**UNET, "context_dim": context_width})
    config.unet_config["num_heads"] = UNET["num_heads"]  # SD15 sets its own
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.EPS, device=device)
    return model.eval().requires_grad_(False)


def load_model(path=BASE, disable_dynamic=True):
    """A trained lab model as a MODEL: `BASE` takes MiniLM's states, `BASE_CLIP` those of the lab's CLIP.

    It is small enough to be always wholly on the device.
    """
    del disable_dynamic  # ComfyUI asks for it when it loads a model again
    if not path.is_file():
        raise FileNotFoundError(f"This lab model isn't trained yet, {path} is missing: python3 dev.py lab base")
    width = storage.load(path)[_CONTEXT].shape[1]
    return as_model(lambda device: build(device, width), path, load_model)


def as_model(build, path, load_model):
    """A MODEL of the network that build(device) makes, with the weights at `path`.

    load_model(path) is what makes it again: newer ComfyUI makes deep copies of a model by loading it anew.
    """
    offload = comfy.model_management.unet_offload_device()
    model = build(offload)
    model.diffusion_model.load_state_dict(_named_as_in(model.diffusion_model, storage.load(path)))
    patcher = comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), offload)
    patcher.cached_patcher_init = (load_model, (path,))
    return patcher


def _named_as_in(network, state):
    """A state dict with this host's names: in 0.3.75 and before, Flux calls the weight of a norm its scale."""
    names = network.state_dict()
    return {name if name in names else f"{name.removesuffix('weight')}scale": state[name] for name in state}


class LabVAE:
    """What stock VAE nodes call: the exact Haar transform stands for a learned one."""

    latent_channels = 12
    downscale_ratio = upscale_ratio = 2
    output_channels = 3

    def decode(self, latent, **_options):
        """Latents (n, 12, h, w) to pictures (n, 2 h, 2 w, 3) in [0, 1]."""
        return to_picture(latent.float().cpu()).movedim(1, -1)

    def encode(self, pixels):
        """Pictures (n, h, w, 3) in [0, 1] to latents (n, 12, h / 2, w / 2); an odd last row or column is cut off."""
        pixels = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2, :3]
        return to_latent(pixels.float().cpu().movedim(-1, 1))

    def decode_tiled(self, latent, **_tiles):
        """Tiles of an exact transform are the transform."""
        return self.decode(latent)

    def encode_tiled(self, pixels, **_tiles):
        return self.encode(pixels)

    def spacial_compression_decode(self):
        return 2

    def spacial_compression_encode(self):
        return 2

    def temporal_compression_decode(self):
        return None

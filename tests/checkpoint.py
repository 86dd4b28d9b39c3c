"""Models with random weights, as small as ComfyUI's own loaders accept them.

A Stable Diffusion 1.x checkpoint for CheckpointLoaderSimple: the UNet has one level and one
cross-attention block, the VAE is a TAESD. The text encoder has the size that ComfyUI prescribes for
SD 1.x, 123 M parameters: nothing smaller is recognised.
A Flux.1 for UNETLoader, one block of each kind, which reads text as wide as CLIP-L's, and a TAESD of its
latents for VAELoader. Hosts before 0.30 take no Flux smaller than the real width.
"""

import comfy.ops
import comfy.sd1_clip
import torch
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file

_UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -2,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
}


_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 768,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
# Newer hosts want to know where text has places; Flux.1's has none.
_FLUX |= {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}


def _tensors(prefix, module, generator):
    """Names and fp16 values for the module's parameters: norms do nothing yet, all else is small and random."""
    for path, part in module.named_modules():
        norm = isinstance(part, (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.RMSNorm))
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.ndim < 2:
                value = torch.full(parameter.shape, float(norm and name == "weight"))
            else:
                spread = 0.7 / parameter[0].numel() ** 0.5
                value = torch.empty(parameter.shape).normal_(0.0, spread, generator=generator)
            yield f"{prefix}{path}.{name}", value.half()


def write_checkpoint(path):
    """Write the checkpoint, 290 MB, with the same random numbers every time."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):  # only names and shapes are wanted
        unet = UNetModel(**_UNET, device="meta")
        vae = TAESD()
        clip = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float16).clip_l.transformer.text_model
    parts = {
        "model.diffusion_model.": unet,
        "first_stage_model.taesd_encoder.": vae.taesd_encoder,
        "first_stage_model.taesd_decoder.": vae.taesd_decoder,
        "cond_stage_model.transformer.text_model.": clip,
    }
    tensors = _all_tensors(parts, generator)
    tensors |= {"first_stage_model.vae_scale": torch.tensor(1.0), "first_stage_model.vae_shift": torch.tensor(0.0)}
    _write(tensors, path)


def write_flux(path):
    """Write a Flux.1 dev, 2 MB."""
    with torch.device("meta"):
        network = Flux(**_FLUX, device="meta", operations=comfy.ops.disable_weight_init)
    _write(_all_tensors({"": network}, torch.Generator().manual_seed(0)), path)


def write_flux_vae(path):
    """Write a VAE for 16 channels, 5 MB."""
    with torch.device("meta"):
        vae = TAESD(latent_channels=16)
    parts = {"taesd_encoder.": vae.taesd_encoder, "taesd_decoder.": vae.taesd_decoder}
    tensors = _all_tensors(parts, torch.Generator().manual_seed(0))
    _write(tensors | {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}, path)


def _all_tensors(parts, generator):
    return {name: value for prefix, part in parts.items() for name, value in _tensors(prefix, part, generator)}


def _write(tensors, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))

"""The frozen diffusion model under training: the only door between training and ComfyUI.

A private copy of the user's MODEL, since its weights are inference tensors through which nothing can
be trained, and since other nodes go on using the original.
"""

import copy
import hashlib
import json
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch.utils.checkpoint import checkpoint

from ..hypernet.embedding import driving_embedding
from ..hypernet.patch import patched_layers
from ..hypernet.targets import recognise, target_layers


class MissingEmbeddingError(ValueError):
    """The connected CLIP gives no pooled prompt embedding."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the host's CLIP encodes it: c drives H, `conditioning` is the host's own list."""

    text: str
    c: torch.Tensor
    conditioning: list


def encode(clip, text):
    """Encode one prompt outside inference mode. Raises `MissingEmbeddingError` without a pooled vector."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    entry = conditioning[0][1]
    c = driving_embedding(entry)
    if c is None:
        raise MissingEmbeddingError(
            "The connected CLIP gives no pooled prompt embedding, which is what drives the hypernet. Connect the CLIP "
            "of a Stable Diffusion 1.x, 2.x or XL checkpoint."
        )
    return EncodedPrompt(text, c.clone(), [[conditioning[0][0].clone(), dict(entry)]])


def out_of_memory_errors():
    """The exception types that mean that the GPU's memory ran out."""
    return (comfy.model_management.OOM_EXCEPTION, torch.OutOfMemoryError)


def lora_fingerprint(model):
    """A hash of the LoRAs and other weight patches on a ModelPatcher, "" when there are none."""
    if not model.patches:
        return ""
    patches = {key: _content(patches) for key, patches in model.patches.items()}
    return hashlib.sha256(json.dumps(patches, sort_keys=True).encode()).hexdigest()[:16]


def _content(value):
    """What a weight patch consists of as JSON values; of a tensor its shape and sums."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().double()
        return [list(value.shape), f"{numbers.sum():.6g}", f"{numbers.abs().sum():.6g}"]
    if hasattr(value, "weights"):
        return [type(value).__name__, _content(value.weights)]
    if isinstance(value, list | tuple):
        return [_content(part) for part in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _private_copy(model):
    """A ModelPatcher over copied weights, with the user's LoRAs and sampling settings, without wrappers."""
    comfy.model_management.unload_all_models()
    if getattr(model, "is_dynamic", lambda: False)():
        # Weights that are paged in on demand can't be copied; the host reloads them from the file.
        model = model.clone(disable_dynamic=True, force_deepcopy=True)
        base = model.model
    else:
        # The configuration is data that both may share, and the current patcher belongs to the original.
        shared = {id(model.model.model_config): model.model.model_config}
        base = copy.deepcopy(model.model, {id(getattr(model.model, "current_patcher", None)): None, **shared})
    base.requires_grad_(False)
    private = ModelPatcher(base, model.load_device, model.offload_device)
    private.patches = {key: list(patches) for key, patches in model.patches.items()}
    private.object_patches = dict(model.object_patches)
    if base.get_dtype() != torch.float32:
        bf16 = comfy.model_management.should_use_bf16(model.load_device)
        private.set_model_compute_dtype(torch.bfloat16 if bf16 else torch.float32)
    return private


class FrozenModel:
    """A diffusion model that predicts, with or without factors, and never changes.

    model: the user's MODEL (ModelPatcher). checkpointing: whether training through it keeps only the
    inputs of its blocks. Raises `targets.UnsupportedModelError` for other families before anything is
    copied.
    """

    def __init__(self, model, checkpointing=False):
        self.checkpointing = checkpointing
        self.family = recognise(model.model)
        self.layers = target_layers(model.model, self.family)
        self.patcher = _private_copy(model)
        self.device = model.load_device

    @property
    def network(self):
        """The diffusion network itself."""
        return self.patcher.model.diffusion_model

    def load(self):
        """Bring the whole model onto the compute device."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)

    def release(self):
        """Give the private copy's memory back."""
        comfy.model_management.unload_all_models()

    def noise(self, count, height, width, generator):
        """Start noise for `count` pictures of height x width pixels, (count, channels, h/8, w/8) on the CPU."""
        channels = self.patcher.model.latent_format.latent_channels
        return torch.randn(count, channels, height // 8, width // 8, generator=generator)

    def rollout(self, prompt, empty, noise, steps, guidance, keep):
        """Run the sampler on a prompt and note the noisy latents on the way.

        noise: (n, channels, h, w). keep: indices of the steps to note. Returns a list of (z, sigma)
        with z (n, channels, h, w) on the CPU in the model's own latent space and sigma a float.
        """
        noted = []
        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)

        def note(step, denoised, x, total):
            if step in keep:
                noted.append((x.detach().to("cpu", torch.float32).clone(), sigmas[step].item()))

        self._sample(self.patcher, prompt, empty, noise, sigmas, guidance, note)
        return noted

    def _sample(self, patcher, prompt, empty, noise, sigmas, guidance, callback=None):
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(prompt.conditioning, empty.conditioning)
        guider.set_cfg(guidance)
        sampler = comfy.samplers.sampler_object("euler")
        latent = torch.zeros_like(noise)
        with torch.no_grad():
            return guider.sample(noise, latent, sampler, sigmas, callback=callback, disable_pbar=True, seed=0)

    def sample(self, patcher, prompt, empty, noise, steps, guidance):
        """Latents (n, channels, h, w) of a prompt from `patcher`, which is this model or a patched clone of it."""
        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
        return self._sample(patcher, prompt, empty, noise, sigmas, guidance)

    def model_conds(self, prompt, noise):
        """What the network is given for a prompt: a dict of the host's COND objects for one row."""
        converted = comfy.sampler_helpers.convert_cond(prompt.conditioning)
        base = self.patcher.model
        (entry,) = comfy.samplers.encode_model_conds(base.extra_conds, converted, noise[:1], self.device, "positive")
        return {
            name: cond.process_cond(batch_size=1, device=self.device, area=None)
            for name, cond in entry["model_conds"].items()
        }

    def predict(self, z, sigma, conds, factors=None):
        """The model's prediction e at z: the noise for SD, whatever the parametrisation of its network.

        z: (n, channels, h, w) and sigma: (n,), both on the device; conds: one `model_conds` dict a
        row; factors: one `Factors` a target layer for those n rows, or None for the frozen model.
        Returns (n, channels, h, w) fp32, differentiable in the factors.
        """
        merged = {name: cond.concat([other[name] for other in conds[1:]]) for name, cond in conds[0].items()}
        options = {"sigmas": sigma, "cond_or_uncond": [0]}
        with ExitStack() as stack:
            if factors is not None:
                rows = torch.arange(z.shape[0], device=z.device)
                patched = partial(patched_layers, self.network, self.layers, rows, factors, z.shape[0])
                stack.enter_context(patched())
                if self.checkpointing:
                    stack.enter_context(checkpointed(self.network, patched))
            denoised = self.patcher.model.apply_model(z, sigma, transformer_options=options, **merged)
        return (z - denoised.float()) / sigma.view(-1, 1, 1, 1)


@contextmanager
def checkpointed(network, patched):
    """While open, the blocks of a UNet keep only their inputs for backward and run again for the rest.

    Costs about a third more time and saves most of the memory of training. patched: makes the context
    in which a block runs again, since backward comes after the deltas of this call are gone.
    """
    blocks = [
        layer
        for part in (*network.input_blocks, network.middle_block, *network.output_blocks)
        if part is not None
        for layer in part
        if any(True for _ in layer.children())
    ]
    try:
        for block in blocks:
            block.forward = _rerun(block.forward, patched)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _rerun(forward, patched):
    def rerun(*args, **kwargs):
        contexts = {"context_fn": lambda: (nullcontext(), patched())}
        return checkpoint(forward, *args, use_reentrant=False, **contexts, **kwargs)

    return rerun

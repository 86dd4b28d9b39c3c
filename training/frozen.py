"""The frozen diffusion model under training: the only door between training and ComfyUI.

A private copy of the user's MODEL, since its weights are inference tensors through which nothing can
be trained, and since other nodes go on using the original.
"""

import copy
import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..hypernet.embedding import driving_embedding
from ..hypernet.factors import select
from ..hypernet.families import POOLED
from ..hypernet.patch import patched_layers
from ..hypernet.targets import recognise, target_layers
from ..hypernet.tokens import with_embedding
from .blocks import running
from .drawing import latent_noise, with_guidance


class MissingEmbeddingError(ValueError):
    """The connected CLIP gives no pooled prompt embedding."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the host's CLIP encodes it: c drives H, `conditioning` is the host's own list."""

    text: str
    c: torch.Tensor
    conditioning: list


def encode(clip, text, source=POOLED):
    """Encode one prompt outside inference mode; `source` is what drives H, as `families` has it.

    Raises `MissingEmbeddingError` when the encoder gives no such vector.
    """
    states, entry = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
    c = driving_embedding(with_embedding({**entry, "cross_attn": states}, source))
    if c is None:
        raise MissingEmbeddingError(
            "The connected CLIP gives no pooled prompt embedding, which is what drives the hypernet. Connect the CLIP "
            "that belongs to the model; for Flux.1 and Stable Diffusion 3 it must include CLIP-L."
        )
    entry = {name: value.clone() if torch.is_tensor(value) else value for name, value in entry.items()}
    return EncodedPrompt(text, c.clone(), [[states.clone(), entry]])


@contextmanager
def differentiable():
    """While open, also through backward, the host's networks use operations that gradients go through.

    Newer hosts swap faster ones in otherwise, which have no gradients.
    """
    former = getattr(comfy.model_management, "in_training", None)
    if former is None:
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = former


def skipping_last_layer(clip):
    """A clone of a CLIP that gives the token states of its last layer but one, or None if those are the same.

    They are the same where that layer is the usual one, as in SDXL, and in encoders without such a choice.
    """
    skipping = clip.clone()
    skipping.clip_layer(-2)
    usual, other = (encode(version, "").conditioning[0][0] for version in (clip, skipping))
    return None if torch.equal(usual, other) else skipping


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

    @property
    def blocks(self):
        """The modules that run again for backward when checkpointing."""
        return [
            module
            for name, module in self.network.named_modules()
            if re.fullmatch(self.family.blocks, name) and any(True for _ in module.children())
        ]

    def load(self):
        """Bring the whole model onto the compute device.

        In parts won't do: what the host streams in goes through buffers that it uses again, while
        backward still needs them.
        """
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)

    def release(self):
        """Give the private copy's memory back."""
        comfy.model_management.unload_all_models()

    def noise(self, count, height, width, generator):
        """Start noise as `drawing.latent_noise` makes it."""
        return latent_noise(self.patcher.model.latent_format, count, height, width, generator)

    def memory(self, hypernet, step):
        """Roughly the bytes that training needs: (model, hypernet with its optimiser, one `step`)."""
        numbers = sum(parameter.numel() for parameter in hypernet.parameters())
        return self.patcher.model_size(), 4 * 4 * numbers, int(step)

    def diffusion_memory(self, noise):
        """Roughly the bytes of one step of training through the network on `noise`.

        Four times what the host reckons for drawing as many pictures at once (forward, and a block's own
        values and gradients in backward), without checkpointing as often as the network has blocks. A rule
        of thumb, not a measurement.
        """
        drawing = self.patcher.model.memory_required(list(noise.shape))
        return 4 * drawing * (1 if self.checkpointing else max(1, len(self.blocks) // 4))

    def attention_memory(self, batch, tokens):
        """Roughly the bytes of one step of the attention objective on `batch` prompts of `tokens`.

        Each layer keeps two fp32 values an output: by what it should change, and for backward the error.
        """
        return 2 * 4 * batch * tokens * sum(layer.outputs for layer in self.layers)

    def rollout(self, prompt, empty, noise, steps, guidance, keep):
        """Run the sampler on a prompt and note the noisy latents on the way.

        noise: as `noise` makes it. keep: indices of the steps to note. guidance: the CFG scale, or the
        network's own guidance input where it has one. Returns a list of (z, sigma) with z of the shape
        of noise, on the CPU in the model's own latent space, and sigma a float.
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
        guider.set_conds(self._guided(prompt, guidance), empty.conditioning)
        guider.set_cfg(1.0 if self.family.distilled else guidance)
        sampler = comfy.samplers.sampler_object("euler")
        latent = torch.zeros_like(noise)
        with torch.no_grad():
            return guider.sample(noise, latent, sampler, sigmas, callback=callback, disable_pbar=True, seed=0)

    def sample(self, patcher, prompt, empty, noise, steps, guidance):
        """Latents, of the shape of noise, of a prompt from `patcher`, which is this model or a patched clone of it."""
        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
        return self._sample(patcher, prompt, empty, noise, sigmas, guidance)

    def _guided(self, prompt, guidance):
        """The host's conditioning of a prompt, with the guidance that the network itself takes, if it does."""
        if guidance is None or not self.family.distilled:
            return prompt.conditioning
        return with_guidance(prompt.conditioning, guidance)

    def model_conds(self, prompt, noise, guidance=None):
        """What the network is given for a prompt: a dict of the host's COND objects for one row."""
        converted = comfy.sampler_helpers.convert_cond(self._guided(prompt, guidance))
        base = self.patcher.model
        (entry,) = comfy.samplers.encode_model_conds(base.extra_conds, converted, noise[:1], self.device, "positive")
        return {
            name: cond.process_cond(batch_size=1, device=self.device, area=None)
            for name, cond in entry["model_conds"].items()
        }

    def predict(self, z, sigma, conds, factors=None):
        """The model's prediction e = (z - x0) / sigma at z, whatever the parametrisation of its network.

        For SD, where z = x0 + sigma noise, this is the noise; for flow-matching families, where
        z = (1 - sigma) x0 + sigma noise, it is the velocity noise - x0. Either way the picture that the
        sampler heads for, x0 = z - sigma e, is linear in e, and so is a target mixed of predictions.
        z: of the shape of `noise`, and sigma: (n,), both on the device; conds: one `model_conds` dict a
        row; factors: one `Factors` a target layer for those n rows, or None for the frozen model.
        Returns fp32 of the shape of z, differentiable in the factors; backward must come within
        `differentiable`.
        """
        batches = _batches(conds)
        if len(batches) == 1:
            return self._predict(z, sigma, conds, factors)
        parts = []
        for rows in batches:
            own = None if factors is None else select(factors, rows)
            parts.append(self._predict(z[rows], sigma[rows], [conds[row] for row in rows], own))
        order = torch.tensor([row for rows in batches for row in rows]).argsort()
        return torch.cat(parts)[order.to(z.device)]

    def _predict(self, z, sigma, conds, factors):
        merged = {name: cond.concat([other[name] for other in conds[1:]]) for name, cond in conds[0].items()}
        call = partial(self.patcher.model.apply_model, z, sigma, **merged)
        options = {"sigmas": sigma, "cond_or_uncond": [0]}
        if factors is None:
            denoised = call(transformer_options=options)
        else:
            rows = torch.arange(z.shape[0], device=z.device)
            patched = partial(patched_layers, self.network, self.layers, rows, factors, z.shape[0])
            with running(patched, self.blocks, self.checkpointing, self.family.in_place):
                denoised = call(transformer_options=options)
        return (z - denoised.float()) / sigma.view(-1, *[1] * (z.dim() - 1))


def _batches(conds):
    """The rows that may share a call of the network: lists of indices. Prompts of other lengths may not."""
    batches = []
    for row, own in enumerate(conds):
        for batch in batches:
            first = conds[batch[0]]
            if first.keys() == own.keys() and all(first[name].can_concat(own[name]) for name in own):
                batch.append(row)
                break
        else:
            batches.append([row])
    return batches

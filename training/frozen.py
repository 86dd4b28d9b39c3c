"""The frozen diffusion model under training: with ``sampling`` the only door between training and ComfyUI.

A private copy of the user's MODEL, since its weights are inference tensors through which nothing can
be trained, and since other nodes go on using the original.
"""

import copy
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import Module

from ..hypernet.factors import Factors, select
from ..hypernet.rows import patched_layers
from ..hypernet.targets import recognise, target_layers
from .blocks import running
from .encode import EncodedPrompt
from .sampling import Drawing, latent_noise, sample, with_guidance

# What the network is given for one row: names to the host's COND objects.
Conds = dict[str, Any]


@contextmanager
def differentiable() -> Generator[None]:
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


def out_of_memory_errors() -> tuple[type[BaseException], ...]:
    """The exception types of a GPU without memory left."""
    return (comfy.model_management.OOM_EXCEPTION, torch.OutOfMemoryError)


def _private_copy(model: ModelPatcher) -> ModelPatcher:
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

    model: the user's MODEL. checkpointing: whether training through it keeps only the
    inputs of its blocks. Raises `targets.UnsupportedModelError` for other families before anything is
    copied.
    """

    def __init__(self, model: ModelPatcher, checkpointing: bool = False) -> None:
        self.checkpointing = checkpointing
        self.family = recognise(model.model)
        self.layers = target_layers(model.model, self.family)
        self.patcher = _private_copy(model)
        self.device = model.load_device

    @property
    def network(self) -> Module:
        """The diffusion network itself."""
        return self.patcher.model.diffusion_model

    @property
    def blocks(self) -> list[Module]:
        """The modules that run again for backward when checkpointing."""
        return [
            module
            for name, module in self.network.named_modules()
            if re.fullmatch(self.family.blocks, name) and any(True for _ in module.children())
        ]

    @property
    def target_modules(self) -> list[Module]:
        """The target layers themselves, in the order of `layers`."""
        return [self.network.get_submodule(layer.name) for layer in self.layers]

    def load(self) -> None:
        """Bring the whole model onto the compute device.

        In parts won't do: what the host streams in goes through buffers that it uses again, while
        backward still needs them.
        """
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)

    def release(self) -> None:
        """Give the private copy's memory back."""
        comfy.model_management.unload_all_models()

    def noise(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Start noise as `sampling.latent_noise` makes it."""
        return latent_noise(self.patcher.model.latent_format, count, height, width, generator)

    def rollout(
        self, prompt: EncodedPrompt, empty: EncodedPrompt, noise: Tensor, steps: int, guidance: float, keep: set[int]
    ) -> list[tuple[Tensor, float]]:
        """Run the sampler on a prompt and collect noisy latents on the way.

        noise: as `noise` makes it. keep: indices of the steps to collect. guidance: the CFG scale, or the
        network's own guidance input where it has one. Returns a list of (z, sigma) with z of the shape
        of noise, on the CPU in the model's own latent space, and sigma a float.
        """
        latents = []
        drawing = Drawing(steps, guidance)
        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, drawing.scheduler, steps)

        def collect(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            if step in keep:
                latents.append((x.detach().to("cpu", torch.float32).clone(), sigmas[step].item()))

        with torch.no_grad():
            sample(self.patcher, prompt.conditioning, empty.conditioning, noise, drawing, collect)
        return latents

    def model_conds(self, prompt: EncodedPrompt, noise: Tensor, guidance: float | None = None) -> Conds:
        """The network's inputs for a prompt, the host's COND objects for one row."""
        conditioning = prompt.conditioning
        if guidance is not None and self.family.distilled:
            conditioning = with_guidance(conditioning, guidance)
        converted = comfy.sampler_helpers.convert_cond(conditioning)
        base = self.patcher.model
        (entry,) = comfy.samplers.encode_model_conds(base.extra_conds, converted, noise[:1], self.device, "positive")
        return {
            name: cond.process_cond(batch_size=1, device=self.device, area=None)
            for name, cond in entry["model_conds"].items()
        }

    def predict(
        self, z: Tensor, sigma: Tensor, conds: Sequence[Conds], factors: Sequence[Factors] | None = None
    ) -> Tensor:
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
            of_rows = None if factors is None else select(factors, rows)
            parts.append(self._predict(z[rows], sigma[rows], [conds[row] for row in rows], of_rows))
        order = torch.tensor([row for rows in batches for row in rows]).argsort()
        return torch.cat(parts)[order.to(z.device)]

    def _predict(self, z: Tensor, sigma: Tensor, conds: Sequence[Conds], factors: Sequence[Factors] | None) -> Tensor:
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


def _batches(conds: Sequence[Conds]) -> list[list[int]]:
    """The rows that may share a call of the network: lists of indices. Prompts of other lengths may not."""
    batches: list[list[int]] = []
    for row, cond in enumerate(conds):
        for batch in batches:
            first = conds[batch[0]]
            if first.keys() == cond.keys() and all(first[name].can_concat(cond[name]) for name in cond):
                batch.append(row)
                break
        else:
            batches.append([row])
    return batches

"""The frozen diffusion model under training: with ``sampling`` the only door between training and ComfyUI.

Where training goes through the network, it is a private copy of the user's MODEL, since the weights of that are
inference tensors through which nothing can be trained, and since other nodes go on using it. The attention
objective only asks the target layers for their outputs, and takes those of the user's MODEL.
"""

import copy
import re
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn import Module

from ..hypernet.factors import Factors, select
from ..hypernet.rows import patched_layers
from ..hypernet.targets import TargetLayer, recognise, takes_guidance, target_layers
from .blocks import running
from .encode import EncodedPrompt
from .loop import TrainingError
from .sampling import Drawing, latent_noise, sample, with_guidance

# What the network is given for one row: names to the host's COND objects.
Conds = dict[str, Any]
_OBJECTIVE = "an objective other than attention"
# What a patcher keeps of the weights that it was made over, by name; for other weights it starts empty.
_OF_THE_ORIGINAL: dict[str, Any] = {
    "backup": {},
    "backup_buffers": {},
    "object_patches_backup": {},
    "hook_backup": {},
    "pinned": set(),
    "injections": {},
    "additional_models": {},
    "is_injected": False,
    "cached_patcher_init": None,
}


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


def _is_dynamic(model: ModelPatcher) -> bool:
    """Whether the host pages the weights in on demand; older hosts never do."""
    return getattr(model, "is_dynamic", lambda: False)()


def check_copyable(model: ModelPatcher) -> None:
    """Raise `TrainingError` for a MODEL of which no copy can be made, with what to do instead."""
    if not _is_dynamic(model):
        return
    if getattr(model, "cached_patcher_init", None) is None:
        raise TrainingError(
            f"Train Erasure, 'model': {_OBJECTIVE} needs a copy of the model, and ComfyUI can't load this one a second "
            "time, since the node that loaded it doesn't say how. Load the model with a loader of ComfyUI's own, or "
            "start ComfyUI with --disable-dynamic-vram."
        )
    if model.injections:
        raise TrainingError(
            f"Train Erasure, 'model': {_OBJECTIVE} needs a copy of the model, and what {', '.join(model.injections)} "
            "adds to it can't be copied while ComfyUI pages weights in. Load the LoRA with a loader that isn't of the "
            "bypass kind, or start ComfyUI with --disable-dynamic-vram."
        )


def _clean(patcher: ModelPatcher) -> ModelPatcher:
    """The same patcher without what other nodes want to happen while pictures are drawn."""
    patcher.model_options = {"transformer_options": {}}
    patcher.wrappers = WrappersMP.init_wrappers()
    return patcher


def _users_own(model: ModelPatcher) -> ModelPatcher:
    """A patcher over the user's own weights, of the same class and with its LoRAs."""
    comfy.model_management.unload_all_models()
    return _clean(model.clone())


def _private_copy(model: ModelPatcher) -> ModelPatcher:
    """A patcher over copied weights, of the same class and with the user's LoRAs and sampling settings."""
    check_copyable(model)
    comfy.model_management.unload_all_models()
    if _is_dynamic(model):
        # Weights that are paged in on demand can't be copied; the host reloads them from the file.
        private = _clean(model.clone(disable_dynamic=True, force_deepcopy=True))
    else:
        private = _clean(model.clone())
        private.model, private.object_patches = _copied_network(model)
        for name, empty in _OF_THE_ORIGINAL.items():
            if hasattr(private, name):  # older hosts have fewer of them
                setattr(private, name, copy.copy(empty))
    private.model.requires_grad_(False)
    if private.model.get_dtype() != torch.float32:
        bf16 = comfy.model_management.should_use_bf16(model.load_device)
        private.set_model_compute_dtype(torch.bfloat16 if bf16 else torch.float32)
    return private


def _copied_network(model: ModelPatcher) -> tuple[Any, dict[str, Any]]:
    """Copies of the host's base model and of its object patches.

    Bypass LoRAs replace what a layer computes; in the copy they are in force for good.
    """
    # The configuration is data that both may share, and the current patcher belongs to the original.
    shared: dict[int, Any] = {id(model.model.model_config): model.model.model_config}
    patcher = model.clone()
    patcher.eject_model()  # it may still count as injected, from a sampling that is over
    patcher.inject_model()
    try:
        shared[id(getattr(model.model, "current_patcher", None))] = None
        base, patches = copy.deepcopy((model.model, model.object_patches), shared)
    finally:
        patcher.eject_model()
    replaced = {f"{name}.forward": module.__dict__.get("forward") for name, module in base.named_modules()}
    for name, value in (replaced | patches).items():
        # A method is copied with its object; a function goes on calling the original.
        if isinstance(value, FunctionType):
            raise TrainingError(
                f"Train Erasure, 'model': another node has replaced '{name}', and {_OBJECTIVE} needs a copy of the "
                "model, which can't have that. Connect the model as it is before that node."
            )
    return base, patches


class FrozenModel:
    """A diffusion model that predicts, with or without factors, and never changes.

    model: the user's MODEL. checkpointing: whether training through it keeps only the inputs of its blocks.
    copied: whether the weights are a copy, which gradients can go through, or the user's own. layers: those that
    factors are for, by default all target layers. Raises `targets.UnsupportedModelError` for other families and
    `TrainingError` as `check_copyable`, before anything is copied.
    """

    def __init__(
        self,
        model: ModelPatcher,
        checkpointing: bool = False,
        copied: bool = True,
        layers: tuple[TargetLayer, ...] | None = None,
    ) -> None:
        self.checkpointing, self.copied = checkpointing, copied
        self.family = recognise(model.model)
        self.layers = target_layers(model.model, self.family) if layers is None else layers
        self.patcher = _private_copy(model) if copied else _users_own(model)
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

    def modules(self, names: Sequence[str]) -> tuple[Module, ...]:
        """Those of the network's modules `names` that it has: some are there in some networks of a family only."""
        present = dict(self.network.named_modules())
        return tuple(present[name] for name in names if name in present)

    def load(self) -> None:
        """Bring the model onto the compute device, a copy as a whole.

        In parts won't do for a copy: what the host streams in goes through buffers that it uses again, while
        backward still needs them.
        """
        with self.without_gradients():
            comfy.model_management.load_models_gpu([self.patcher], force_full_load=self.copied)

    def release(self) -> None:
        """Give the memory back."""
        comfy.model_management.unload_all_models()

    def without_gradients(self) -> AbstractContextManager[object]:
        """To load and draw in: as nodes run, but weights that are loaded into a copy stay ones to train through."""
        return torch.no_grad() if self.copied else torch.inference_mode()

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
        if guidance is not None and takes_guidance(self.patcher.model, self.family):
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
            patched = partial(patched_layers, self.network, self.layers, rows, factors)
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

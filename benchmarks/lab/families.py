"""The lab's models: what each is made of, begins from and learns."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sd
import torch
from torch import Tensor

from . import clip, epsilon, flow, flux, flux_text, model, storage, text, warm_start
from .batches import FLUX_SETS, FLUX_WEIGHTS, Batches, CaptionBatches, FluxBatches


def from_minilm(base: Any, encoder: comfy.sd.CLIP, batches: CaptionBatches) -> None:
    """Begin the SD model for CLIP from the one for MiniLM."""
    to_old = warm_start.to_minilm(encoder, list(batches.bank.kept))
    base.diffusion_model.load_state_dict(warm_start.carried_over(storage.load(model.BASE), to_old))
    old = model.load_model(model.BASE).model.diffusion_model
    warm_start.distil(base.diffusion_model, old, base.model_sampling.sigmas, batches, warm_start.STEPS)


def flux_from_minilm(base: Any, _encoder: comfy.sd.CLIP, batches: FluxBatches) -> None:
    """Begin the Flux for both encoders from the one that takes its pooled vector from MiniLM as well."""
    old = flux.load_model().model.diffusion_model.state_dict()
    name = "vector_in.in_layer.weight"
    base.diffusion_model.load_state_dict({**old, name: old[name] @ warm_start.pooled_map(list(batches.bank.kept))})


def pooled_from_states(base: Any, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """The Flux's loss where MiniLM gives both of its texts: the pooled vector is the mean of the token states."""
    z0, context = batch
    return flow.loss_of(base.diffusion_model, z0, context, text.pooled(context), generator)


class Family(NamedTuple):
    """What one of the lab's models is made of and learns from.

    weights: where they lie in the repository; build: the model with random weights; batches: of a folder of emoji
    packages; first: fills a model without weights; loss: of a model and a batch; trainable: open while it learns; rate:
    the highest learning rate.
    """

    weights: Path
    build: Callable[[], Any]
    load_clip: Callable[[], comfy.sd.CLIP]
    batches: Callable[[Path, comfy.sd.CLIP, torch.Generator], Any]
    first: Callable[[Any, comfy.sd.CLIP, Any], None]
    loss: Callable[[Any, Any, torch.Generator], Tensor] = epsilon.loss_of
    trainable: Callable[[], AbstractContextManager[None]] = nullcontext
    rate: float = 3e-4


FAMILIES = {
    "sd15": Family(
        model.BASE,
        model.build,
        text.load_clip,
        Batches,
        lambda base, _encoder, _batches: epsilon.initialise(base.diffusion_model),
    ),
    "flux": Family(
        flux.PATH,
        flux.build,
        text.load_clip,
        partial(Batches, sets=FLUX_SETS, weights=FLUX_WEIGHTS, tokens=text.FLUX_TOKENS),
        lambda base, _encoder, _batches: flow.initialise(base.diffusion_model),
        pooled_from_states,
        flow.trainable,
        1e-3,
    ),
    "clip": Family(
        model.BASE_CLIP, partial(model.build, context_width=clip.WIDTH), clip.load_clip, CaptionBatches, from_minilm
    ),
    "flux_pair": Family(
        flux.PAIR,
        partial(flux.build, vector_width=clip.WIDTH),
        flux_text.load_clip,
        FluxBatches,
        flux_from_minilm,
        lambda base, batch, generator: flow.loss_of(base.diffusion_model, *batch, generator),
        flow.trainable,
    ),
}

"""Attaching H to a ComfyUI model: the only module that writes on a MODEL.

Three wrappers on a clone of the model patcher, and nothing on the network outside one call of it:

- around the whole sampling, every conditioning gets a row number, and the chunks of prompts in which the
  detector finds an erased concept get their factors from H;
- around each batch of conditionings, those that another node encoded while sampling get theirs as well;
- around each call of the network, the target layers add the deltas of each row to their output, each on
  the tokens of its own chunk.

The row numbers travel in `model_conds`, the one part of a conditioning that ComfyUI keeps right when
it copies conditionings for regional prompts, splits, tiles or reorders the batch.
"""

import logging
from typing import Any

import torch
from comfy.conds import CONDRegular
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from .base_model import same_base, weight_std
from .deltas import PromptDeltas
from .embedding import Entry
from .eraser import Eraser
from .files import check_fits
from .rows import BASE, RowTable, patched_layers
from .targets import recognise, target_layers

KEY = "unhype"

log = logging.getLogger("unhype")


class Erasure:
    """One eraser on one model: the three wrappers and the `PromptDeltas` they share.

    key: where this erasure keeps its rows, its own for every Apply on the same model so that several add up.
    """

    def __init__(self, deltas: PromptDeltas, key: str) -> None:
        self.deltas = deltas
        self.key = key
        self.targets = deltas.eraser.hypernet.config.layers

    def _row_numbers(self, conditionings: list[Entry], table: RowTable) -> list[list[int]]:
        """The row numbers of each conditioning, one for each prompt of its batch."""
        found, unknown = self.deltas.parts(conditionings)
        if unknown and not table.warned:
            table.warned = True
            log.info(*self.deltas.unknown_message())
        return [[table.number(parts) for parts in prompts] for prompts in found]

    def _tagged(self, conditionings: list[Entry], table: RowTable, base_only: bool = False) -> list[Entry]:
        """Copies of the conditionings that carry their row numbers; the originals are shared, so not written to."""
        new = [conditioning for conditioning in conditionings if self.key not in conditioning["model_conds"]]
        numbers = [[BASE]] * len(new) if base_only else self._row_numbers(new, table)
        numbers_of = {id(conditioning): own for conditioning, own in zip(new, numbers, strict=True)}
        tagged = []
        for conditioning in conditionings:
            if id(conditioning) in numbers_of:
                # On the CPU: the host batches conditionings only if their tensors share a device,
                # and reading a row number must not wait for the GPU.
                rows = CONDRegular(torch.tensor(numbers_of[id(conditioning)]).unsqueeze(1))
                conditioning = {**conditioning, "model_conds": {**conditioning["model_conds"], self.key: rows}}
            tagged.append(conditioning)
        return tagged

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """OUTER_SAMPLE: number the rows of a whole sampling. Negative prompts always run the base model."""
        guider, table = executor.class_obj, RowTable()
        guider.model_options["transformer_options"][self.key] = table
        guider.conds = {
            name: self._tagged(conditionings, table, base_only="negative" in name)
            for name, conditionings in guider.conds.items()
        }
        return executor(*args, **kwargs)

    def calc_cond_batch(
        self,
        executor: Any,
        model: Any,
        conds: list[list[Entry] | None],
        x_in: Tensor,
        timestep: Tensor,
        model_options: Any,
    ) -> list[Tensor]:
        """CALC_COND_BATCH: number conditionings that a node encoded by hand while sampling."""
        options = model_options.get("transformer_options", {})
        if self.key not in options:
            options = {**options, self.key: RowTable()}
            model_options = {**model_options, "transformer_options": options}
        conds = [None if cond is None else self._tagged(cond, options[self.key]) for cond in conds]
        return executor(model, conds, x_in, timestep, model_options)

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kw: Any,
    ) -> Tensor:
        """APPLY_MODEL: add each row's delta while the network runs once."""
        rows = kw.pop(self.key, None)
        options = transformer_options or {}
        table = options.get(self.key)
        batch = None
        if rows is not None and table is not None:
            batch = table.stacked(tuple(rows.flatten().tolist()), x.device)
        if batch is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kw)
        rows, layers, masks = batch
        network = executor.class_obj.diffusion_model
        with patched_layers(network, self.targets, rows, layers, x.shape[0], masks, c_crossattn):
            return executor(x, t, c_concat, c_crossattn, control, options, **kw)

    def cleanup(self, *_: Any) -> None:
        """ON_CLEANUP: drop the factors when a sampling ends, also after an error."""
        self.deltas.cache.clear()


def is_erased(model: ModelPatcher) -> bool:
    """Whether a model has an eraser on it."""
    return any(str(key).startswith(KEY) for keys in model.wrappers.values() for key in keys)


def apply_erasure(
    model: ModelPatcher, eraser: Eraser, strength: float = 1.0, gate: bool = True, unknown: str = "base"
) -> ModelPatcher:
    """Return a clone of `model` with `eraser` on it; `model` is not touched.

    strength, gate, unknown: see `deltas.PromptDeltas`. At strength 0 the clone is the model itself. Raises
    `targets.UnsupportedModelError` or `HypernetFileError` when the hypernet does not fit.
    """
    family = recognise(model.model)
    layers = target_layers(model.model, family)
    check_fits(eraser, family, layers)
    clone = model.clone()
    if strength <= 0:
        return clone
    if not same_base(eraser.record.base, weight_std(model, layers)):
        log.info(
            "UnHype: hypernet '%s' was trained on another %s model than this one. It works on close relatives; "
            "check a few prompts, or train it on this model.",
            eraser.name,
            family.title,
        )
    taken = {key for keys in clone.wrappers.values() for key in keys if str(key).startswith(KEY)}
    key = KEY if not taken else f"{KEY}_{len(taken) + 1}"
    erasure = Erasure(PromptDeltas(eraser, strength, gate, unknown, family.joint), key)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, erasure.key, erasure.outer_sample)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, erasure.key, erasure.calc_cond_batch)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, erasure.key, erasure.apply_model)
    clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, erasure.key, erasure.cleanup)
    return clone

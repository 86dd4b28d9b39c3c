"""Attaching H to a ComfyUI model: the only module that writes on a MODEL.

Three wrappers on a clone of the model patcher, and nothing on the network outside one call of it:

- around the whole sampling, every text gets a number, and the chunks of prompts in which the detector finds
  an erased concept get their factors from H;
- around each batch of conditionings, those that another node encoded while sampling get theirs as well;
- around each call of the network, the target layers add the deltas of each row to their output, each on
  the tokens of its own chunk. Text that no conditioning holds gets its deltas there (``doors``).

The numbers travel in `model_conds`, the one part of a conditioning that ComfyUI keeps right when
it copies conditionings for regional prompts, splits, tiles or reorders the batch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from typing import Any

import torch
from comfy.conds import CONDCrossAttn, CONDRegular
from comfy.model_management import cast_to_device
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor

from .base_model import same_base, weight_std
from .boxes import without_erased_boxes
from .controlnets import TEXT as CONTROL_TEXT
from .controlnets import with_control_texts
from .deltas import PromptDeltas, stricter
from .doors import Doors, lapsed
from .embedding import Entry
from .files import check_fits, same_eraser
from .guidance import negative_is_pushed_away
from .merged import AnyEraser
from .merged_deltas import deltas_of, joined
from .network_call import NetworkCall
from .targets import layers_like, recognise, target_layers
from .texts import SamplingTexts

try:  # newer ComfyUI lays out memory for the network's blocks in advance
    from comfy.model_prefetch import pause_malloc_graph
except ImportError:
    pause_malloc_graph = nullcontext

KEY = "unhype"
KINDS = (WrappersMP.OUTER_SAMPLE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)

log = logging.getLogger("unhype")


class Erasure:
    """One eraser on one model: the three wrappers and the `PromptDeltas` they share.

    key: where this erasure keeps its rows, its own for every Apply on the same model so that several add up. tell:
    takes the warning of a sampling in which something ran unprotected. joins: whether a later one merges with it.
    """

    def __init__(
        self, deltas: PromptDeltas, doors: Doors, key: str, tell: Callable[[str], None] | None, joins: bool
    ) -> None:
        self.deltas, self.doors, self.key, self.tell, self.joins = deltas, doors, key, tell, joins

    def _warn(self, message: str) -> None:
        log.warning(message)
        if self.tell is not None:
            self.tell(message)

    def _texts(self) -> SamplingTexts:
        return SamplingTexts(self.deltas, self._warn)

    def _tagged(self, conditionings: list[Entry], texts: SamplingTexts, exempt: bool = False) -> list[Entry]:
        """Copies of the conditionings that carry the numbers of their texts; the originals are shared, so not
        written to."""
        new = [conditioning for conditioning in conditionings if self.key not in conditioning["model_conds"]]
        numbers_of = {id(conditioning): own for conditioning, own in zip(new, texts.register(new, exempt), strict=True)}
        tagged = []
        for conditioning in conditionings:
            if id(conditioning) in numbers_of:
                # On the CPU: the host batches conditionings only if their tensors share a device,
                # and reading a number must not wait for the GPU.
                rows = CONDRegular(torch.tensor(numbers_of[id(conditioning)]).unsqueeze(1))
                conditioning = {**conditioning, "model_conds": {**conditioning["model_conds"], self.key: rows}}
                conditioning = conditioning if exempt else without_erased_boxes(conditioning, texts)
            tagged.append(conditioning)
        return tagged

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """OUTER_SAMPLE: number the texts of a whole sampling."""
        guider, texts = executor.class_obj, self._texts()
        guider.model_options["transformer_options"][self.key] = texts
        if type(guider) is CFGGuider:
            texts.pushes_away = lambda options: negative_is_pushed_away(guider.cfg, options)
        pushes_away = texts.pushes_away(guider.model_options)
        conds = {
            name: self._tagged(conditionings, texts, exempt=pushes_away and name == "negative")
            for name, conditionings in guider.conds.items()
        }
        guider.conds = self._with_control_texts(conds, texts)
        return executor(*args, **kwargs)

    def _with_control_texts(self, conds: dict[str, list[Entry]], texts: SamplingTexts) -> dict[str, list[Entry]]:
        """See `controlnets.with_control_texts`."""
        entries = [entry for conditionings in conds.values() for entry in conditionings]
        parts = [texts.parts_of(entry["model_conds"][self.key].cond.flatten().tolist()) for entry in entries]
        readable = iter(with_control_texts(entries, parts, texts))
        return {
            name: [_encoded(entry, next(readable)) for entry in conditionings] for name, conditionings in conds.items()
        }

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
            options = {**options, self.key: self._texts()}
            model_options = {**model_options, "transformer_options": options}
            conds = [None if cond is None else [self._unnumbered(entry) for entry in cond] for cond in conds]
        former = {
            str(number): self._counted(number, cond, options[self.key], model_options)
            for number, cond in enumerate(conds)
            if cond is not None
        }
        tagged = {number: self._tagged(cond, options[self.key]) for number, cond in former.items()}
        if any(self.key not in entry["model_conds"] for cond in former.values() for entry in cond):
            tagged = self._with_control_texts(tagged, options[self.key])
        conds = [tagged.get(str(number)) for number in range(len(conds))]
        return executor(model, conds, x_in, timestep, model_options)

    def _counted(self, number: int, cond: list[Entry], texts: SamplingTexts, options: Any) -> list[Entry]:
        """Conditionings, without their numbers where they are negative prompts that may be drawn after all.

        Another node may change the guidance or exchange the prompts inside a sampling. number: 0 is the positive.
        """
        if number > 0 and texts.pushes_away(options):
            return cond
        return [self._unnumbered(entry) if self._is_exempt(entry, texts) else entry for entry in cond]

    def _is_exempt(self, entry: Entry, texts: SamplingTexts) -> bool:
        rows = entry["model_conds"].get(self.key)
        return rows is not None and texts.any_exempt(rows.cond.flatten().tolist())

    def _unnumbered(self, entry: Entry) -> Entry:
        return {**entry, "model_conds": {name: own for name, own in entry["model_conds"].items() if name != self.key}}

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
        own, options, model = kw.pop(self.key, None), transformer_options or {}, executor.class_obj
        if c_crossattn is not None:
            # As the host is about to cast it, so that the layers can recognise the very tensor.
            c_crossattn = cast_to_device(c_crossattn, x.device, model.manual_cast_dtype or model.get_dtype())
        texts = options.get(self.key)
        if texts is None:  # another node has replaced the options; the numbers are of texts that are gone
            texts, own = self._texts(), None
        if not self.doors.fit(model.diffusion_model):
            lapsed(texts, "a second model draws a part of the picture, and the hypernet doesn't fit it")
            return executor(x, t, c_concat, c_crossattn, control, options, **kw)
        numbers = () if own is None else tuple(own.flatten().tolist())
        call = NetworkCall(texts, c_crossattn, numbers, x.device, pause_malloc_graph)
        with self.doors.open(model.diffusion_model, call):
            output = executor(x, t, c_concat, c_crossattn, control, options, **kw)
        self.doors.check(call)
        return output

    def cleanup(self, *_: Any) -> None:
        """ON_CLEANUP: drop the factors when a sampling ends, also after an error."""
        self.deltas.clear()


def _encoded(entry: Entry, readable: Entry) -> Entry:
    """The entry `readable` that took the place of `entry`, with its ControlNet's text as the network gets it."""
    if readable is entry:
        return entry
    text = CONDCrossAttn(readable[CONTROL_TEXT])
    return {**readable, "model_conds": {**readable["model_conds"], "crossattn_controlnet": text}}


def is_erased(model: ModelPatcher) -> bool:
    """Whether a model has an eraser on it."""
    return any(str(key).startswith(KEY) for keys in model.wrappers.values() for key in keys)


def apply_erasure(
    model: ModelPatcher,
    eraser: AnyEraser,
    strength: float = 1.0,
    gate: bool = True,
    unknown: str = "base",
    tell: Callable[[str], None] | None = None,
    joins: bool = False,
) -> ModelPatcher:
    """Return a clone of `model` with `eraser` on it; `model` is not touched.

    strength, gate, unknown: see `deltas.PromptDeltas`. At strength 0 the clone is the model itself. An eraser that
    the model carries already is applied once, with the stricter values of both. tell: takes a warning for the
    user, at most one a sampling, beside the log. joins: whether erasures that also join are merged into one, as if they
    had been applied at once, where otherwise their deltas add up. Raises `targets.UnsupportedModelError` or
    `HypernetFileError` when the hypernet does not fit.
    """
    family = recognise(model.model)
    layers = layers_like(model.model, family, eraser.config.layers)
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
    for former in erasures_among(clone.wrappers):
        if same_eraser(former.deltas.eraser, eraser):
            strength, gate, unknown = stricter(former.deltas, strength, gate, unknown)
            _remove(clone, former.key)
    deltas = deltas_of(eraser, strength, gate, unknown, family.joint)
    for former in erasures_among(clone.wrappers) if joins else ():
        if former.joins and former.deltas.eraser.config.layers == eraser.config.layers:
            deltas = joined(former.deltas, deltas)
            _remove(clone, former.key)
    taken = {erasure.key for erasure in erasures_among(clone.wrappers)}
    key = next(key for n in count(1) if (key := KEY if n == 1 else f"{KEY}_{n}") not in taken)
    doors = Doors(family, eraser.config.layers, target_layers(model.model, family))
    erasure = Erasure(deltas, doors, key, tell, joins)
    for kind, wrapper in zip(KINDS, (erasure.outer_sample, erasure.calc_cond_batch, erasure.apply_model), strict=True):
        clone.add_wrapper_with_key(kind, key, wrapper)
    clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, erasure.cleanup)
    return clone


def erasures_among(wrappers: Mapping[str, Any], kinds: Sequence[str] = KINDS) -> list[Erasure]:
    """The erasures among the wrappers of these kinds, the first applied first, each once.

    wrappers: of a MODEL, or of the transformer_options of a call. Another node may have dropped those of one kind.
    """
    of_kinds = (each for kind in kinds for each in wrappers.get(kind, {}).values())
    owners = (getattr(wrapper, "__self__", None) for each in of_kinds for wrapper in each)
    return list(dict.fromkeys(owner for owner in owners if isinstance(owner, Erasure)))


def _remove(model: ModelPatcher, key: str) -> None:
    for kind in KINDS:
        model.remove_wrappers_with_key(kind, key)
    model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)

"""Attaching H to a ComfyUI model: the only module that writes on a MODEL.

Three wrappers on a clone of the model patcher, and nothing on the network outside one call of it:

- around the whole sampling, every conditioning gets a row number, and the prompts that mean an
  erased concept get their factors from H;
- around each batch of conditionings, those that another node made by hand get theirs as well;
- around each call of the network, the target layers add the delta of each row to their output.

The row numbers travel in `model_conds`, the one part of a conditioning that ComfyUI keeps right when
it copies conditionings for regional prompts, splits, tiles or reorders the batch.
"""

import logging
import warnings
from collections import OrderedDict
from contextlib import contextmanager

import torch
from comfy.conds import CONDRegular
from comfy.patcher_extension import CallbacksMP, WrappersMP

from .deadzone import is_silent
from .embedding import content_key, driving_embedding
from .factors import Factors, lowrank_delta, select
from .files import HypernetFileError, check_fits
from .lora import factors_of
from .targets import recognise, target_layers, weight_spread
from .tokens import with_embedding

KEY = "unhype"
BASE = -1
_CACHED_PROMPTS = 256

log = logging.getLogger("unhype")


def add_to_rows(y, x, rows, factors, start=0):
    """y with the delta of each active row added; all other rows stay as they are, bit for bit.

    x: (n, ..., in) input and y: (n, ..., features) output of the layer; rows: (p,) long indices into n;
    factors: of those p rows, for the output features from `start` on. Differentiable in x and factors,
    y is not written to.
    """
    delta = lowrank_delta(x.index_select(0, rows), factors).to(y.dtype)
    changed = y.clone()
    changed.narrow(-1, start, delta.shape[-1]).index_add_(0, rows, delta)
    return changed


def _rows_of(x, rows, factors, batch):
    """Rows and factors for a layer that sees a multiple of the batch (each row repeated in place)."""
    if x.shape[0] == batch:
        return rows, factors
    times = x.shape[0] // batch
    spread = (rows.unsqueeze(1) * times + torch.arange(times, device=rows.device)).flatten()
    return spread, Factors(factors.A.repeat_interleave(times, 0), factors.B.repeat_interleave(times, 0))


@contextmanager
def patched_layers(network, targets, rows, layers, batch):
    """While open, the layers `targets` of `network` add the deltas `layers` to the rows `rows`.

    targets: `TargetLayer`s. rows: (p,) long, on the device that computes. layers: one `Factors` a
    target, for those p rows, on the same device. batch: rows of the network's input. The modules' own
    `forward` is back afterwards whatever happens in between; an earlier override by another node is
    kept and called.
    """
    former = []
    try:
        for target, factors in zip(targets, layers, strict=True):
            module = network.get_submodule(target.name)
            former.append((module, module.__dict__.get("forward")))
            module.forward = _with_delta(module.forward, rows, factors, batch, target.start)
        yield
    finally:
        for module, own in reversed(former):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.forward = own


def _with_delta(forward, rows, factors, batch, start):
    def forward_with_delta(x, *args, **kwargs):
        y = forward(x, *args, **kwargs)
        if x.shape[0] % batch:
            warnings.warn(
                "UnHype: another node changes the batch inside the model in a way that hides which prompt a row "
                "belongs to; those calls run without erasure.",
                stacklevel=2,
            )
            return y
        return add_to_rows(y, x, *_rows_of(x, rows, factors, batch), start)

    return forward_with_delta


class RowTable:
    """The prompts of one sampling: row number to factors. Lives in `transformer_options`.

    A class of its own, because the host copies and merges dicts and lists that it finds there.
    """

    def __init__(self):
        self.numbers = {}
        self.layers = []
        self._stacked = {}

    def number(self, key, layers):
        """The row number of the prompt `key`, whose factors (p = 1) are `layers`."""
        if key not in self.numbers:
            self.numbers[key] = len(self.layers)
            self.layers.append(layers)
        return self.numbers[key]

    def stacked(self, numbers, device):
        """Rows and their stacked factors on `device` for the row numbers of a batch.

        `numbers`: tuple with one row number, or BASE, a row. Returns ((p,) long rows, factors) or
        None when every row is BASE. Kept for the length of a sampling: each step asks the same.
        """
        if (numbers, device) not in self._stacked:
            rows = [row for row, number in enumerate(numbers) if number != BASE]
            layers = [
                Factors(torch.cat([f.A for f in same]).to(device), torch.cat([f.B for f in same]).to(device))
                for same in zip(*(self.layers[numbers[row]] for row in rows), strict=True)
            ]
            self._stacked[numbers, device] = (torch.tensor(rows, device=device), layers) if rows else None
        return self._stacked[numbers, device]


class Erasure:
    """One hypernet on one model: the three wrappers and the factors they share.

    strength: up to 1 it is the trajectory step s / S, above 1 it multiplies the delta. dead_zone:
    whether prompts under the file's threshold run the base model. key: where this erasure keeps its
    rows, its own for every Apply on the same model so that several add up.
    """

    def __init__(self, trained, strength, dead_zone, key):
        self.trained = trained
        self.strength = strength
        self.threshold = trained.record.dead_zone if dead_zone else 0.0
        self.key = key
        self.targets = trained.network.config.layers
        self._written = OrderedDict()

    def write(self, c):
        """Factors for embeddings c, (p, width): a list with one entry a prompt, None inside the dead zone."""
        network = self.trained.network
        if c.shape[1] != network.config.embedding_width:
            raise HypernetFileError(
                f"Apply Concept Erasure: hypernet '{self.trained.name}' reads embeddings of "
                f"{network.config.embedding_width} numbers, but this prompt was encoded with {c.shape[1]}. Use the "
                "CLIP that belongs to the model."
            )
        layers, norms = factors_of(self.trained, c.to(network.alpha.device), self.strength)
        silent = is_silent(norms, self.threshold).tolist()
        return [None if silent[p] else select(layers, slice(p, p + 1)) for p in range(c.shape[0])]

    def _row_numbers(self, conditionings, table):
        """The row number of each conditioning; all prompts that are new go through H in one pass."""
        source = self.trained.record.embedding
        embeddings = [driving_embedding(with_embedding(each, source)) for each in conditionings]
        if any(c is None for c in embeddings):
            log.info("UnHype: a conditioning carries no pooled prompt embedding; it runs the model unchanged.")
        keys = [None if c is None else content_key(c) for c in embeddings]
        new = {key: c for key, c in zip(keys, embeddings, strict=True) if key and key not in self._written}
        if new:
            self._written.update(zip(new, self.write(torch.stack(list(new.values()))), strict=True))
        numbers = []
        for key in keys:
            layers = self._written[key] if key else None
            numbers.append(BASE if layers is None else table.number(key, layers))
        while len(self._written) > _CACHED_PROMPTS:
            self._written.popitem(last=False)
        return numbers

    def _tagged(self, conditionings, table, base_only=False):
        """Copies of the conditionings that carry their row number; the originals are shared, so not written to."""
        new = [conditioning for conditioning in conditionings if self.key not in conditioning["model_conds"]]
        numbers = [BASE] * len(new) if base_only else self._row_numbers(new, table)
        number_of = {id(conditioning): number for conditioning, number in zip(new, numbers, strict=True)}
        tagged = []
        for conditioning in conditionings:
            if id(conditioning) in number_of:
                # On the CPU: the host batches conditionings only if their tensors share a device,
                # and reading a row number must not wait for the GPU.
                row = CONDRegular(torch.tensor([[number_of[id(conditioning)]]]))
                conditioning = {**conditioning, "model_conds": {**conditioning["model_conds"], self.key: row}}
            tagged.append(conditioning)
        return tagged

    def outer_sample(self, executor, *args, **kwargs):
        """OUTER_SAMPLE: number the rows of a whole sampling. Negative prompts always run the base model."""
        guider, table = executor.class_obj, RowTable()
        guider.model_options["transformer_options"][self.key] = table
        guider.conds = {
            name: self._tagged(conditionings, table, base_only="negative" in name)
            for name, conditionings in guider.conds.items()
        }
        return executor(*args, **kwargs)

    def calc_cond_batch(self, executor, model, conds, x_in, timestep, model_options):
        """CALC_COND_BATCH: number conditionings that a node encoded by hand while sampling."""
        options = model_options.get("transformer_options", {})
        if self.key not in options:
            options = {**options, self.key: RowTable()}
            model_options = {**model_options, "transformer_options": options}
        conds = [None if cond is None else self._tagged(cond, options[self.key]) for cond in conds]
        return executor(model, conds, x_in, timestep, model_options)

    def apply_model(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kw
    ):
        """APPLY_MODEL: add each row's delta while the network runs once."""
        rows = kw.pop(self.key, None)
        options = transformer_options or {}
        table = options.get(self.key)
        batch = None
        if rows is not None and table is not None:
            batch = table.stacked(tuple(rows.flatten().tolist()), x.device)
        if batch is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kw)
        with patched_layers(executor.class_obj.diffusion_model, self.targets, *batch, x.shape[0]):
            return executor(x, t, c_concat, c_crossattn, control, options, **kw)

    def cleanup(self, *_):
        """ON_CLEANUP: drop the factors when a sampling ends, also after an error."""
        self._written.clear()


def apply_erasure(model, trained, strength=1.0, dead_zone=True):
    """Return a clone of `model` (ModelPatcher) that erases what `trained` erases; `model` is not touched.

    At strength 0 the clone is the model itself. Raises `targets.UnsupportedModelError` or
    `HypernetFileError` when the hypernet does not fit.
    """
    family = recognise(model.model)
    layers = target_layers(model.model, family)
    check_fits(trained, family, layers)
    clone = model.clone()
    if strength <= 0:
        return clone
    if not same_base(trained, weight_spread(model, layers)):
        log.info(
            "UnHype: hypernet '%s' was trained on another %s model than this one. It works on close relatives; "
            "check a few prompts, or train it on this model.",
            trained.name,
            family.title,
        )
    taken = {key for keys in clone.wrappers.values() for key in keys if str(key).startswith(KEY)}
    erasure = Erasure(trained, strength, dead_zone, KEY if not taken else f"{KEY}_{len(taken) + 1}")
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, erasure.key, erasure.outer_sample)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, erasure.key, erasure.calc_cond_batch)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, erasure.key, erasure.apply_model)
    clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, erasure.key, erasure.cleanup)
    return clone


def same_base(trained, spread, tolerance=0.005):
    """Whether a model's `weight_spread` equals the one recorded in training, as far as both are known."""
    known = trained.record.base.get("weight_spread", [])
    if len(known) != len(spread):
        return True
    return all(abs(a - b) <= tolerance * max(abs(a), 1e-9) for a, b in zip(known, spread, strict=True))

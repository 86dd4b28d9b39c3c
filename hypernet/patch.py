"""Attaching H to a ComfyUI model: the only module that writes on a MODEL.

Three wrappers on a clone of the model patcher, and nothing on the network outside one call of it:

- around the whole sampling, every conditioning gets a row number, and the chunks of prompts that mean
  an erased concept get their factors from H;
- around each batch of conditionings, those that another node made by hand get theirs as well;
- around each call of the network, the target layers add the deltas of each row to their output, each on
  the tokens of its own chunk.

The row numbers travel in `model_conds`, the one part of a conditioning that ComfyUI keeps right when
it copies conditionings for regional prompts, splits, tiles or reorders the batch.
"""

import logging
import warnings

import torch
from comfy.conds import CONDRegular
from comfy.patcher_extension import CallbacksMP, WrappersMP

from .factors import Factors, lowrank_delta
from .files import check_fits
from .forwards import overridden
from .targets import recognise, target_layers, weight_spread
from .writer import Writer

KEY = "unhype"
BASE = -1

log = logging.getLogger("unhype")


class Spans:
    """Of each of p deltas, the tokens that it is for: `start` to `stop` of a prompt that is `length` long."""

    def __init__(self, spans, device):
        self.start, self.stop, self.length = torch.tensor(spans, device=device).T.unsqueeze(2)
        self._masks = {}

    def mask(self, tokens):
        """(p, tokens) bool. The host repeats a prompt's tokens where it batches prompts of several lengths."""
        if tokens not in self._masks:
            place = torch.arange(tokens, device=self.start.device) % self.length
            self._masks[tokens] = (place >= self.start) & (place < self.stop)
        return self._masks[tokens]


def add_to_rows(y, x, rows, factors, mask=None, start=0):
    """y with the delta of each active row added; all other rows stay as they are, bit for bit.

    x: (n, ..., in) input and y: (n, ..., features) output of the layer; rows: (p,) long indices into n;
    factors: of those p rows, for the output features from `start` on. mask: (p, tokens) bool, the tokens of
    x (n, tokens, in) that each delta is for, all of them by default. Differentiable in x and factors, y is
    not written to.
    """
    delta = lowrank_delta(x.index_select(0, rows), factors)
    if mask is not None:
        delta = delta.masked_fill(~mask.unsqueeze(-1), 0.0)
    changed = y.clone()
    changed.narrow(-1, start, delta.shape[-1]).index_add_(0, rows, delta.to(y.dtype))
    return changed


def _sources(x, rows, batch, read):
    """The row of the batch that each row of a layer's input x belongs to, (n,) long, -1 for none; None if unknown.

    read: (batch, tokens, in), what the network was given to read, or None. Packages add, repeat or split rows
    inside the network. Where a layer reads the prompt itself, rows are told by their tokens; of equal ones
    those with a delta count. Elsewhere (image tokens) rows that joined the batch are known to come last.
    """
    if read is not None and read.shape[0] == batch and x.shape[1:] == read.shape[1:]:
        same = (x.unsqueeze(1) == read.to(x).unsqueeze(0)).flatten(2).all(2).int()
        best, source = (same * 2 - same.index_fill(1, rows, 0)).max(1)
        return source.masked_fill(best == 0, -1)
    if x.shape[0] < batch:
        return None
    source = torch.arange(x.shape[0], device=x.device)
    return source.masked_fill(source >= batch, -1)


def patched_layers(network, targets, rows, layers, batch, spans=None, read=None):
    """While open, the layers `targets` of `network` add the deltas `layers` to the rows `rows`.

    targets: `TargetLayer`s. rows: (p,) long, on the device that computes. layers: one `Factors` a target, for
    those p rows, on the same device. batch: rows of the network's input. spans: the tokens of each delta, all
    of them by default. read: the tokens that the batch's rows read, if known. An override that another node put
    on a layer before is kept and called.
    """

    def patched():
        for target, factors in zip(targets, layers, strict=True):
            module = network.get_submodule(target.name)
            yield module, _with_delta(module.forward, rows, factors, batch, spans, read, target.start)

    return overridden(patched())


def _with_delta(forward, rows, factors, batch, spans, read, start):
    def forward_with_delta(x, *args, **kwargs):
        y = forward(x, *args, **kwargs)
        mask = None if spans is None else spans.mask(x.shape[1])
        if x.shape[0] == batch:
            return add_to_rows(y, x, rows, factors, mask, start)
        source = _sources(x, rows, batch, read)
        if source is None:
            warnings.warn(
                "UnHype: another node changes the batch inside the model in a way that hides which prompt a row "
                "belongs to; those calls run without erasure.",
                stacklevel=2,
            )
            return y
        own, delta = (source.unsqueeze(1) == rows).nonzero(as_tuple=True)
        own_mask = None if mask is None else mask[delta]
        return add_to_rows(y, x, own, Factors(factors.A[delta], factors.B[delta]), own_mask, start)

    return forward_with_delta


class RowTable:
    """The prompts of one sampling: row number to parts. Lives in `transformer_options`.

    A class of its own, because the host copies and merges dicts and lists that it finds there.
    """

    def __init__(self):
        self.numbers = {}
        self.prompts = []
        self.told = False
        self._stacked = {}

    def number(self, parts):
        """The row number of a prompt of these `Part`s; BASE when there are none."""
        if not parts:
            return BASE
        key = tuple(part[:4] for part in parts)
        if key not in self.numbers:
            self.numbers[key] = len(self.prompts)
            self.prompts.append(parts)
        return self.numbers[key]

    def stacked(self, numbers, device):
        """Rows, their stacked factors and their `Spans` on `device` for the row numbers of a batch.

        `numbers`: tuple with one row number, or BASE, a row. Returns ((p,) long rows, factors, spans), one
        of the p a part, or None when every row is BASE. spans is None when every part is a whole prompt.
        Kept for the length of a sampling: each step asks the same.
        """
        if (numbers, device) not in self._stacked:
            self._stacked[numbers, device] = self._stack(numbers, device)
        return self._stacked[numbers, device]

    def _stack(self, numbers, device):
        active = [(row, part) for row, n in enumerate(numbers) if n != BASE for part in self.prompts[n]]
        if not active:
            return None
        layers = [
            Factors(torch.cat([f.A for f in same]).to(device), torch.cat([f.B for f in same]).to(device))
            for same in zip(*(part.layers for _, part in active), strict=True)
        ]
        spans = [part[:3] for _, part in active]
        whole = all(stop - start == length for start, stop, length in spans)
        rows = torch.tensor([row for row, _ in active], device=device)
        return rows, layers, None if whole else Spans(spans, device)


class Erasure:
    """One hypernet on one model: the three wrappers and the `Writer` they share.

    key: where this erasure keeps its rows, its own for every Apply on the same model so that several add up.
    """

    def __init__(self, writer, key):
        self.writer = writer
        self.key = key
        self.targets = writer.trained.network.config.layers

    def _row_numbers(self, conditionings, table):
        """The row numbers of each conditioning, one for each prompt of its batch."""
        written, unknown = self.writer.parts(conditionings)
        if unknown and not table.told:
            table.told = True
            log.info(*self.writer.words_about_unknown())
        return [[table.number(parts) for parts in prompts] for prompts in written]

    def _tagged(self, conditionings, table, base_only=False):
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
        rows, layers, spans = batch
        network = executor.class_obj.diffusion_model
        with patched_layers(network, self.targets, rows, layers, x.shape[0], spans, c_crossattn):
            return executor(x, t, c_concat, c_crossattn, control, options, **kw)

    def cleanup(self, *_):
        """ON_CLEANUP: drop the factors when a sampling ends, also after an error."""
        self.writer.forget()


def apply_erasure(model, trained, strength=1.0, dead_zone=True, unknown="base"):
    """Return a clone of `model` (ModelPatcher) that erases what `trained` erases; `model` is not touched.

    strength, dead_zone, unknown: see `writer.Writer`. At strength 0 the clone is the model itself. Raises
    `targets.UnsupportedModelError` or `HypernetFileError` when the hypernet does not fit.
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
    key = KEY if not taken else f"{KEY}_{len(taken) + 1}"
    erasure = Erasure(Writer(trained, strength, dead_zone, unknown, family.joint), key)
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

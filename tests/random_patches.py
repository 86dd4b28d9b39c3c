"""Random attention patches for the tests: prompts, and what a patch makes of the rows and tokens of the context.

Each token is described by where it comes from, so that its delta is known without looking at its numbers.
"""

import random
from dataclasses import dataclass

import torch
from chunks import estimate
from comfy.patcher_extension import WrappersMP
from tiny import CONTEXT, TOKENS, seeded

# Texts begin alike, as a causal encoder's do.
ALIKE = 2
BEGINNING = torch.randn(ALIKE, CONTEXT, generator=seeded(70))
SCORES = {
    "cat": [2.0, 0.0],
    "dog": [0.0, 4.0],
    "kitten": [3.0, 0.0],
    "boat": [0.0, 0.0],
    "lamp": [-1.0, 0.5],
    "ship": [0.2, -0.3],
}
ERASED = ("cat", "dog", "kitten")
# Two chunks, and one whose encoder pads it with zeros.
TEXTS = (*SCORES, "boat+cat", "dog+lamp", "cat+0", "ship+boat")


def chunk_of(name):
    if name == "0":
        return torch.zeros(TOKENS, CONTEXT)
    states = torch.randn(TOKENS, CONTEXT, generator=seeded(80 + list(SCORES).index(name)))
    return torch.cat([BEGINNING, states[ALIKE:]])


def tokens_of(name):
    return torch.cat([chunk_of(part) for part in name.split("+")])


def conditioning(name):
    tokens = tokens_of(name)
    return [[tokens.unsqueeze(0), {"pooled_output": estimate(tokens[:TOKENS]).unsqueeze(0)}]]


@dataclass(frozen=True)
class Row:
    """A row of a layer's input as pieces (text, start, stop) one after the other."""

    pieces: tuple[tuple[str, int, int], ...]

    def tokens(self):
        return torch.cat([tokens_of(name)[start:stop] for name, start, stop in self.pieces])

    def places(self):
        """Of each token its chunk and the place in it."""
        return [place for name, start, stop in self.pieces for place in places_in(name)[start:stop]]

    def deltas(self, negative):
        """Of each token the chunk whose delta it gets, or None. negative: what the row was given, if a negative."""
        exempt = set(places_in(negative)) if negative else set()
        if not exempt.issubset(self.places()):
            exempt = set()  # not all of it is there, so it may be something else
        return [place[0] if place[0] in ERASED and place not in exempt else None for place in self.places()]


def places_in(name):
    return [(chunk, place) for chunk in name.split("+") for place in range(TOKENS)]


def whole(name):
    return name, 0, TOKENS * len(name.split("+"))


@dataclass(frozen=True)
class Graph:
    """Prompts, and operations (name, number, number, text) that a patch does to the rows of the batch.

    values_apart: values are made of the rows in another order than keys. one_by_one: a package calls the layers
    with a row at a time.
    """

    positives: tuple[str, ...]
    negative: str
    pictures: int
    operations: tuple[tuple[str, int, int, str], ...]
    values_apart: bool
    one_by_one: bool

    @property
    def mixes_rows(self):
        """Whether rows are mixed behind attention, so that the negative prompt may end in the positive one's."""
        return any(name in OF_ROWS for name, *_ in self.operations)


def _join_behind(rows, row, _, text):
    return [*rows, Row((whole(text),))]


def _join_before(rows, row, _, text):
    return [Row((whole(text),)), *rows]


def _change(rows, row, *pieces):
    return [*rows[:row], Row(pieces), *rows[row + 1 :]]


def _replace(rows, row, _, text):
    return _change(rows, row, whole(text))


def _lengthen(rows, row, _, text):
    return _change(rows, row, *rows[row].pieces, whole(text))


def _lengthen_in_front(rows, row, _, text):
    return _change(rows, row, whole(text), *rows[row].pieces)


def _lengthen_inside(rows, row, number, text):
    pieces = rows[row].pieces
    place = number % len(pieces)
    own, start, stop = pieces[place]
    cut = start + ALIKE + 1 + number % 3
    if cut >= stop:
        return rows
    inside = (own, start, cut), whole(text), (own, cut, stop)
    return _change(rows, row, *pieces[:place], *inside, *pieces[place + 1 :])


def _cut(rows, row, number, _):
    pieces = rows[row].pieces
    own, start, stop = pieces[-1]
    begin, end = start + number % 2, stop - number % 3
    # All chunks begin alike: of which one a few first tokens are can't be seen.
    if len(pieces) > 1 or stop - start < TOKENS or 0 < end % TOKENS <= ALIKE:
        return rows
    return _change(rows, row, (own, begin, end))


def _repeat(rows, *_):
    return rows + rows


def _reorder(rows, row, number, _):
    return random.Random(number).sample(rows, len(rows))


OPERATIONS = {
    "join behind": _join_behind,
    "join before": _join_before,
    "replace": _replace,
    "lengthen": _lengthen,
    "lengthen in front": _lengthen_in_front,
    "lengthen inside": _lengthen_inside,
    "cut": _cut,
    "repeat": _repeat,
    "reorder": _reorder,
}
# These change how many rows there are, so an output patch has to bring the pictures' rows back.
OF_ROWS = {"join behind", "join before", "repeat"}
# These take pieces out of texts, of which only those of the prompts can be known again.
OF_PROMPTS = {"lengthen inside", "cut"}


class Patch:
    """The attention patch of a graph. rows: what it made of the last context, for keys and values."""

    def __init__(self, graph):
        self.graph, self.rows = graph, {}

    def given(self, context, chunks):
        """The rows of the batch. chunks: 1 for the negative prompt, 0 for others."""
        names = {0: self.graph.positives, 1: (self.graph.negative,)}
        rows = []
        for number, tokens in enumerate(context):
            for name in names[chunks[number * len(chunks) // len(context)]]:
                own = tokens_of(name)
                count, rest = divmod(len(tokens), len(own))
                if not rest and torch.equal(own.repeat(count, 1), tokens):
                    rows.append(Row((whole(name),) * count))
                    break
        assert len(rows) == len(context)
        return rows

    def changed(self, rows):
        known = (*self.graph.positives, self.graph.negative)
        for name, row, number, text in self.graph.operations:
            row %= len(rows)
            if name in OF_PROMPTS and any(own not in known for own, _, _ in rows[row].pieces):
                continue
            rows = OPERATIONS[name](rows, row, number, text)
        return rows

    def __call__(self, q, keys, values, options):
        batch = len(keys)
        rows = self.changed(self.given(keys, options["cond_or_uncond"]))
        self.rows = {"to_k": rows, "to_v": rows[::-1] if self.graph.values_apart else rows}
        length = max(len(row.tokens()) for row in rows)
        keys, values = (
            torch.stack([torch.cat([row.tokens(), torch.zeros(length, CONTEXT)])[:length] for row in self.rows[layer]])
            for layer in ("to_k", "to_v")
        )
        return q[torch.arange(len(rows)) % batch], keys, values

    def output(self, n, options):
        batch = options["original_shape"][0]
        return torch.stack([n[row::batch].mean(0) for row in range(batch)])

    def on(self, model):
        clone = model.clone()
        clone.set_model_attn2_patch(self)
        if self.graph.mixes_rows:
            clone.set_model_attn2_output_patch(self.output)
        if self.graph.one_by_one:
            clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "one by one", one_by_one)
        return clone


def one_by_one(executor, *args, **kwargs):
    """As packages do that save memory: each row in a call of its own."""
    layers = [
        module for name, module in executor.class_obj.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))
    ]
    former = [module.__dict__.get("forward") for module in layers]

    def row_by_row(forward):
        return lambda x: torch.cat([forward(row) for row in x.split(1)])

    try:
        for module in layers:
            module.forward = row_by_row(module.forward)
        return executor(*args, **kwargs)
    finally:
        for module, own in zip(layers, former, strict=True):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.forward = own

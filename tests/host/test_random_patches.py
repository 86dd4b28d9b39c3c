"""Random attention patches: whatever rows and tokens they make of the context, each row's delta is that of its text.

A run of the suite draws two hundred. `python3 dev.py test tests/host/test_random_patches.py --patches 1000 --seed 7`
draws another number; hypothesis shrinks one that fails to the smallest that still does.

A patch is described by where each of its tokens comes from. The oracle adds the deltas by that description; the
pack sees nothing but the tokens.
"""

import random
from contextlib import contextmanager
from dataclasses import dataclass, replace

import hypothesis
import pytest
import torch
from chunks import REGRESSOR, estimate
from comfy.patcher_extension import WrappersMP
from hypothesis import strategies as st
from tiny import CONTEXT, POOLED, TOKENS, detector_scoring, overridden, sample, seeded, tiny_eraser, tiny_model
from torch.nn.functional import linear

from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import TextEncoder

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


@contextmanager
def calls_of(model):
    """Yields a clone and the list of (arguments, chunks, output) of the network's calls."""
    clone, calls = model.clone(), []

    def note(executor, x, t, c_concat, c_crossattn, control, options, **others):
        output = executor(x, t, c_concat, c_crossattn, control, options, **others)
        calls.append(((x.clone(), t.clone(), c_crossattn.clone()), list(options["cond_or_uncond"]), output.clone()))
        return output

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "noted", note)
    yield clone, calls


def replayed(model, patch, call):
    (x, t, context), chunks, _ = call
    options = {"patches": {"attn2_patch": [patch], "attn2_output_patch": [patch.output]}, "cond_or_uncond": chunks}
    return model.model.apply_model(x, t, c_crossattn=context, transformer_options=options)


def expected(model, eraser, patch, call):
    """The network's output with each token's delta added by hand, and whether there was any."""
    found, hooks, chunks, rows = [], [], call[1], len(call[0][0])
    factors = {name: eraser.factors(estimate(chunk_of(name)).unsqueeze(0)) for name in ERASED}

    def exempt(row):
        # Calls with fewer rows than the batch don't tell which row it is.
        if patch.graph.one_by_one or patch.graph.mixes_rows or row >= rows:
            return None
        return patch.graph.negative if chunks[row * len(chunks) // rows] == 1 else None

    def add(number, layer):
        def hook(_, inputs, y):
            y = y.clone()
            for row, described in enumerate(patch.rows[layer.name.rpartition(".")[2]]):
                names = described.deltas(exempt(row))
                for name in {*names} - {None}:
                    own, tokens = factors[name][number], [token for token, other in enumerate(names) if other == name]
                    y[row, tokens] += linear(linear(inputs[0][row, tokens], own.A[0]), own.B[0])
                    found.append(name)
            return y

        return hook

    for number, layer in enumerate(eraser.hypernet.config.layers):
        module = model.model.diffusion_model.get_submodule(layer.name)
        hooks.append(module.register_forward_hook(add(number, layer)))
    try:
        return replayed(model, patch, call), bool(found)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def eraser(model):
    c = torch.stack([estimate(chunk_of(name)) for name in SCORES])
    detector = detector_scoring(c, torch.tensor(list(SCORES.values()))).half().float()
    base = tiny_eraser(model, concepts=(("cat", "tree"), ("dog", "car")), detector=detector)
    record = replace(base.record, text_encoder=TextEncoder(TOKENS, [CONTEXT], 1, POOLED))
    return replace(base, record=record, regressor=REGRESSOR, concept_embeddings=c[:2].half().float())


GRAPHS = st.builds(
    Graph,
    positives=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3, unique=True).map(tuple),
    negative=st.sampled_from(["lamp", "cat", "dog+lamp"]),
    pictures=st.integers(1, 2),
    operations=st.lists(
        st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 7), st.integers(0, 5), st.sampled_from(TEXTS)),
        min_size=1,
        max_size=4,
    ).map(tuple),
    values_apart=st.booleans(),
    one_by_one=st.sampled_from([False, False, False, True]),
)


@torch.inference_mode()
def test_each_row_gets_the_delta_of_its_own_text(model, eraser, request, capsys):
    count, seed = request.config.getoption("patches"), request.config.getoption("seed")
    ran, erased = [], []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(GRAPHS)
    def check(graph):
        ran.append(graph)
        patch = Patch(graph)
        positive = [entry for name in graph.positives for entry in conditioning(name)]
        with calls_of(apply_erasure(patch.on(model), eraser)) as (clone, calls):
            sample(clone, positive, conditioning(graph.negative), pictures=graph.pictures, steps=1)
        for call in calls:
            base = replayed(model, patch, call)
            wanted, any_delta = expected(model, eraser, patch, call)
            erased.append(any_delta)
            change = (wanted - base).abs().max().item()
            assert (call[2] - wanted).abs().max().item() <= 1e-3 * change + 1e-4 * base.abs().max().item()
            if not any_delta and not graph.one_by_one:
                assert torch.equal(call[2], base)
        assert overridden(model) == []

    try:
        check()
    finally:
        with capsys.disabled():
            print(f"\n{len(ran)} random patches with seed {seed}, {sum(erased)} of {len(erased)} calls with deltas")
    assert len(ran) >= count
    assert len(erased) / 5 < sum(erased) < len(erased)

"""Random attention patches: whatever rows and tokens they make of the context, each row's delta is that of its text.

A run of the suite draws two hundred. `python3 dev.py test tests/host/test_random_patches.py --patches 1000 --seed 7`
draws another number; hypothesis shrinks one that fails to the smallest that still does.

The oracle adds the deltas by the description of a patch (`random_patches`); the pack sees nothing but the tokens.
"""

from contextlib import contextmanager
from dataclasses import replace

import hypothesis
import pytest
import torch
from chunks import REGRESSOR, estimate
from comfy.patcher_extension import WrappersMP
from hypothesis import strategies as st
from random_patches import ERASED, OPERATIONS, SCORES, TEXTS, Graph, Patch, chunk_of, conditioning
from tiny import CONTEXT, POOLED, TOKENS, detector_scoring, overridden, sample, tiny_eraser, tiny_model
from torch.nn.functional import linear

from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import TextEncoder


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

"""Newer ComfyUI lays out the memory of a network's blocks in advance: no tensor of ours that is made there outlives it.

Where one has to, it is made while ComfyUI's graph of the memory is paused.
"""

import gc
from contextlib import contextmanager

import pytest
import torch
from chunks import NEGATIVE
from families import instance
from families import prompt as prompt_of
from test_entries import strict_eraser, swapped
from text_ways import ORDERS, WAYS
from tiny import sample
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unhype.hypernet import patch
from unhype.hypernet.patch import apply_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


class MadeInside(TorchDispatchMode):
    """The storages that are made while it is on and not paused."""

    def __init__(self):
        super().__init__()
        self.paused, self.made, self.names = False, {}, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and not self.paused and _key(tensor) not in given:
                self.made[_key(tensor)] = StorageWeakRef(tensor.untyped_storage())
                self.names[_key(tensor)] = f"{function} {tuple(tensor.shape)}"
        return result


def _key(tensor):
    return tensor.untyped_storage()._cdata


@pytest.fixture
def left(monkeypatch):
    """Draws with a MODEL and its prompts; gives what was made inside the network and still lives after it."""

    def draw(model, positive, negative):
        network, found = model.model.diffusion_model, []
        mode = MadeInside()

        @contextmanager
        def pause():
            mode.paused, former = True, mode.paused
            try:
                yield
            finally:
                mode.paused = former

        def forward(*args, **kwargs):
            mode.made.clear()
            with mode:
                output = type(network).forward(network, *args, **kwargs)
            gc.collect()
            alive = {key for key, storage in mode.made.items() if not storage.expired()}
            found.extend(mode.names[key] for key in alive - {_key(output)})
            return output

        monkeypatch.setattr(patch, "pause_malloc_graph", pause)
        monkeypatch.setattr(network, "forward", forward)
        sample(model, positive, negative, steps=2)
        return found

    return draw


@pytest.mark.parametrize("unknown", ["base", "strict"])
@pytest.mark.parametrize("way", WAYS)
def test_text_beside_the_conditionings_leaves_nothing(model, texts, left, way, unknown):
    erased = ORDERS["erasure last"](WAYS[way], model, texts.cat, texts.eraser, unknown=unknown)
    assert left(erased, texts.dog, NEGATIVE) == []


@pytest.mark.parametrize("lengthen", [False, True])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_neither_does_another_context_in_other_families(left, name, lengthen):
    model = instance(name)
    erased = apply_erasure(model, strict_eraser(name, model), unknown="strict")
    assert left(swapped(erased, prompt_of(name, 1)[0][0], lengthen), prompt_of(name, 2), prompt_of(name, 2)) == []


def test_what_is_made_without_a_pause_is_found(model, texts, left, monkeypatch):
    network, kept = type(model.model.diffusion_model), []
    forward = network.forward

    def keeping(self, x, *args, **kwargs):
        kept.append(x + 1)
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(network, "forward", keeping)
    assert left(apply_erasure(model, texts.eraser), texts.cat, NEGATIVE)

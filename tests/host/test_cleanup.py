"""After a sampling, finished or not: no override, no factors and no write on the parent model or the prompts."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from deltas import NEGATIVE
from tiny import overridden, prompt, sample, tiny_eraser

from unhype.hypernet.patch import apply_erasure

A, B = prompt(1), prompt(2)

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture
def eraser(model):
    return tiny_eraser(model)


def stop_in_the_middle_block(model, action):
    """A clone that runs `action` in its middle block, and a list of the overrides at that moment."""
    clone, found = model.clone(), []

    def patch(n, context, value, options):
        if options["block"][0] == "middle":
            found.append(overridden(model))
            action()
        return n, context, value

    clone.set_model_attn2_patch(patch)
    return clone, found


LOOKS_IN_EVERY_LAYER = pytest.mark.skipif(
    not hasattr(comfy.ops, "run_every_op"), reason="this ComfyUI looks for an interrupt between steps only"
)


def fail():
    raise RuntimeError("from the middle block")


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (fail, RuntimeError),
        pytest.param(
            comfy.model_management.interrupt_current_processing,
            comfy.model_management.InterruptProcessingException,
            marks=LOOKS_IN_EVERY_LAYER,
        ),
    ],
    ids=["exception", "interrupt"],
)
def test_no_override_stays_after_an_error_inside_the_network(model, eraser, action, error):
    before = sample(model, A, NEGATIVE)
    clone, found = stop_in_the_middle_block(apply_erasure(model, eraser), action)
    with pytest.raises(error):
        sample(clone, A, NEGATIVE)
    assert len(found[0]) == 14 + 7, "the deltas were on when it happened: 14 layers in 7 blocks"
    assert overridden(model) == []
    assert torch.equal(sample(model, A, NEGATIVE), before)


def test_no_factors_are_kept_when_a_sampling_has_ended_or_failed(model, eraser):
    erased = apply_erasure(model, eraser)
    (wrapper,) = erased.wrappers[WrappersMP.OUTER_SAMPLE]["unhype"]
    cache, filled = wrapper.__self__.deltas.cache, []

    def fail_with_factors():
        filled.append(len(cache))
        fail()

    clone, _ = stop_in_the_middle_block(erased, fail_with_factors)
    with pytest.raises(RuntimeError):
        sample(clone, A, NEGATIVE)
    assert (filled, len(cache)) == ([1], 0)
    sample(erased, A, NEGATIVE)
    assert len(cache) == 0


def test_the_parent_model_and_the_prompts_are_not_changed(model, eraser):
    def parts():
        wrappers = {kind: dict(keyed) for kind, keyed in model.wrappers.items()}
        callbacks = {kind: dict(keyed) for kind, keyed in model.callbacks.items()}
        options = {key: set(value) for key, value in model.model_options.items()}
        return wrappers, callbacks, options, dict(model.patches), dict(model.object_patches), dict(model.attachments)

    before = parts()
    sample(apply_erasure(model, eraser), A + B, NEGATIVE)
    assert parts() == before
    for conditioning in (A, B, NEGATIVE):
        assert list(conditioning[0][1]) == ["pooled_output"]

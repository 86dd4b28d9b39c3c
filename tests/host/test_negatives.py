"""Negative prompts: left alone only where they provably push away."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from prompt_parts import GUIDER_PARTS
from text_ways import attention_patch
from tiny import sample, seeded

from unhype.hypernet.patch import apply_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


FUNCTIONS = {
    "sampler_cfg_function": lambda args: args["uncond"],
    "sampler_pre_cfg_function": lambda args: [args["conds_out"][1]] * 2,
    "sampler_post_cfg_function": lambda args: args["uncond_denoised"],
}


def with_function(model, name):
    clone = model.clone()
    function = FUNCTIONS[name]
    clone.model_options[name] = function if name == "sampler_cfg_function" else [function]
    return clone


@pytest.mark.parametrize(("cfg", "exempt"), [(0.0, False), (0.5, False), (0.99, False), (1.5, True), (7.0, True)])
def test_a_negative_prompt_is_left_alone_from_cfg_1_on(model, texts, cfg, exempt):
    found = sample(apply_erasure(model, texts.eraser), texts.boat, texts.cat, cfg=cfg)
    assert torch.equal(found, sample(model, texts.boat, texts.cat, cfg=cfg)) == exempt
    harmless = sample(apply_erasure(model, texts.eraser), texts.boat, texts.lamp, cfg=cfg)
    assert torch.equal(harmless, sample(model, texts.boat, texts.lamp, cfg=cfg))


@pytest.mark.parametrize("order", ["erasure first", "erasure last"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_may_return_the_negative_alone_has_it_erased(model, texts, name, order):
    if order == "erasure first":
        erased = with_function(apply_erasure(model, texts.eraser), name)
    else:
        erased = apply_erasure(with_function(model, name), texts.eraser)
    plain = with_function(model, name)
    assert not torch.equal(sample(erased, texts.boat, texts.cat), sample(plain, texts.boat, texts.cat))
    assert torch.equal(sample(erased, texts.boat, texts.lamp), sample(plain, texts.boat, texts.lamp))


def without_guidance(executor, *args, **kwargs):
    """As CFG Override does."""
    guider = executor.class_obj
    former, guider.cfg = guider.cfg, 0.0
    try:
        return executor(*args, **kwargs)
    finally:
        guider.cfg = former


def negative_instead(out, options):
    """As NAG does at scale 0."""
    negative, positive = (options["cond_or_uncond"].index(number) for number in (1, 0))
    parts = list(out.chunk(len(options["cond_or_uncond"])))
    parts[positive] = parts[negative]
    return torch.cat(parts)


def with_override(model):
    clone = model.clone()
    clone.add_wrapper(WrappersMP.PREDICT_NOISE, without_guidance)
    return clone


def with_output_patch(model):
    clone = model.clone()
    clone.set_model_attn2_output_patch(negative_instead)
    return clone


@pytest.mark.parametrize("changed", [with_override, with_output_patch])
def test_a_node_that_draws_the_negative_inside_the_sampler_has_it_erased(model, texts, changed):
    for erased in (changed(apply_erasure(model, texts.eraser)), apply_erasure(changed(model), texts.eraser)):
        plain = changed(model)
        assert not torch.equal(sample(erased, texts.boat, texts.cat), sample(plain, texts.boat, texts.cat))
        assert torch.equal(sample(erased, texts.boat, texts.lamp), sample(plain, texts.boat, texts.lamp))


@pytest.mark.parametrize(
    ("name", "exempt"), [("cfg", True), ("perp-neg", False), ("dual cfg", False), ("one by one", False)]
)
def test_other_guiders_have_their_negatives_erased(model, texts, name, exempt):
    def drawn(model):
        guider = GUIDER_PARTS[name](model, texts.boat, texts.cat)
        noise = torch.randn(1, 4, 8, 8, generator=seeded(5))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)

    assert torch.equal(drawn(apply_erasure(model, texts.eraser)), drawn(model)) == exempt


def changed_inside(change):
    """A wrapper of another node that changes the guider once the eraser has seen it."""

    def on(model):
        clone = model.clone()

        def wrapper(executor, *args, **kwargs):
            change(executor.class_obj)
            return executor(*args, **kwargs)

        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "another node", wrapper)
        return clone

    return on


def _exchanged(guider):
    guider.conds = dict(zip(guider.conds, reversed(guider.conds.values()), strict=True))


INSIDE = {
    "cfg": changed_inside(lambda guider: setattr(guider, "cfg", 0.0)),
    "prompts": changed_inside(_exchanged),
}


@pytest.mark.parametrize("name", INSIDE)
def test_guidance_that_changes_inside_the_sampling_has_the_negative_erased(model, texts, name):
    plain, erased = INSIDE[name](model), INSIDE[name](apply_erasure(model, texts.eraser))
    found, base = (sample(own, texts.boat, texts.cat) for own in (erased, plain))
    assert not torch.equal(found, base)
    assert torch.equal(sample(erased, texts.boat, texts.lamp), sample(plain, texts.boat, texts.lamp))


def test_a_negative_prompt_in_another_row_counts_like_any_prompt(model, texts):
    moved = attention_patch(lambda rows, own: rows.flip(0))
    found = sample(moved(apply_erasure(model, texts.eraser), texts.cat), texts.boat, texts.cat, pictures=1)
    assert not torch.equal(found, sample(moved(model, texts.cat), texts.boat, texts.cat, pictures=1))

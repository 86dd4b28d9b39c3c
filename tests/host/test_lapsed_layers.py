"""Target layers that never run, and models that the hypernet doesn't fit."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from chunks import NEGATIVE
from comfy.patcher_extension import WrappersMP
from tiny import TOKENS, sample
from torch.nn.functional import linear

from unhype.hypernet.doors import ErasureLapsedError
from unhype.hypernet.patch import apply_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


def fused(model, *, skipped=".attn2.to_k"):
    """As a fused kernel does: the attention computes with a layer's weight and never calls the layer."""
    clone = model.clone()

    def wrapper(executor, *args, **kwargs):
        modules = {name: m for name, m in executor.class_obj.named_modules() if name.endswith(skipped)}
        former = {name: module.forward for name, module in modules.items()}
        parents = {name: executor.class_obj.get_submodule(name.rpartition(".")[0]) for name in modules}

        def attention(module, layer):
            whole = type(module).forward

            def forward(x, context=None, **options):
                patched, layer.__dict__["forward"] = layer.forward, lambda x: linear(x, layer.weight)
                try:
                    return whole(module, x, context=context, **options)
                finally:
                    layer.__dict__["forward"] = patched

            return forward

        try:
            for name, module in modules.items():
                parents[name].forward = attention(parents[name], module)
            return executor(*args, **kwargs)
        finally:
            for name in modules:
                del parents[name].forward
            assert {name: module.forward for name, module in modules.items()} == former

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fused", wrapper)
    return clone


def test_a_layer_that_never_ran_is_told_under_base(model, texts):
    told = []
    erased = fused(apply_erasure(model, texts.eraser, tell=told.append))
    sample(erased, texts.boat, NEGATIVE)
    assert told == []
    sample(erased, texts.cat, NEGATIVE)
    (line,) = told
    assert "layer 'input_blocks.1.1.transformer_blocks.0.attn2.to_k' (7 in all) runs without its delta" in line
    assert "comfy_force_cast_weights" in line


def test_a_layer_that_never_ran_is_an_error_under_strict(model, texts):
    erased = fused(apply_erasure(model, texts.eraser, unknown="strict"))
    with pytest.raises(ErasureLapsedError, match=r"attn2\.to_k' .* unknown_prompts is 'strict', so nothing is drawn"):
        sample(erased, texts.cat, NEGATIVE)
    sample(erased, texts.boat, NEGATIVE)


def test_blocks_that_another_node_skips_are_no_lapse(model, texts):
    told = []
    erased = apply_erasure(model, texts.eraser, unknown="strict", tell=told.append)

    def without_middle(executor, *args, **kwargs):
        network = executor.class_obj
        middle, network.middle_block = network.middle_block, None
        try:
            return executor(*args, **kwargs)
        finally:
            network.middle_block = middle

    erased.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "skip", without_middle)
    sample(erased, texts.cat, NEGATIVE)
    assert told == []


def test_a_second_model_that_the_hypernet_does_not_fit_is_told_or_refused(texts):
    from tiny import tiny_model

    model, other, told = tiny_model(), tiny_model("sd20", context=16), []
    erased = apply_erasure(model, texts.eraser, tell=told.append)
    options = {"transformer_options": {"wrappers": erased.wrappers}}
    comfy.model_management.load_models_gpu([other])
    x, t, context = torch.randn(1, 4, 8, 8), torch.ones(1), torch.randn(1, TOKENS, 16)
    other.model.apply_model(x, t, c_crossattn=context, **options)
    assert "a second model draws a part of the picture" in told[0]
    strict = apply_erasure(model, texts.eraser, unknown="strict")
    options = {"transformer_options": {"wrappers": strict.wrappers}}
    with pytest.raises(ErasureLapsedError, match="doesn't fit it"):
        other.model.apply_model(x, t, c_crossattn=context, **options)

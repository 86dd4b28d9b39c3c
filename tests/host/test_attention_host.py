"""The attention task with ComfyUI's own tokenizers and layers."""

from types import SimpleNamespace

import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import pytest
import torch
from core_parts import normal

from unhype.training.name_tokens import ids_of_states
from unhype.training.tasks.attention import align, changes_of


@pytest.mark.parametrize("tokenizer", [comfy.sd1_clip.SD1Tokenizer, comfy.sdxl_clip.SDXLTokenizer], ids=["SD1", "SDXL"])
def test_the_hosts_own_tokenizers_give_ids(tokenizer):
    clip = SimpleNamespace(tokenize=tokenizer().tokenize_with_weights)
    erased, mapping, longer = (
        ids_of_states(clip, text, 77)[0]
        for text in ("a photo of a cat on a sofa", "a photo of a tree on a sofa", "a photo of a fire engine on a sofa")
    )
    assert len(erased) == len(mapping) == 77
    assert align(erased, mapping) == list(range(77))
    changed = [n for n in range(77) if erased[n] != mapping[n]]
    assert changed == [5]
    assert align(erased, longer) == [0, 1, 2, 3, 4, 5, *range(7, 77), 76]
    assert len(ids_of_states(clip, "word " * 100, 154)[0]) == 154


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_changes_are_those_of_the_hosts_layers_whatever_their_dtype_and_bias(dtype, bias):
    """Layers that cast their weights are called with fp32 where the weights have eight bits."""
    layer = comfy.ops.manual_cast.Linear(6, 4, bias=bias, dtype=torch.float32)
    with torch.no_grad():
        for number, weight in enumerate(layer.parameters()):
            weight.copy_(normal(*weight.shape, seed=number))
    layer = layer.to(dtype).requires_grad_(False)
    X_p, X_m = normal(2, 5, 6, seed=7), normal(2, 5, 6, seed=8)
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15}.get(dtype, 1e-5)
    (change,) = changes_of([layer], X_p, X_m)
    assert change.dtype == torch.float32
    assert not change.requires_grad
    torch.testing.assert_close(change, (X_m - X_p) @ layer.weight.float().T, rtol=1e-5, atol=tolerance)

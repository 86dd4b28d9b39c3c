"""The network's expected outputs under an erasure, from ComfyUI's own merging of weight patches."""

import torch
from tiny import embedding, merged, noted_calls, prompt, replay, sample

from unhype.hypernet.patch import apply_erasure

NEGATIVE = prompt(3)


def lora_of(eraser, conditioning, scale=1.0, step=300):
    """The factors of a prompt as a LoRA state dict, made by hand."""
    lora, layers = {}, eraser.hypernet(embedding(conditioning).unsqueeze(0), step)
    for layer, factors in zip(eraser.hypernet.config.layers, layers, strict=True):
        lora[f"diffusion_model.{layer.name}.lora_down.weight"] = factors.A[0]
        lora[f"diffusion_model.{layer.name}.lora_up.weight"] = factors.B[0] * scale
    return lora


def closely(found, expected, base):
    """Equal up to 1e-4 of the effect and to a rounding of the latent that the model's output is added to."""
    effect = (expected - base).abs().max()
    rounding = torch.finfo(torch.float32).eps * expected.abs().max()
    return effect > 0 and (found - expected).abs().max() <= 1e-4 * effect + rounding


def check(model, calls, loras):
    """In every call the rows of each prompt in `loras`, pairs (conditioning, LoRA), follow that LoRA as ComfyUI
    merges it, and all other rows are the base model's, bit for bit."""
    assert calls
    for call in calls:
        base = replay(model, call)
        others = torch.ones(len(base), dtype=torch.bool)
        for conditioning, lora in loras:
            rows = call.reads(conditioning)
            if not rows.any():
                continue
            others &= ~rows
            assert closely(call.output[rows], replay(merged(model, lora), call)[rows], base[rows])
        assert torch.equal(call.output[others], base[others])


def run(model, eraser, positive, negative=NEGATIVE, strength=1.0, gate=True, **options):
    """The calls of the network while `positive` is sampled with the eraser on."""
    with noted_calls(apply_erasure(model, eraser, strength, gate)) as (clone, calls):
        sample(clone, positive, negative, **{"steps": 2, **options})
    return calls


def rows_of(calls, *conditionings):
    """For each call the number of rows of each prompt."""
    return [[int(call.reads(conditioning).sum()) for conditioning in conditionings] for call in calls]

"""Hypernet to LoRA: the exported LoRA, merged by ComfyUI, equals the erasure of its prompt."""

from dataclasses import replace

import pytest
from deltas import check, run
from tiny import FAMILIES, detector_of, embedding, prompt, tiny_eraser, tiny_model

from unhype.hypernet.lora import BelowThresholdError, to_lora

A, B = prompt(1), prompt(2)

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.mark.parametrize(
    ("family", "strength"), [*((family, 1.0) for family in FAMILIES), ("sd15", 0.4), ("sd15", 2.0)]
)
def test_the_exported_lora_equals_the_erasure(family, strength):
    model = tiny_model(family)
    eraser = tiny_eraser(model)
    lora = to_lora(eraser, embedding(A), "a cat", strength)
    assert len(lora) == 3 * len(eraser.hypernet.config.layers)
    check(model, run(model, eraser, A, strength=strength, steps=1), [(A, lora)])


def test_a_prompt_below_the_threshold_makes_no_lora(model):
    detector = detector_of(above=[embedding(A)], below=[embedding(B)])
    gated = replace(tiny_eraser(model), detector=detector, name="gated")
    with pytest.raises(BelowThresholdError, match=r"'a boat' names nothing that hypernet 'gated' erases \(cat\)"):
        to_lora(gated, embedding(B), "a boat")
    assert to_lora(gated, embedding(A), "a cat")

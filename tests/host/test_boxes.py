"""The texts of GLIGEN boxes."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from chunks import NEGATIVE
from tiny import CPU, sample

from unhype.hypernet.patch import apply_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


class Boxes(torch.nn.Module):
    """Stands for a GLIGEN model: takes a note of the boxes that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def set_position(self, shape, boxes, device):
        self.seen.append([box[0] for box in boxes])
        return lambda x, options: x

    def set_empty(self, shape, device):
        return lambda x, options: x


def boxes_drawn(model, *vectors):
    gligen = comfy.model_patcher.ModelPatcher(Boxes(), CPU, CPU)
    boxes = [(vector, 4, 4, 0, 0) for vector in vectors]
    (tokens, values), *_ = NEGATIVE
    sample(model, [[tokens, {**values, "gligen": ("position", gligen, boxes)}]], NEGATIVE, steps=1)
    seen = gligen.model.seen[-1]
    return [next(n for n, vector in enumerate(vectors) if vector is own) for own in seen]


def pooled(conditioning):
    return conditioning[0][1]["pooled_output"]


def test_a_box_that_names_an_erased_concept_is_left_out(model, texts):
    vectors = [pooled(texts.boat), pooled(texts.cat), pooled(texts.lamp), pooled(texts.dog)]
    assert boxes_drawn(model, *vectors) == [0, 1, 2, 3]
    assert boxes_drawn(apply_erasure(model, texts.eraser), *vectors) == [0, 2]
    assert boxes_drawn(apply_erasure(model, texts.eraser, gate=False), *vectors) == [0, 2]


@pytest.mark.parametrize(("unknown", "drawn"), [("base", [0, 1]), ("strict", [0])])
def test_a_box_that_cannot_be_read_follows_the_policy(model, texts, unknown, drawn):
    told = []
    erased = apply_erasure(model, texts.eraser, unknown=unknown, tell=told.append)
    assert boxes_drawn(erased, pooled(texts.boat), torch.ones(1, 5)) == drawn
    assert ["the text of a GLIGEN box carries no embedding" in line for line in told] == [True]

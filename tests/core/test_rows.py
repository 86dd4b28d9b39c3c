"""A layer under a delta when its batch is not the network's: which rows and tokens get it."""

import pytest
import torch
from torch.nn.functional import linear

from unhype.hypernet.deltas import Span
from unhype.hypernet.factors import Factors
from unhype.hypernet.rows import SpanMasks, patched_layers
from unhype.hypernet.targets import TargetLayer

LAYER = TargetLayer("layer", 3, 2)


class SumOfInputs(torch.nn.Module):
    """A layer whose two outputs are the sum of its three inputs; the delta below doubles them."""

    def forward(self, x):
        return linear(x, torch.ones(2, 3))


def network():
    return torch.nn.ModuleDict({"layer": SumOfInputs()})


def ones_on_row_one():
    return torch.tensor([1]), [Factors(torch.ones(1, 1, 3), torch.ones(1, 2, 1))]


def patched(model, **options):
    rows, layers = ones_on_row_one()
    return patched_layers(model, (LAYER,), rows, layers, batch=2, **options)


@pytest.mark.parametrize(
    ("order", "changed"),
    [
        ([0, 1, 0, 1], [1, 3]),  # the batch repeated, as tiles are
        ([0, 0, 1, 1], [2, 3]),  # each row repeated
        ([0, 1, None], [1]),  # a row of another node's own joins
        ([1], [0]),  # one row at a time
        ([None, None, None], []),
    ],
    ids=str,
)
def test_rows_that_change_inside_the_model_are_matched_by_their_tokens(order, changed):
    model, generator = network(), torch.Generator().manual_seed(3)
    context, others = torch.randn(2, 5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    x = torch.stack([others if row is None else context[row] for row in order])
    plain = model["layer"](x)
    with patched(model, context=context):
        y = model["layer"](x)
    assert [row for row in range(len(x)) if not torch.equal(y[row], plain[row])] == changed
    torch.testing.assert_close(y[changed], 2 * plain[changed])


def test_of_two_rows_with_the_same_tokens_the_one_with_a_delta_counts():
    model, context = network(), torch.ones(2, 5, 3)
    with patched(model, context=context):
        assert model["layer"](context[:1])[0, 0].tolist() == [6, 6]


def test_rows_that_join_the_batch_come_last_without_a_context():
    model = network()
    with patched(model):
        y = model["layer"](torch.ones(3, 5, 3))
    assert y[:, 0, 0].tolist() == [3, 6, 3]


def test_rows_that_cannot_be_matched_run_the_base_with_a_warning():
    model = network()
    with patched(model), pytest.warns(UserWarning, match="without erasure"):
        y = model["layer"](torch.ones(1, 5, 3))
    assert torch.equal(y, torch.full((1, 5, 2), 3.0))


def test_repeated_rows_keep_the_tokens_of_their_delta():
    """Tokens 2 and 3 of a prompt of four, which the host repeats to make eight."""
    model = network()
    context = torch.stack([torch.ones(8, 3), torch.full((8, 3), 2.0)])
    with patched(model, masks=SpanMasks([Span(2, 4, 4)], torch.device("cpu")), context=context):
        y = model["layer"](context.repeat_interleave(2, 0))
    assert y[..., 0].tolist() == [[3.0] * 8] * 2 + [[6.0, 6.0, 12.0, 12.0] * 2] * 2


def test_overrides_go_when_they_cannot_all_be_put_on():
    model, (rows, layers) = network(), ones_on_row_one()
    targets = (LAYER, TargetLayer("no_such_layer", 3, 2))
    with pytest.raises(AttributeError), patched_layers(model, targets, rows, layers * 2, batch=2):
        pass
    assert "forward" not in model["layer"].__dict__

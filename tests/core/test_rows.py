"""Which rows and tokens of a layer get which delta, also when its batch is not the network's."""

import pytest
import torch
from core_parts import normal
from torch.nn.functional import linear

from unhype.hypernet.deltas import Part, Span
from unhype.hypernet.factors import Factors, lowrank_delta
from unhype.hypernet.rows import BASE, RowTable, SpanMasks, add_to_rows, patched_layers, source_rows
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


# Adding deltas


def test_each_row_gets_its_delta_and_all_others_stay_bit_for_bit():
    x, y = normal(4, 5, 3, seed=1), normal(4, 5, 6, seed=2)
    factors = Factors(normal(2, 2, 3, seed=3), normal(2, 4, 2, seed=4))
    before = y.clone()
    found = add_to_rows(y, x, torch.tensor([3, 1]), factors, start=1)
    expected = y.clone()
    for row, A, B in ((3, factors.A[0], factors.B[0]), (1, factors.A[1], factors.B[1])):
        expected[row, :, 1:5] += x[row] @ (B @ A).T
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[[0, 2]], y[[0, 2]])
    assert torch.equal(found[..., [0, 5]], y[..., [0, 5]])
    assert torch.equal(y, before)


def test_two_deltas_of_one_row_add_up_on_their_own_tokens():
    x, y = torch.ones(1, 4, 1), torch.zeros(1, 4, 1)
    factors = Factors(torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[10.0]]]))
    mask = torch.tensor([[True, True, False, False], [False, True, True, False]])
    assert add_to_rows(y, x, torch.tensor([0, 0]), factors, mask).flatten().tolist() == [1, 11, 10, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_output_of_lower_precision_keeps_its_dtype(dtype):
    x, y = normal(2, 3, 4).to(dtype), normal(2, 3, 2, seed=1).to(dtype)
    factors = Factors(normal(1, 1, 4, seed=2), normal(1, 2, 1, seed=3))
    found = add_to_rows(y, x, torch.tensor([1]), factors)
    assert found.dtype == dtype
    expected = y[1].float() + lowrank_delta(x[1:], factors)[0]
    torch.testing.assert_close(found[1].float(), expected, rtol=1e-2, atol=2e-2)


def test_gradients_reach_the_factors_and_the_input_of_active_rows_alone():
    x = normal(2, 3, 4).requires_grad_()
    factors = Factors(*(tensor.requires_grad_() for tensor in (normal(1, 1, 4, seed=2), normal(1, 2, 1, seed=3))))
    mask = torch.tensor([[True, False, True]])
    add_to_rows(torch.zeros(2, 3, 2), x, torch.tensor([1]), factors, mask).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in factors)
    assert (x.grad.abs().sum(-1) > 0).tolist() == [[False] * 3, [True, False, True]]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(4, [False, True, True, False]), (8, [False, True, True, False] * 2), (3, [False, True, True])],
)
def test_a_mask_follows_the_repetition_of_its_tokens(tokens, expected):
    masks = SpanMasks([Span(1, 3, 4), Span(0, 4, 4)], torch.device("cpu"))
    assert masks.mask(tokens).tolist() == [expected, [True] * tokens]
    assert masks.mask(tokens) is masks.mask(tokens)


def test_rows_without_a_known_source_are_told_from_rows_that_are_not_known_at_all():
    rows, context = torch.tensor([1]), normal(2, 5, 3)
    assert source_rows(context[[1, 0]], rows, 2, context).tolist() == [1, 0]
    assert source_rows(normal(1, 5, 3, seed=9), rows, 2, context).tolist() == [-1]
    assert source_rows(torch.ones(3, 7, 3), rows, 2, context).tolist() == [0, 1, -1], "tokens of another length"
    assert source_rows(torch.ones(1, 7, 3), rows, 2, context) is None


# The prompts of a sampling


def part(number, start=0, stop=4, length=4):
    return Part(
        Span(start, stop, length), bytes([number]), [Factors(normal(1, 2, 3, seed=number), torch.ones(1, 4, 2))]
    )


def test_equal_prompts_share_a_row_number_and_prompts_without_parts_are_the_base():
    table = RowTable()
    assert table.number(()) == BASE
    assert [table.number((part(1),)), table.number((part(2),)), table.number((part(1),))] == [0, 1, 0]
    assert table.number((part(1, stop=2),)) == 2, "the same factors on other tokens"
    assert table.number((part(1), part(2))) == 3


def test_a_batch_gets_the_factors_of_its_rows_stacked():
    table, device = RowTable(), torch.device("cpu")
    one, two = table.number((part(1),)), table.number((part(2), part(3)))
    rows, (factors,), masks = table.stacked((two, BASE, one), device)
    assert rows.tolist() == [0, 0, 2]
    expected = torch.cat([part(number).factors[0].A for number in (2, 3, 1)])
    assert torch.equal(factors.A, expected)
    assert factors.B.shape == (3, 4, 2)
    assert masks is None, "every part is a whole prompt"
    assert table.stacked((two, BASE, one), device)[0] is rows
    assert table.stacked((BASE, BASE), device) is None


def test_parts_of_prompts_come_with_masks():
    table = RowTable()
    rows, _, masks = table.stacked((table.number((part(1, 0, 2), part(2, 2, 4))),), torch.device("cpu"))
    assert rows.tolist() == [0, 0]
    assert masks.mask(4).tolist() == [[True, True, False, False], [False, False, True, True]]

"""Which rows and tokens of a layer get which delta, also when its batch is not the network's."""

import pytest
import torch
from core_parts import normal
from torch.nn.functional import linear

from unhype.hypernet.deltas import Part, Span
from unhype.hypernet.factors import Factors, lowrank_delta
from unhype.hypernet.rows import BASE, RowTable, SpanMasks, add_to_rows, patched_layers
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


def test_patched_layers_add_their_deltas_to_the_rows():
    model, (rows, layers) = network(), ones_on_row_one()
    with patched_layers(model, (LAYER,), rows, layers):
        assert model["layer"](torch.ones(2, 5, 3))[:, 0, 0].tolist() == [3, 6]
    assert "forward" not in model["layer"].__dict__


def test_overrides_go_when_they_cannot_all_be_put_on():
    model, (rows, layers) = network(), ones_on_row_one()
    targets = (LAYER, TargetLayer("no_such_layer", 3, 2))
    with pytest.raises(AttributeError), patched_layers(model, targets, rows, layers * 2):
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


# The prompts of a sampling


def part(number, start=0, stop=4, length=4):
    factors = [Factors(normal(1, 2, 3, seed=number), torch.ones(1, 4, 2))]
    return Part(Span(start, stop, length), bytes([number]), factors, 1.0)


def test_equal_prompts_share_a_row_number_and_prompts_without_parts_are_the_base():
    table = RowTable()
    assert table.number(()) == BASE
    assert [table.number((part(1),)), table.number((part(2),)), table.number((part(1),))] == [0, 1, 0]
    assert table.number((part(1, stop=2),)) == 2, "the same factors on other tokens"
    assert table.number((part(1), part(2))) == 3
    assert [[p.span.stop for p in table.parts(number)] for number in (BASE, 2, 3)] == [[], [2], [4, 4]]


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

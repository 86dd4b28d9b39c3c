"""The low-rank delta against the matrix it stands for."""

import pytest
import torch
from core_parts import normal

from unhype.hypernet.factors import Factors, delta_norm, lowrank_delta, select, squared_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(3, 5), (3, 4, 5), (3, 2, 4, 5), (3, 1, 5), (3, 0, 5)]


def factors(rows=3, rank=2, inputs=5, outputs=7, dtype=torch.float32):
    return Factors(normal(rows, rank, inputs, seed=1).to(dtype), normal(rows, outputs, rank, seed=2).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_row_gets_its_own_matrix(shape, dtype):
    x, own = normal(*shape).to(dtype), factors()
    delta = lowrank_delta(x, own)
    assert delta.dtype == torch.float32
    assert delta.shape == (*shape[:-1], 7)
    for row in range(3):
        torch.testing.assert_close(delta[row], x[row].float() @ (own.B[row] @ own.A[row]).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_any_rank_may_be_used(rank):
    x, own = normal(3, 4, 5), factors(rank=rank)
    expected = torch.einsum("pti,poi->pto", x, own.B @ own.A)
    torch.testing.assert_close(lowrank_delta(x, own), expected, rtol=1e-5, atol=1e-5)


def test_the_delta_is_computed_in_fp32_from_half_precision_inputs():
    # 4096 terms of 1: fp16 sums lose ones from 2048 on, and the factor 0.1 has no exact fp16 value.
    x = torch.ones(1, 1, 4096, dtype=torch.float16)
    own = Factors(torch.ones(1, 1, 4096), torch.full((1, 1, 1), 0.1))
    assert lowrank_delta(x, own).item() == pytest.approx(409.6, rel=1e-6)


def test_gradients_reach_the_input_and_both_factors():
    x, own = normal(3, 4, 5).requires_grad_(), Factors(*(tensor.requires_grad_() for tensor in factors()))
    lowrank_delta(x, own).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (x, *own))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_the_squared_norm_is_that_of_the_explicit_matrix(rank, dtype):
    own = factors(rank=rank, dtype=dtype)
    explicit = (own.B.float() @ own.A.float()).square().sum((1, 2))
    torch.testing.assert_close(squared_norm(own), explicit, rtol=1e-5, atol=1e-6)


def test_the_norm_of_a_delta_counts_all_layers():
    layers = [factors(), factors(inputs=3, outputs=2)]
    blocks = torch.cat([(own.B @ own.A).flatten(1) for own in layers], dim=1)
    torch.testing.assert_close(delta_norm(layers), blocks.norm(dim=1))


def test_no_change_has_norm_exactly_zero():
    own = factors()
    assert delta_norm([own._replace(B=torch.zeros_like(own.B))]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("index", [slice(1, 2), torch.tensor([2, 0])], ids=["slice", "index"])
def test_prompts_are_selected_in_every_layer(index):
    layers = [factors(), factors(outputs=2)]
    for whole, part in zip(layers, select(layers, index), strict=True):
        assert torch.equal(part.A, whole.A[index])
        assert torch.equal(part.B, whole.B[index])

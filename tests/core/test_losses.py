"""The equations of training, each against numbers worked out by hand."""

import pytest
import torch
from core_parts import normal

from unhype.hypernet.factors import Factors, lowrank_delta
from unhype.training.losses import flatten, matching_loss, retention_loss, steered_target, target_along, task_loss


def test_the_target_is_pushed_away_from_the_erased_prediction():
    e_p, e_m = torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 2.0]])
    assert steered_target(e_p, e_m, 0.0).tolist() == [[3, 2]]
    assert steered_target(e_p, e_m, 0.5).tolist() == [[4, 1]]
    assert steered_target(e_p, e_m, 2.0).tolist() == [[7, -2]]


def test_the_target_moves_along_with_the_step():
    e_p, e_star = torch.zeros(3, 1, 2, 2), torch.full((3, 1, 2, 2), 8.0)
    along = target_along(e_p, e_star, torch.tensor([0.0, 0.25, 1.0]))
    assert along.flatten(1).tolist() == [[0] * 4, [2] * 4, [8] * 4]


def test_the_task_loss_is_the_mean_square_of_each_sample():
    prediction = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 4.0]]], [[[3.0, 5.0]]]])
    assert task_loss(prediction, target).tolist() == [2.0, 17.0]


def test_the_task_loss_is_taken_in_fp32():
    prediction = torch.full((1, 1, 1, 2), 300.0, dtype=torch.float16)
    assert task_loss(prediction, torch.zeros(1, 1, 1, 2)).item() == 90000.0


def test_the_matching_loss_measures_the_distance_to_a_gradient_step():
    theta, following = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    gradient = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    # theta - 0.5 * gradient = [[0, 2], [0, -1]]; distances [1, -1] and [0, 4]
    assert matching_loss(following, theta, gradient, 0.5).tolist() == [2.0, 16.0]


def test_a_network_that_makes_the_gradient_step_has_no_matching_loss():
    theta, gradient = normal(2, 5, seed=0), normal(2, 5, seed=1)
    assert matching_loss(theta - 300 * gradient, theta, gradient, 300).tolist() == [0, 0]


def test_the_target_of_matching_is_held_fixed():
    theta, following = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    matching_loss(following, theta, torch.ones(1, 2), 0.5).sum().backward()
    assert theta.grad is None
    assert following.grad.tolist() == [[-1, -1]]


def test_retention_measures_what_the_delta_does_to_an_output():
    # Layer 1: B A = [[3, 4], [0, 0]], squared norm 25 over 2 outputs. Layer 2: B A = [[2]], 4 over 1.
    first = Factors(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0], [0.0]]]))
    second = Factors(torch.tensor([[[2.0]]]), torch.tensor([[[1.0]]]))
    assert retention_loss([first, second]).tolist() == [(12.5 + 4) / 2]


def test_retention_is_the_mean_squared_change_for_inputs_of_unit_variance():
    factors = Factors(normal(1, 2, 6, seed=0), normal(1, 3, 2, seed=1))
    x = normal(1, 200_000, 6, seed=2)
    measured = lowrank_delta(x, factors).square().mean()
    assert measured.item() == pytest.approx(retention_loss([factors]).item(), rel=0.02)


def test_factors_are_flattened_prompt_by_prompt():
    A, B = torch.arange(4.0).view(2, 1, 2), torch.arange(4.0, 8.0).view(2, 2, 1)
    assert flatten([Factors(A, B), Factors(-A, -B)]).tolist() == [
        [0, 1, 4, 5, -0, -1, -4, -5],
        [2, 3, 6, 7, -2, -3, -6, -7],
    ]

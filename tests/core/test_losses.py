"""The equations of training, each against numbers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from tiny import seeded

from unhype.hypernet.factors import Factors, lowrank_delta
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.targets import TargetLayer
from unhype.training.losses import flatten, matching_loss, retention_loss, steered_target, target_along, task_loss
from unhype.training.settings import OBJECTIVES, Settings
from unhype.training.tasks.matching import OBJECTIVE, TaskBatch, draw_steps, paper, released


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
    theta, gradient = torch.randn(2, 5, generator=seeded(0)), torch.randn(2, 5, generator=seeded(1))
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
    factors = Factors(torch.randn(1, 2, 6, generator=seeded(0)), torch.randn(1, 3, 2, generator=seeded(1)))
    x = torch.randn(1, 200_000, 6, generator=seeded(2))
    measured = lowrank_delta(x, factors).square().mean()
    assert measured.item() == pytest.approx(retention_loss([factors]).item(), rel=0.02)


def test_factors_are_flattened_prompt_by_prompt():
    A, B = torch.arange(4.0).view(2, 1, 2), torch.arange(4.0, 8.0).view(2, 2, 1)
    assert flatten([Factors(A, B), Factors(-A, -B)]).tolist() == [
        [0, 1, 4, 5, -0, -1, -4, -5],
        [2, 3, 6, 7, -2, -3, -6, -7],
    ]


# The objectives, on a toy whose "model" is one linear layer

LAYERS = (TargetLayer("only", 4, 4),)


def toy(moved=True):
    """A hypernet, a batch of three samples and a `predict` that adds the delta to z, all small."""
    hypernet = Hypernet(HypernetConfig(3, LAYERS, rank=2, hidden=5, trajectory=10), seeded(0))
    if moved:
        with torch.no_grad():
            for weight in hypernet.right.parameters():
                weight.copy_(torch.randn(weight.shape, generator=seeded(1)) * 0.3)
    z, e_p, e_m = (torch.randn(3, 1, 1, 4, generator=seeded(seed)) for seed in (2, 3, 4))
    samples = SimpleNamespace(z=z, sigma=torch.ones(3), e_p=e_p, e_m=e_m)
    batch = TaskBatch(torch.randn(3, 3, generator=seeded(5)), samples, [{}] * 3)

    def predict(z, sigma, conds, layers):
        return z + lowrank_delta(z.flatten(1, 2), layers[0]).view_as(z)

    return hypernet, batch, predict


SETTINGS = Settings(gamma=1.0, eta=0.7)
STEPS = torch.tensor([0.0, 4.0, 9.0])


def gradients(hypernet, loss):
    # Some weights take no part in a loss: those have no gradient.
    return torch.autograd.grad(loss, list(hypernet.parameters()), allow_unused=True)


def factor_gradient(hypernet, batch, predict, step):
    """What plain autograd gives on the factors for the task loss of each sample, one sample at a time."""
    rows = []
    for row in range(3):
        with torch.no_grad():
            (factors,) = hypernet(batch.c[row : row + 1], step[row].item())
        leaf = Factors(*(tensor.clone().requires_grad_() for tensor in factors))
        z, e_p, e_m = (getattr(batch.samples, name)[row : row + 1] for name in ("z", "e_p", "e_m"))
        loss = (predict(z, None, None, [leaf]) - (2 * e_m - e_p)).square().mean()
        rows.append(torch.cat([part.flatten(1) for part in torch.autograd.grad(loss, list(leaf))], dim=1))
    return torch.cat(rows)


def test_the_gradient_step_of_the_paper_is_that_of_plain_autograd():
    hypernet, batch, predict = toy()
    with torch.no_grad():
        theta, following = (flatten(hypernet(batch.c, step)) for step in (STEPS, STEPS + 1))
    gradient = factor_gradient(hypernet, batch, predict, STEPS)
    assert gradient.abs().max() > 0.01
    expected = (following - theta + SETTINGS.eta * gradient).square().sum(1).mean()
    found = paper(hypernet, predict, batch, STEPS, SETTINGS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_paper_trains_the_following_step_only():
    hypernet, batch, predict = toy()
    theta = flatten(hypernet(batch.c, STEPS)).detach()
    gradient = factor_gradient(hypernet, batch, predict, STEPS)
    by_hand = (flatten(hypernet(batch.c, STEPS + 1)) - (theta - SETTINGS.eta * gradient)).square().sum(1).mean()
    expected = gradients(hypernet, by_hand)
    found = gradients(hypernet, paper(hypernet, predict, batch, STEPS, SETTINGS))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_released_objective_is_the_task_loss_plus_matching():
    hypernet, batch, predict = toy()
    samples = batch.samples
    target = 2 * samples.e_m - samples.e_p
    prediction = predict(samples.z, samples.sigma, batch.conds, hypernet(batch.c, STEPS))
    task = (prediction - target).square().mean()
    total = released(hypernet, predict, batch, STEPS, SETTINGS)
    matching = paper(hypernet, predict, batch, STEPS, SETTINGS)
    assert total.item() == pytest.approx((task + matching).item(), rel=1e-5)
    expected = gradients(hypernet, task + matching)
    for one, other in zip(gradients(hypernet, total), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_direct_objective_is_the_task_loss_along_the_trajectory():
    hypernet, batch, predict = toy()
    samples, g = batch.samples, (STEPS / 10).view(3, 1, 1, 1)
    target = samples.e_p + g * (2 * samples.e_m - samples.e_p - samples.e_p)
    prediction = predict(samples.z, samples.sigma, batch.conds, hypernet(batch.c, STEPS))
    found = OBJECTIVE["direct"](hypernet, predict, batch, STEPS, SETTINGS)
    assert found.item() == pytest.approx((prediction - target).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVE)
def test_every_objective_can_move_a_new_hypernet(objective):
    hypernet, batch, predict = toy(moved=False)
    loss = OBJECTIVE[objective](hypernet, predict, batch, torch.tensor([3.0, 5.0, 9.0]), SETTINGS)
    loss.backward()
    assert hypernet.right.weight.grad.abs().max() > 0


def test_every_objective_that_is_offered_exists():
    """Attention, which runs no diffusion steps, is a task of its own."""
    assert ("attention", *OBJECTIVE) == OBJECTIVES


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_half_of_the_samples_are_at_the_end_and_the_rest_along_the_way(objective):
    steps = draw_steps(objective, 4000, 300, seeded(0))
    at_the_end = (steps == 300).float().mean().item()
    assert at_the_end == pytest.approx(0.5, abs=0.03)
    along = steps[steps < 300]
    assert along.min() < 5
    assert along.max() > 290
    assert along.mean().item() == pytest.approx(150, abs=8)


@pytest.mark.parametrize("objective", ["paper", "released"])
def test_matching_draws_whole_steps_with_one_to_follow(objective):
    steps = draw_steps(objective, 4000, 300, seeded(0))
    assert torch.equal(steps, steps.round())
    assert steps.min() == 0
    assert steps.max() == 299


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_generator_decides_the_steps(objective):
    first, again, other = (draw_steps(objective, 50, 300, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

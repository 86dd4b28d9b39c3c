"""The widest margin: the minimum that a quasi-Newton method comes to as well, for few and many numbers a row."""

import pytest
import torch
from core_parts import normal

from unhype.training.margin import Side, even, widest_margin_of


def loss_of(x, y, width, w, b):
    """The loss of the module, written out again."""
    missed = x.weights @ torch.relu(1 - (x.rows @ w + b)).square()
    alarms = sum(part.weights @ torch.relu(part.rows @ w + b).square() for part in y)
    return missed + alarms + width * w.square().sum()


def by_lbfgs(x, y, width):
    """The minimum as detectors were fitted before: some hundred passes over all rows."""
    w = torch.zeros(x.rows.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [w, b], max_iter=3000, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss():
        solver.zero_grad()
        value = loss_of(x, y, width, w, b)
        value.backward()
        return value

    solver.step(loss)
    return w.detach(), b.detach()


def problem(width, apart, near):
    """Wordings of unlike weights, benign rows, and rows near the wordings, of which there may be none."""
    x = normal(30, width) * 0.4 + apart * torch.eye(width)[0]
    y = normal(200, width, seed=1) * 0.4, normal(near, width, seed=2) * 0.4 + apart / 2 * torch.eye(width)[0]
    weights = torch.cat([torch.full((10,), 10.0), torch.ones(20)]).double()
    return Side(x.double(), weights / weights.sum()), [even(y[0]), even(y[1], 0.1)]


@pytest.mark.parametrize("near", [0, 40])
@pytest.mark.parametrize("apart", [0.0, 1.0, 5.0], ids=["mixed", "overlapping", "apart"])
@pytest.mark.parametrize("width", [6, 400], ids=["more rows than numbers", "more numbers than rows"])
def test_it_is_the_minimum_that_a_quasi_newton_method_finds(width, apart, near):
    x, y = problem(width, apart, near)
    w, b = widest_margin_of(x, y, 0.01)
    expected, constant = by_lbfgs(x, y, 0.01)
    torch.testing.assert_close(w, expected, rtol=1e-5, atol=1e-5 * expected.norm().item())
    torch.testing.assert_close(b, constant, rtol=1e-5, atol=1e-5)


def test_a_point_on_the_way_is_better_than_the_start_and_never_worse_than_the_end(monkeypatch):
    """Every step lowers the loss, whatever the number of steps."""
    x, y = problem(6, 1.0, 40)
    losses = []
    for steps in range(6):
        monkeypatch.setattr("unhype.training.margin._ITERATIONS", steps)
        losses.append(loss_of(x, y, 0.01, *widest_margin_of(x, y, 0.01)).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_rows_that_are_all_the_same_have_a_margin():
    one = torch.ones(3, 4)
    w, b = widest_margin_of(even(one), [even(one)], 0.01)
    assert torch.isfinite(w).all()
    assert (one.double() @ w + b)[0].item() == pytest.approx(0.5)

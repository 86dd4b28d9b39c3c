"""H(c, s): nothing at the start and at s = 0, one bank of heads instead of many, the same by seed."""

import json

import pytest
import torch
from tiny import seeded
from torch.nn.functional import linear, relu

from unhype.hypernet.factors import delta_norm
from unhype.hypernet.network import HeadBank, Hypernet, HypernetConfig, step_code
from unhype.hypernet.targets import TargetLayer

# Sizes that repeat and sizes that do not, wider and narrower than the input.
LAYERS = (
    TargetLayer("a.to_k", 6, 4),
    TargetLayer("a.to_v", 6, 4),
    TargetLayer("b.to_k", 6, 10),
    TargetLayer("c.to_k", 3, 4),
)
WIDTH = 5


def config(**changes):
    return HypernetConfig(**{"embedding_width": WIDTH, "layers": LAYERS, "rank": 2, "hidden": 7, **changes})


def new(seed=0, **changes):
    return Hypernet(config(**changes), seeded(seed))


def trained(seed=0, **changes):
    """A network whose every weight has moved away from its start, alpha included."""
    network = new(seed, **changes)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=seeded(seed + 1)))
    return network.requires_grad_(False)


def embeddings(count, seed=3):
    return torch.randn(count, WIDTH, generator=seeded(seed))


@pytest.mark.parametrize("step", [0, 1, 150.5, 300])
def test_a_new_network_writes_exactly_nothing_at_any_step(step):
    for factors in new()(embeddings(3), step):
        assert torch.count_nonzero(factors.B @ factors.A) == 0
        assert torch.count_nonzero(factors.A) > 0, "with both factors zero no gradient would ever come through"


def test_a_new_network_can_learn():
    network = new()
    # Any loss that reads the delta: the gradient has to reach the weights that start at zero.
    sum((factors.B @ factors.A).sum() for factors in network(embeddings(2), 300)).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.right.outer_weight.values())


def test_step_zero_writes_exactly_nothing_however_the_weights_are():
    layers = trained()(embeddings(4), 0)
    assert all(torch.count_nonzero(factors.B) == 0 for factors in layers)
    assert delta_norm(layers).tolist() == [0, 0, 0, 0]


def test_other_steps_write_something():
    assert bool((delta_norm(trained()(embeddings(4), 1)) > 0).all())


@pytest.mark.parametrize("trajectory", [100, 300, 1000])
@pytest.mark.parametrize("octaves", [1, 2, 4])
def test_no_two_steps_share_a_code_and_the_closest_ones_are_neighbours(trajectory, octaves):
    code = step_code(torch.arange(trajectory + 1), trajectory, octaves).double()
    assert code.shape == (trajectory + 1, 2 * octaves)
    distance = torch.cdist(code, code).fill_diagonal_(torch.inf)
    assert distance.min() > 1 / trajectory
    assert bool(((distance.argmin(1) - torch.arange(trajectory + 1)).abs() == 1).all())


def test_the_ends_of_the_trajectory_have_codes_far_apart():
    first, last = step_code(torch.tensor([0, 300]), 300, 4)
    assert (first - last).norm() >= 2


@pytest.mark.parametrize("sizes", [(4,), (4, 4, 4), (4, 9, 4, 1, 9)])
def test_a_bank_of_heads_equals_its_heads_one_by_one(sizes):
    bank = HeadBank(6, 5, sizes, seeded(0))
    v = torch.randn(3, 6, generator=seeded(1))
    seen = dict.fromkeys(sizes, 0)
    for n, (size, found) in enumerate(zip(sizes, bank(v), strict=True)):
        rows, place = slice(n * 5, (n + 1) * 5), seen[size]
        seen[size] += 1
        inner = relu(linear(v, bank.inner_weight[rows], bank.inner_bias[rows]))
        head = linear(inner, bank.outer_weight[str(size)][place], bank.outer_bias[str(size)][place])
        assert found.shape == (3, size)
        torch.testing.assert_close(found, head)


def test_the_factors_follow_the_layer_equation():
    network, c = trained(alpha=0.5), embeddings(2)
    g = 200 / 300
    v = torch.cat([c, step_code(torch.tensor([200.0, 200.0]), 300, 4)], dim=1)
    left, right = network.left(v), network.right(v)
    for n, (layer, factors) in enumerate(zip(LAYERS, network(c, 200), strict=True)):
        a = 0.5 + g * network.alpha[n]
        constant = getattr(network, f"A_const_{n}")
        torch.testing.assert_close(factors.A, a * (constant + g * left[n].view(2, 2, layer.inputs)))
        torch.testing.assert_close(factors.B, g * right[n].view(2, layer.outputs, 2))


def test_a_batch_equals_its_prompts_one_by_one_each_at_its_own_step():
    network, c = trained(), embeddings(4)
    steps = torch.tensor([0.0, 7.0, 150.25, 300.0])
    together = network(c, steps)
    for row in range(4):
        alone = network(c[row : row + 1], steps[row].item())
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(many.A[row], one.A[0])
            torch.testing.assert_close(many.B[row], one.B[0])


def test_the_generator_decides_every_weight():
    first, again, other = (new(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = ("left.inner_weight", "left.outer_weight.12", "right.inner_weight", "A_const_0", "A_const_3")
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_a_config_survives_json():
    before = config(rank=3, alpha=0.5, trajectory=20, octaves=2)
    assert HypernetConfig.from_dict(json.loads(json.dumps(before.to_dict()))) == before


@pytest.mark.parametrize(
    "change",
    [{"layers": None}, {"layers": [{"name": "a"}]}, {"surprise": 1}],
    ids=["no layers", "half a layer", "unknown key"],
)
def test_a_dict_that_is_no_config_is_refused(change):
    with pytest.raises((TypeError, KeyError)):
        HypernetConfig.from_dict({**config().to_dict(), **change})

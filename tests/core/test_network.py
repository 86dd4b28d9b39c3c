"""H(c, s): no change at the start and at s = 0, the equations of the trunk and the bases, the same by seed."""

import json

import pytest
import torch
from core_parts import seeded

from unhype.hypernet.factors import delta_norm
from unhype.hypernet.network import Affine, Hypernet, HypernetConfig, step_code
from unhype.hypernet.published import PublishedConfig, PublishedHypernet
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
    return HypernetConfig(**{"embedding_width": WIDTH, "layers": LAYERS, "rank": 2, "basis": 3, "hidden": 7, **changes})


def new(seed=0, **changes):
    return Hypernet(config(**changes), seeded(seed))


def trained(seed=0, **changes):
    """A network whose every weight has moved away from its start."""
    network = new(seed, **changes)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=seeded(seed + 1)))
    return network.requires_grad_(False)


def test_the_config_knows_the_shapes_of_the_network():
    state = new(octaves=3).state_dict()
    assert config(octaves=3).shapes() == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_the_config_of_a_published_network_knows_its_shapes():
    own = PublishedConfig(WIDTH, LAYERS, rank=2, hidden=7, trajectory=300, octaves=3)
    state = PublishedHypernet(own).state_dict()
    assert own.shapes() == {name: tuple(tensor.shape) for name, tensor in state.items()}


def embeddings(count, seed=3):
    return torch.randn(count, WIDTH, generator=seeded(seed))


@pytest.mark.parametrize("step", [0, 1, 150.5, 300])
def test_a_new_network_changes_exactly_nothing_at_any_step(step):
    for factors in new()(embeddings(3), step):
        assert torch.count_nonzero(factors.B @ factors.A) == 0
        assert torch.count_nonzero(factors.A) > 0, "with both factors zero no gradient would ever come through"


def test_a_new_network_can_learn():
    network = new()
    # Any loss of the delta: the gradient has to reach the weights that start at zero.
    sum((factors.B @ factors.A).sum() for factors in network(embeddings(2), 300)).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.right.parameters())


def test_once_it_changes_something_every_weight_learns():
    network = trained().requires_grad_()
    sum((factors.B @ factors.A).square().sum() for factors in network(embeddings(2), 200)).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_step_zero_changes_exactly_nothing_whatever_the_weights():
    layers = trained()(embeddings(4), 0)
    assert all(torch.count_nonzero(factors.B) == 0 for factors in layers)
    assert delta_norm(layers).tolist() == [0, 0, 0, 0]


def test_other_steps_change_something():
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


def test_an_affine_map_is_seeded_and_can_start_at_zero():
    v = embeddings(3)
    affine = Affine(WIDTH, 4, seeded(0))
    assert affine.weight.shape == (4, WIDTH)
    assert 0 < affine.weight.abs().max() <= 1 / WIDTH**0.5
    with torch.no_grad():
        affine.bias.copy_(torch.arange(4.0))
    by_hand = torch.stack([(affine.weight * row).sum(1) + torch.arange(4.0) for row in v])
    torch.testing.assert_close(affine(v), by_hand)
    assert torch.count_nonzero(Affine(WIDTH, 4, seeded(0), zero=True)(v)) == 0


@pytest.mark.parametrize("changes", [{}, {"rank": 1, "basis": 1}, {"rank": 4, "basis": 2}], ids=str)
def test_the_factors_follow_the_equations(changes):
    network, c = trained(**changes), embeddings(2)
    rank, basis, count = network.config.rank, network.config.basis, len(LAYERS)
    g = 200 / 300
    h = network.trunk(torch.cat([c, step_code(torch.tensor([200.0, 200.0]), 300, 4)], dim=1)).clamp_min(0)
    assert 0 < torch.count_nonzero(h) < h.numel(), "both sides of the relu are in use"
    left, right = network.left(h), network.right(h)
    found = network(c, 200)
    for row in range(2):
        P = network.P_const + g * left[row].reshape(count, rank, basis)
        Q = g * right[row].reshape(count, basis, rank)
        for n, (layer, factors) in enumerate(zip(LAYERS, found, strict=True)):
            assert factors.A.shape == (2, rank, layer.inputs)
            assert factors.B.shape == (2, layer.outputs, rank)
            torch.testing.assert_close(factors.A[row], P[n] @ network.down[n])
            torch.testing.assert_close(factors.B[row], network.up[n] @ Q[n])


def test_a_bounded_trunk_gives_a_larger_answer_no_larger_change():
    network, c = trained(bounded=True, hidden=1), embeddings(1)
    with torch.no_grad():
        network.left.bias.zero_()
        network.right.bias.zero_()
        network.P_const.zero_()
        network.trunk.weight.zero_()

    def delta(answer):
        network.trunk.bias.fill_(answer)
        return [factors.B @ factors.A for factors in network(c, 300)]

    for one, half, two in zip(delta(1.0), delta(0.5), delta(2.0), strict=True):
        assert one.any()
        assert torch.equal(two, one)
        torch.testing.assert_close(half, one / 4)


def test_a_layer_s_delta_stays_within_its_own_basis():
    """Whatever the prompt: columns out of `up`, rows out of `down`."""
    network = trained(rank=4)
    for n, factors in enumerate(network(embeddings(5), 300)):
        columns, rows = network.up[n], network.down[n].T
        delta = (factors.B @ factors.A).unbind(0)
        for onto, parts in ((columns, torch.cat(delta, 1)), (rows, torch.cat(delta, 0).T)):
            outside = parts - onto @ torch.linalg.lstsq(onto, parts).solution
            assert outside.norm() < 1e-4 * parts.norm()


def test_the_trunk_is_shared_and_only_the_bases_grow_with_the_sizes_of_the_layers():
    wide = tuple(TargetLayer(layer.name, 10 * layer.inputs, 10 * layer.outputs) for layer in LAYERS)
    before, after = (
        {name: weight.numel() for name, weight in new(layers=layers).named_parameters()} for layers in (LAYERS, wide)
    )
    grown = {name for name in before if after[name] != before[name]}
    assert grown == {f"{side}.{n}" for side in ("down", "up") for n in range(len(LAYERS))}
    assert all(after[name] == 10 * before[name] for name in grown)


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
    zeros = {"trunk.bias", "left.bias", "right.weight", "right.bias"}
    assert {name for name in first if torch.equal(first[name], other[name])} == zeros
    assert not any(first[name].any() for name in zeros)


def test_a_config_survives_json():
    before = config(rank=3, basis=5, trajectory=20, octaves=2)
    assert HypernetConfig.from_dict(json.loads(json.dumps(before.to_dict()))) == before


@pytest.mark.parametrize(
    "change",
    [{"layers": None}, {"layers": [{"name": "a"}]}, {"surprise": 1}, {"alpha": 1.0}],
    ids=["no layers", "half a layer", "unknown key", "of the former network"],
)
def test_a_dict_that_is_no_config_is_refused(change):
    with pytest.raises((TypeError, KeyError)):
        HypernetConfig.from_dict({**config().to_dict(), **change})


def test_at_real_layer_sizes_it_is_a_twentieth_of_a_pair_of_heads_a_layer():
    """Bytes of the file, against two-layer heads 100 wide in fp32, as the paper's authors lay them out."""
    widths = 5 * [320] + 5 * [640] + 6 * [1280]
    layers = tuple(TargetLayer(f"{n}.to_{kind}", 768, width) for n, width in enumerate(widths) for kind in "kv")
    with torch.device("meta"):
        network = Hypernet(HypernetConfig(768, layers))
    size = 2 * sum(tensor.numel() for tensor in network.state_dict().values())
    own = network.config
    inputs = own.embedding_width + 2 * own.octaves
    heads = sum(2 * 100 * (inputs + 1) + 101 * own.rank * (layer.inputs + layer.outputs) for layer in layers)
    assert size < 4 * heads / 20

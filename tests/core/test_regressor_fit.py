"""The pooled-embedding regressor: its map by hand, how it is fitted, and how it is made smaller."""

import pytest
import torch
from core_parts import CONTEXT, normal, random_regressor, seeded

from unhype.hypernet.regressor import PooledRegressor, chunk_features
from unhype.training.regressor_fit import MIN_R2, compressed, fit_layer, fit_regressor, full_rank_maps, r_squared, ridge


def drawn(count, features=12, width=5, seed=0):
    generator = seeded(seed)
    f = torch.randn(count, features, generator=generator)
    return f, f @ torch.randn(features, width, generator=seeded(9)) + 2


@pytest.mark.parametrize("count", [8, 40], ids=["fewer rows than features", "more"])
def test_ridge_is_the_minimum_of_its_loss(count):
    features, c = drawn(count)
    c = c + torch.randn(c.shape, generator=seeded(4))
    X = features - features.mean(0)
    weight = 0.1 * X.square().sum() / X.shape[1]

    def loss(W, b):
        return ((features @ W.T + b - c).square().sum() + weight * W.square().sum()).item()

    W, b = ridge(features, c, 0.1)
    for seed in range(10):
        generator = seeded(seed)
        nearby = (
            W + 0.01 * torch.randn(W.shape, generator=generator),
            b + 0.01 * torch.randn(b.shape, generator=generator),
        )
        assert loss(*nearby) > loss(W, b)


def test_a_linear_relation_is_fitted_and_noise_is_not():
    (features, c), (unseen, target) = drawn(60), drawn(20, seed=1)
    weight, bias, r2 = fit_layer(features, unseen, c, target, (6,))
    assert r2 > 0.99
    torch.testing.assert_close(unseen @ weight.T + bias[0], target, rtol=0, atol=0.2)
    assert fit_layer(features, unseen, torch.randn(c.shape, generator=seeded(6)), target, (6,))[-1] < 0.5


def test_each_encoder_has_a_map_of_its_own():
    (f, c), (unseen, target) = drawn(60), drawn(20, seed=1)
    weight, bias, r2 = fit_layer(torch.cat([f, f * 3], 1), torch.cat([unseen, unseen * 3], 1), c, target, (6, 6))
    assert r2 > 0.99
    regressor = PooledRegressor((6, 6), *full_rank_maps(weight.unsqueeze(0), 2), bias.unsqueeze(0), torch.zeros(1, 25))
    one, other = regressor(torch.cat([unseen, torch.zeros_like(unseen)], 1))
    assert r_squared(one, target) > 0.99
    assert r_squared(other, target) < 0.01


def test_a_smaller_regressor_keeps_what_c_is_multiplied_with():
    """The products of c with the given rows survive a rank that c itself would not."""
    features, weight = torch.randn(200, 24, generator=seeded(1)), torch.randn(1, 8, 24, generator=seeded(2))
    whole = PooledRegressor(
        (6, 6), *full_rank_maps(weight, 2), torch.randn(1, 2, 8, generator=seeded(3)), torch.zeros(1, 25)
    )
    rows = torch.randn(2, 8, generator=seeded(4))
    small = compressed(whole, [features], rows, rank=2)
    assert small.up.shape == (1, 2, 8, 2)
    assert small.down.shape == (1, 2, 24)
    c, found = whole(features), small(features)
    torch.testing.assert_close(found @ rows.T, c @ rows.T, rtol=0, atol=0.05 * (c @ rows.T).std().item())
    assert r_squared(found.flatten(0, 1), c.flatten(0, 1)) < 0.9


@pytest.fixture
def layers():
    """Features of two encoder layers and c, for training and held out: one map for each layer gives the same c."""
    f, c = drawn(90)
    turned = f @ torch.linalg.qr(normal(12, 12, seed=5))[0] + 3
    return [(f[:60], f[60:]), (turned[:60], turned[60:])], (c[:60], c[60:])


def test_every_layer_is_identified_by_its_features_and_gets_its_own_map(layers):
    features, c = layers
    regressor, known, r2 = fit_regressor(features, c, (6,))
    assert known == [0, 1]
    assert r2 > 0.99
    for _, held_out in features:
        assert r_squared(regressor(held_out)[0], c[1]) > 0.95


def test_a_layer_that_does_not_give_c_is_left_out(layers):
    (usual, _), c = layers
    noise = normal(60, 12, seed=8), normal(30, 12, seed=9)
    regressor, known, r2 = fit_regressor([usual, noise], c, (6,))
    assert known == [0]
    assert r2 > 0.99
    assert len(regressor.up) == 1
    nothing, known, r2 = fit_regressor([noise, usual], c, (6,))
    assert nothing is None
    assert known == []
    assert r2 < MIN_R2


# The map itself


def test_the_features_of_a_chunk_are_mean_and_last_state_of_each_encoder():
    tokens = torch.tensor([[1.0, 3.0, 7.0], [3.0, 1.0, 9.0]])
    # Means (2, 2) and 8, last states (3, 1) and 9, each over its root mean square.
    expected = [1, 1, 3 / 5**0.5, 1 / 5**0.5, 1, 1]
    torch.testing.assert_close(chunk_features(tokens, (2, 1)), torch.tensor(expected))


def test_the_weight_of_tokens_does_not_change_their_features():
    tokens = normal(4, 3)
    torch.testing.assert_close(chunk_features(1e-3 * tokens, (3,)), chunk_features(tokens, (3,)))


def test_padding_of_zeros_gives_numbers_and_gradients():
    tokens = torch.zeros(4, 3, requires_grad=True)
    features = chunk_features(tokens, (3,))
    features.sum().backward()
    assert features.tolist() == [0] * 6
    assert bool(torch.isfinite(tokens.grad).all())


def test_the_estimate_by_hand():
    """Two layers of one encoder of width 1, c of width 1: the key takes the layer with the higher score."""
    regressor = PooledRegressor(
        (1,),
        torch.tensor([[[[2.0]]], [[[3.0]]]]),
        torch.tensor([[[1.0, 10.0]], [[1.0, -1.0]]]),
        torch.tensor([[[0.5]], [[0.25]]]),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]]),
    )
    # (4, 1): scores 4 and 1.5, so 2 * 14 + 0.5. (1, 1): scores 1 and 1.5, so 3 * 0 + 0.25.
    assert regressor(torch.tensor([[4.0, 1.0], [1.0, 1.0]])).tolist() == [[[28.5], [0.25]]]


def test_there_is_a_candidate_for_each_encoder():
    regressor = random_regressor((5, 3), layers=2)
    tokens = normal(7, 8, seed=1)
    assert regressor.fits(tokens)
    assert not regressor.fits(normal(7, CONTEXT))
    found = regressor.candidates(tokens)
    expected = regressor(chunk_features(tokens, (5, 3)).unsqueeze(0))
    assert len(found) == 2
    for c, own in zip(found, expected, strict=True):
        assert torch.equal(c, own[0])

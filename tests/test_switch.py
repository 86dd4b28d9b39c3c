"""The switch of the dead zone: the discriminant by hand, and what its calibration promises."""

import pytest
import torch
from tiny import seeded

from unhype.training.switch import discriminant, fit_switch

# Mean 0, variances 1 and 4, nothing between them.
BENIGN = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
NONE = torch.zeros(0, 2)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (5.0, -3.0)])
def test_the_discriminant_by_hand(shift):
    """Within the wordings [[1, 0], [0, 0]], within both diag(1, 2), with a ridge of 0.15 diag(1.15, 2.15)."""
    shift = torch.tensor(shift)
    wordings = torch.tensor([[1.0, 1.0], [3.0, 1.0]]) + shift
    direction = torch.tensor([2 / 1.15, 1 / 2.15])
    expected = direction / direction.sum()  # the score of (1, 1), the lower of the two medians, is 1
    w, b = discriminant(wordings, NONE, BENIGN + shift)
    torch.testing.assert_close(w, expected)
    torch.testing.assert_close(b, -(expected @ shift))


def test_a_sentence_counts_a_tenth_of_a_wording():
    counts = ((6, 2), (40, 1), (50, 0))
    wordings, sentences, benign = (torch.randn(n, 3, generator=seeded(n)) + shift for n, shift in counts)
    weights = torch.tensor([10] * 6 + [1] * 40)
    named = torch.cat([wordings, sentences])
    within = torch.cov(named.T, correction=0, fweights=weights) + torch.cov(benign.T, correction=0)
    mean = (named * weights.unsqueeze(1)).sum(0) / weights.sum()
    ridge = 0.1 * (within / 2).diagonal().mean() * torch.eye(3)
    direction = torch.linalg.inv(within / 2 + ridge) @ (mean - benign.mean(0))
    w, _ = discriminant(wordings, sentences, benign)
    torch.testing.assert_close(w / w.norm(), direction / direction.norm(), rtol=1e-4, atol=1e-4)


def test_the_median_wording_scores_one_and_the_mean_benign_prompt_nothing():
    counts = ((21, 3), (40, 1), (60, 0))
    wordings, sentences, benign = (torch.randn(n, 8, generator=seeded(n)) + shift for n, shift in counts)
    w, b = discriminant(wordings, sentences, benign)
    assert (wordings @ w + b).median().item() == pytest.approx(1, abs=1e-4)
    assert (benign @ w + b).mean().item() == pytest.approx(0, abs=1e-4)


# Calibration, on prompts out of normal distributions of which concepts lie apart


def world(concepts=1, held_out=399, seed=0, width=8, distance=6.0):
    """Wordings and sentences of each concept, benign prompts, and held-out ones.

    Where concepts are 10 away, the threshold is set by the held-out prompts; at 6 they are too near for that, and it
    is set by the weakest wording.
    """
    generator = seeded(seed)

    def around(place, count, spread):
        return place + spread * torch.randn(count, width, generator=generator)

    places = distance * torch.eye(width)[:concepts]
    wordings, sentences = [around(place, 20, 0.3) for place in places], [around(place / 2, 40, 0.7) for place in places]
    return wordings, sentences, around(torch.zeros(width), 400, 1.0), around(torch.zeros(width), held_out, 1.0)


@pytest.mark.parametrize("concepts", [1, 4])
def test_few_unseen_benign_prompts_are_taken_for_an_erased_one(concepts):
    """Of all concepts together a hundredth, and what is not known from no more than so many held-out prompts."""
    count, shares = 399, []
    for seed in range(20):
        switch = fit_switch(*world(concepts, count, seed))
        unseen = torch.randn(2000, 8, generator=seeded(1000 + seed))
        shares.append((switch(unseen) >= 1).float().mean().item())
    assert 0 < sum(shares) / len(shares) <= 0.01 + concepts / (count + 1)


def test_every_wording_of_every_concept_is_heard_and_by_its_own_score():
    wordings, sentences, benign, held_out = world(concepts=3)
    switch = fit_switch(wordings, sentences, benign, held_out)
    for number, own in enumerate(wordings):
        scores = switch.scores(own)
        assert bool((scores[:, number] >= 1).all())
        assert bool((scores.argmax(1) == number).all())


def test_with_more_concepts_each_gets_fewer_of_the_false_alarms():
    wordings, sentences, benign, held_out = world(concepts=2, distance=10.0)
    alone = fit_switch(wordings[:1], sentences[:1], benign, held_out)
    shared = fit_switch(wordings, sentences, benign, held_out)
    assert shared.weight[0].norm() < alone.weight[0].norm()
    torch.testing.assert_close(shared.weight[0] / shared.weight[0].norm(), alone.weight[0] / alone.weight[0].norm())


def test_a_held_out_prompt_counts_by_the_loudest_of_its_views():
    wordings, sentences, benign, quiet = world(distance=12.0)
    loud = quiet * 1.1
    by_views = fit_switch(wordings, sentences, benign, torch.cat([quiet, loud]), held_out_views=2)
    loudest = fit_switch(wordings, sentences, benign, loud)
    mixed = fit_switch(wordings, sentences, benign, torch.cat([quiet, loud]))
    torch.testing.assert_close(by_views.weight, loudest.weight)
    assert not torch.allclose(mixed.weight, loudest.weight)


def test_what_cannot_be_told_apart_still_makes_a_switch_of_numbers():
    wordings, sentences, benign, held_out = world(distance=0.0)
    switch = fit_switch(wordings, sentences, benign, held_out)
    assert bool(torch.isfinite(switch.half()(torch.cat([*wordings, held_out]))).all())

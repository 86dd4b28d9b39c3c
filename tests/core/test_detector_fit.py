"""Fitting the detector: its margin by hand, and what its calibration promises."""

import pytest
import torch
from core_parts import seeded

from unhype.training.detector_fit import fit_detector, widest_margin

BENIGN = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
NONE = torch.zeros(0, 2)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (5.0, -3.0)])
def test_the_widest_margin_by_hand(shift):
    """Wordings at (2, 0), benign prompts at distance 1 from their mean, lambda 0.1: w = (2/3, 0), b = -2/5.

    Of the benign ones (1, 0) alone scores above zero. So (1 - 2 x - b)^2 + (x + b)^2 / 4 + x^2 / 10 is least, where
    2 (1 - 2 x - b) = (x + b) / 4 + x / 10 and 1 - 2 x - b = (x + b) / 4.
    """
    shift = torch.tensor(shift)
    w, b = widest_margin(torch.tensor([[2.0, 0.0]]).expand(3, 2) + shift, NONE, BENIGN + shift, NONE, width=0.1)
    torch.testing.assert_close(w, torch.tensor([2 / 3, 0.0]), rtol=1e-4, atol=1e-6)
    assert b.item() == pytest.approx(-0.4 - 2 / 3 * shift[0].item(), abs=1e-4)


def test_no_other_score_has_a_smaller_loss():
    """The loss of the module, written out again, at the solution and beside it."""
    sizes = ((8, 2), (30, 1), (60, 0), (12, 0.5))
    wordings, sentences, benign, near = (torch.randn(n, 5, generator=seeded(n)) + at for n, at in sizes)
    w, b = widest_margin(wordings, sentences, benign, near, near_weight=0.4)
    scale = (benign - benign.mean(0)).square().sum(1).mean().sqrt()

    def loss(w, b):
        missed = [torch.relu(1 - (part @ w + b)).square().sum() for part in (wordings, sentences)]
        alarms = torch.relu(benign @ w + b).square().mean() + 0.4 * torch.relu(near @ w + b).square().mean()
        return ((10 * missed[0] + missed[1]) / (10 * 8 + 30) + alarms + 0.01 * (scale * w).square().sum()).item()

    generator = seeded(0)
    for size in (0.1, 0.01):
        for _ in range(50):
            step = size * torch.randn(6, generator=generator)
            assert loss(w + step[:5], b + step[5]) > loss(w, b)


def test_far_benign_prompts_do_not_bend_it():
    """Ten times as far on the side away from the concept they change the mean, and so nothing but scale and shift."""
    wordings = torch.tensor([[3.0, 0.5], [3.0, -0.5]])
    near = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    w, _ = widest_margin(wordings, NONE, torch.cat([near, torch.tensor([[-5.0, 30.0], [-5.0, -30.0]])]), NONE)
    assert abs(w[1].item()) < 1e-3 * w[0].item()


# Calibration, on prompts out of normal distributions of which concepts lie apart


def world(concepts=1, held_out=399, seed=0, width=8, distance=6.0):
    """Wordings and sentences of each concept, benign prompts, and held-out ones of one candidate each.

    Where concepts are 10 away, the threshold is set by the held-out prompts; at 6 they are too near for that, and it
    is set by the weakest wording.
    """
    generator = seeded(seed)

    def around(place, count, spread):
        return place + spread * torch.randn(count, width, generator=generator)

    places = distance * torch.eye(width)[:concepts]
    wordings, sentences = [around(place, 20, 0.3) for place in places], [around(place / 2, 40, 0.7) for place in places]
    return wordings, sentences, around(torch.zeros(width), 400, 1.0), around(torch.zeros(width), held_out, 1.0)[None]


@pytest.mark.parametrize("concepts", [1, 4])
def test_few_unseen_benign_prompts_are_detected(concepts):
    """Of all concepts together a hundredth, and what is not known from no more than so many held-out prompts."""
    count, shares = 399, []
    for seed in range(5):
        detector = fit_detector(*world(concepts, count, seed))
        unseen = torch.randn(2000, 8, generator=seeded(1000 + seed))
        shares.append((detector(unseen) >= 1).float().mean().item())
    assert 0 < sum(shares) / len(shares) <= 0.01 + concepts / (count + 1)


def test_every_wording_of_every_concept_is_detected_by_its_own_score():
    wordings, sentences, benign, held_out = world(concepts=3)
    detector = fit_detector(wordings, sentences, benign, held_out)
    for number, own in enumerate(wordings):
        scores = detector.scores(own)
        assert bool((scores[:, number] >= 1).all())
        assert bool((scores.argmax(1) == number).all())


def test_with_more_concepts_each_gets_fewer_of_the_false_alarms():
    wordings, sentences, benign, held_out = world(concepts=2, distance=10.0)
    alone = fit_detector(wordings[:1], sentences[:1], benign, held_out)
    shared = fit_detector(wordings, sentences, benign, held_out)
    assert shared.weight[0].norm() < alone.weight[0].norm()
    torch.testing.assert_close(shared.weight[0] / shared.weight[0].norm(), alone.weight[0] / alone.weight[0].norm())


def test_of_a_held_out_prompt_the_candidate_with_the_highest_score_counts():
    wordings, sentences, benign, lower = world(distance=12.0)
    higher = lower[0] * 1.1
    by_candidates = fit_detector(wordings, sentences, benign, torch.stack([lower[0], higher]))
    highest = fit_detector(wordings, sentences, benign, higher.unsqueeze(0))
    mixed = fit_detector(wordings, sentences, benign, torch.cat([lower[0], higher]).unsqueeze(0))
    torch.testing.assert_close(by_candidates.weight, highest.weight)
    assert not torch.allclose(mixed.weight, highest.weight)


def test_what_cannot_be_separated_still_makes_a_detector_of_finite_numbers():
    wordings, sentences, benign, held_out = world(distance=0.0)
    detector = fit_detector(wordings, sentences, benign, held_out)
    assert bool(torch.isfinite(detector.half()(torch.cat([*wordings, held_out[0]]))).all())


def test_preserved_prompts_stay_below_the_threshold_and_every_wording_above_it():
    wordings, sentences, benign, held_out = world()
    preserved = 0.7 * wordings[0][:5]
    without = fit_detector(wordings, sentences, benign, held_out)
    detector = fit_detector(wordings, sentences, benign, held_out, preserved)
    assert bool((without(preserved) >= 1).any())
    assert bool((detector.half()(preserved) < 1).all())
    assert bool((detector(wordings[0]) >= 1).all())


def test_preserving_the_concept_itself_does_not_keep_it_from_being_detected():
    wordings, sentences, benign, held_out = world()
    detector = fit_detector(wordings, sentences, benign, held_out, wordings[0])
    assert bool((detector(wordings[0]) > 1.2).all())


def test_an_interrupt_comes_between_two_concepts():
    calls = []

    def report(done, total):
        calls.append((done, total))
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_detector(*world(concepts=3), report=report)
    assert calls == [(0, 3), (1, 3)]

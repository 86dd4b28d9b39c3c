"""Retention: what H generates for prompts that must keep their pictures."""

from dataclasses import replace

import pytest
import torch
from core_parts import POOLED, TINY, moved_hypernet, normal, seeded

from unhype.hypernet.factors import delta_norm
from unhype.training.losses import retention_loss
from unhype.training.retention import Retention, delta_norms


def test_norms_are_those_of_the_whole_delta_at_the_end_of_the_trajectory():
    hypernet, c = moved_hypernet(), normal(7, POOLED)
    expected = torch.stack([(f.B @ f.A).square().sum((1, 2)) for f in hypernet(c, 300)]).sum(0).sqrt()
    torch.testing.assert_close(delta_norms(hypernet, c), expected)
    torch.testing.assert_close(delta_norms(hypernet, c, chunk=2), delta_norms(hypernet, c))


def test_the_error_is_the_95_percent_quantile_over_the_median_wording():
    hypernet, held_out, erased = moved_hypernet(), normal(21, POOLED, seed=1), normal(5, POOLED, seed=2)
    found = Retention(normal(3, POOLED), held_out, erased).error(hypernet)
    benign, wordings = (delta_norm(hypernet(c, 300)).sort().values for c in (held_out, erased))
    assert found == pytest.approx((benign[19] / wordings[2]).item(), rel=1e-5)


def test_the_error_of_a_hypernet_that_changes_nothing_is_zero():
    hypernet = moved_hypernet(size=0.0)
    assert Retention(*(normal(3, POOLED, seed=seed) for seed in range(3))).error(hypernet) == 0


def test_the_loss_is_the_mean_of_retained_prompts_at_drawn_steps():
    """One retained prompt without jitter: between its losses at s = 0 and at s = S, half of the samples at S."""
    hypernet, c = moved_hypernet(), normal(1, POOLED)
    retention = Retention(c, normal(3, POOLED, seed=1), normal(3, POOLED, seed=2))
    settings = replace(TINY, retain_batch=400, jitter=0.0)
    at_the_end = retention_loss(hypernet(c, 300)).item()
    assert 0.5 * at_the_end < retention.loss(hypernet, settings, seeded(0)).item() < at_the_end


def test_the_loss_depends_on_retained_prompts_alone_and_on_the_generator():
    hypernet, train = moved_hypernet(), normal(9, POOLED)
    one, other = (Retention(train, normal(3, POOLED, seed=n), normal(3, POOLED, seed=n + 1)) for n in (1, 5))
    first, again, drawn_anew = (
        retention.loss(hypernet, TINY, seeded(seed)).item() for retention, seed in ((one, 0), (other, 0), (one, 1))
    )
    assert first == again != drawn_anew

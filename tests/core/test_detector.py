"""The switch of the dead zone, and where its threshold comes to lie."""

import pytest
import torch
from tiny import seeded

from unhype.hypernet.detector import Detector, calibrate, is_silent


def test_the_threshold_lies_between_benign_and_erased_nearer_to_the_benign():
    benign, erased = torch.full((100,), 1.0), torch.tensor([32.0, 40.0])
    assert calibrate(benign, erased) == pytest.approx(4.0)


def test_one_benign_prompt_in_a_hundred_may_be_louder():
    benign = torch.ones(201)
    benign[0] = 15.0
    assert calibrate(benign, torch.tensor([32.0])) == pytest.approx(4.0)


@pytest.mark.parametrize("benign", [3.0, 5.0, 100.0])
def test_erased_phrasings_stay_far_above_it_even_where_benign_prompts_are_as_loud(benign):
    assert calibrate(torch.full((9,), benign), torch.tensor([4.0, 9.0])) <= 0.6 * 4.0


def test_a_network_that_writes_nothing_gets_no_dead_zone():
    assert calibrate(torch.zeros(5), torch.zeros(3)) == 0.0


def test_scores_below_zero_count_as_zero():
    """A switch gives prompts that are unlike the concept less than nothing."""
    assert calibrate(torch.full((50,), -3.0), torch.tensor([1.0, 0.8])) == 0.0
    assert calibrate(torch.tensor([-3.0, 0.5]), torch.tensor([-1.0, 1.0])) == 0.0


@pytest.mark.parametrize("false_alarms", [0.01, 0.1])
def test_at_most_the_promised_share_of_benign_prompts_is_louder(false_alarms):
    """Averaged over many draws of n prompts and of one to come: split conformal prediction."""
    n, draws = 99, 2000
    scores = torch.rand(draws, n + 1, generator=seeded(0))
    thresholds = torch.tensor([calibrate(row[:n], torch.tensor([2.0]), false_alarms, reach=1.0) for row in scores])
    share = (scores[:, n] >= thresholds).float().mean().item()
    assert 0 < share <= false_alarms + 1 / (n + 1) + 2 * (0.1 / draws) ** 0.5


def test_a_score_at_the_threshold_counts():
    assert is_silent(torch.tensor([0.9, 1.0, 1.1]), 1.0).tolist() == [True, False, False]


SWITCH = Detector(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0]))


def test_a_switch_scores_every_concept_and_answers_with_the_most_present_one():
    c = torch.tensor([[1.0, 1.0], [0.0, -4.0], [0.0, 0.0]])
    assert SWITCH.scores(c).tolist() == [[3.5, -1.0], [-7.5, 4.0], [0.5, 0.0]]
    assert SWITCH(c).tolist() == [3.5, 4.0, 0.5]


def test_a_switch_reads_embeddings_of_lower_precision_in_fp32():
    c = torch.tensor([[1.0, 1.0 / 3]])
    found = SWITCH(c.half())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1.5 + 2 / 3, rel=1e-3)


# Raising what says a concept weakly

PLAIN = torch.tensor([[2.0, 1.5], [0.0, -4.0]])  # scores 5.5 and 4


def test_a_weak_wording_is_raised_half_way_to_the_name():
    """(1, 1) scores 3.5, its name 5.5: one is missing, along (1, 2) / 5."""
    found = SWITCH.steer(torch.tensor([[1.0, 1.0]]), PLAIN)
    torch.testing.assert_close(found, torch.tensor([[1.2, 1.4]]))
    assert SWITCH(found).item() == pytest.approx(4.5)


def test_each_prompt_is_raised_towards_its_own_concept():
    found = SWITCH.steer(torch.tensor([[1.0, 1.0], [0.0, -2.0]]), PLAIN)
    torch.testing.assert_close(found, torch.tensor([[1.2, 1.4], [0.0, -3.0]]))


@pytest.mark.parametrize("c", [[0.0, 0.0], [0.0, 0.2], [3.0, 3.0], [0.0, -9.0]])
def test_what_is_silent_or_says_it_as_clearly_as_the_name_stays_as_it_is(c):
    c = torch.tensor([c])
    assert torch.equal(SWITCH.steer(c, PLAIN), c)


def test_a_concept_without_a_direction_raises_nothing():
    c = torch.tensor([[1.0, 1.0]])
    assert torch.equal(Detector(torch.zeros(1, 2), torch.tensor([2.0])).steer(c, PLAIN[:1]), c)

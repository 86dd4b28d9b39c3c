"""The detector: its scores, the steered embedding, and the calibration of its threshold."""

import pytest
import torch
from core_parts import seeded

from unhype.hypernet.detector import Detector, calibrate


def test_the_threshold_lies_between_benign_and_erased_nearer_to_the_benign():
    benign, erased = torch.full((100,), 1.0), torch.tensor([32.0, 40.0])
    assert calibrate(benign, erased) == pytest.approx(4.0)


def test_one_benign_prompt_in_a_hundred_may_score_higher():
    benign = torch.ones(201)
    benign[0] = 15.0
    assert calibrate(benign, torch.tensor([32.0])) == pytest.approx(4.0)


@pytest.mark.parametrize("benign", [3.0, 5.0, 100.0])
def test_erased_wordings_stay_far_above_it_even_where_benign_prompts_score_as_high(benign):
    assert calibrate(torch.full((9,), benign), torch.tensor([4.0, 9.0])) <= 0.6 * 4.0


def test_scores_of_zero_give_a_threshold_of_zero():
    assert calibrate(torch.zeros(5), torch.zeros(3)) == 0.0


def test_scores_below_zero_count_as_zero():
    """Prompts that are unlike the concept score below zero."""
    assert calibrate(torch.full((50,), -3.0), torch.tensor([1.0, 0.8])) == 0.0
    assert calibrate(torch.tensor([-3.0, 0.5]), torch.tensor([-1.0, 1.0])) == 0.0


@pytest.mark.parametrize("false_alarms", [0.01, 0.1])
def test_at_most_the_promised_share_of_benign_prompts_scores_higher(false_alarms):
    """Averaged over many draws of n prompts and of one to come: split conformal prediction."""
    n, draws = 99, 2000
    scores = torch.rand(draws, n + 1, generator=seeded(0))
    thresholds = torch.tensor([calibrate(row[:n], torch.tensor([2.0]), false_alarms, reach=1.0) for row in scores])
    share = (scores[:, n] >= thresholds).float().mean().item()
    assert 0 < share <= false_alarms + 1 / (n + 1) + 2 * (0.1 / draws) ** 0.5


DETECTOR = Detector(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0]))


def test_every_concept_has_a_score_and_the_highest_counts():
    c = torch.tensor([[1.0, 1.0], [0.0, -4.0], [0.0, 0.0]])
    assert DETECTOR.scores(c).tolist() == [[3.5, -1.0], [-7.5, 4.0], [0.5, 0.0]]
    assert DETECTOR(c).tolist() == [3.5, 4.0, 0.5]


def test_embeddings_of_lower_precision_are_scored_in_fp32():
    c = torch.tensor([[1.0, 1.0 / 3]])
    found = DETECTOR(c.half())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1.5 + 2 / 3, rel=1e-3)


# Steering embeddings of low scores

CONCEPTS = torch.tensor([[2.0, 1.5], [0.0, -4.0]])  # scores 5.5 and 4


def test_a_weak_wording_is_steered_to_the_score_of_the_name():
    """(1, 1) scores 3.5, its concept 5.5: two are missing, along (1, 2) / 5."""
    found = DETECTOR.steer(torch.tensor([[1.0, 1.0]]), CONCEPTS)
    torch.testing.assert_close(found, torch.tensor([[1.4, 1.8]]))
    assert DETECTOR(found).item() == pytest.approx(5.5)


def test_each_prompt_is_steered_towards_its_own_concept():
    found = DETECTOR.steer(torch.tensor([[1.0, 1.0], [0.0, -2.0]]), CONCEPTS)
    torch.testing.assert_close(found, torch.tensor([[1.4, 1.8], [0.0, -4.0]]))


def test_a_score_at_the_threshold_is_steered_and_one_below_it_is_not():
    at, below = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.49, 0.0]])
    assert DETECTOR(at).item() == 1
    torch.testing.assert_close(DETECTOR.steer(at, CONCEPTS), torch.tensor([[1.4, 1.8]]))
    assert torch.equal(DETECTOR.steer(below, CONCEPTS), below)


@pytest.mark.parametrize("c", [[0.0, 0.0], [0.0, 0.2], [3.0, 3.0], [0.0, -9.0]])
def test_embeddings_below_the_threshold_or_above_their_concept_stay_as_they_are(c):
    c = torch.tensor([c])
    assert torch.equal(DETECTOR.steer(c, CONCEPTS), c)


def test_a_concept_without_a_direction_steers_nothing():
    c = torch.tensor([[1.0, 1.0]])
    assert torch.equal(Detector(torch.zeros(1, 2), torch.tensor([2.0])).steer(c, CONCEPTS[:1]), c)

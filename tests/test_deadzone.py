"""Where the threshold of the dead zone comes to lie."""

import pytest
import torch

from unhype.hypernet.deadzone import calibrate, is_silent


def test_the_threshold_lies_between_benign_and_erased_nearer_to_the_benign():
    benign, erased = torch.full((100,), 1.0), torch.tensor([32.0, 40.0])
    assert calibrate(benign, erased) == pytest.approx(4.0)


def test_one_benign_prompt_in_a_hundred_may_be_louder():
    benign = torch.ones(201)
    benign[0] = 15.0
    assert calibrate(benign, torch.tensor([32.0])) == pytest.approx(4.0)


@pytest.mark.parametrize("benign", [3.0, 5.0, 100.0])
def test_erased_phrasings_stay_far_above_it_even_where_benign_prompts_are_as_loud(benign):
    assert calibrate(torch.full((9,), benign), torch.tensor([4.0, 9.0])) <= 0.5 * 4.0


def test_a_network_that_writes_nothing_gets_no_dead_zone():
    assert calibrate(torch.zeros(5), torch.zeros(3)) == 0.0


def test_a_norm_at_the_threshold_counts():
    assert is_silent(torch.tensor([0.9, 1.0, 1.1]), 1.0).tolist() == [True, False, False]

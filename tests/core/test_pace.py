"""How long a training still takes: from a fifth of it on within 1.5 times of the truth.

Of the small Flux, whose steps take a quarter of what is expected, within 1.5 times or two seconds.
"""

import json
from pathlib import Path

import pytest

from unhype.training.pace import ENCODING, FINISHING, PREPARING, TRAINING, Pace, expected_seconds

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "stages.json"
# Of one concept; with many, single numbers of the fit differ more from run to run.
RECORDED = [run for run in json.loads(RESULTS.read_text("utf-8"))["runs"] if run["concepts"] == 1]


def replayed(pace, clock, reports):
    """What `pace` says at each of the reports (seconds, stage, done, total)."""
    for seconds, stage, done, total in reports:
        clock[0] = seconds
        yield seconds, pace(stage, done, total)


def made(expected):
    clock = [0.0]
    return Pace(expected, lambda: clock[0]), clock


def steady(seconds, per_stage=50):
    """The reports of a training whose stages take these seconds, evenly."""
    reports, begun = [], 0.0
    for stage, taken in seconds.items():
        reports += [(begun + taken * n / per_stage, stage, n, per_stage) for n in range(per_stage)]
        begun += taken
    return reports, begun


def mistaken(reports, end, expected, slack=0.0, factor=1.5):
    """The reports from a fifth of the time on at which the time left is off the truth, by more than `slack` seconds."""
    pace, clock = made(expected)
    found = list(replayed(pace, clock, reports))
    return [(at, left) for at, left in found if at >= 0.2 * end and is_off(left.seconds, end - at, factor, slack)]


def is_off(left, truth, factor, slack):
    return not (truth / factor <= left <= truth * factor or abs(left - truth) <= slack)


@pytest.mark.parametrize("run", RECORDED, ids=lambda run: run["run"])
def test_in_recorded_runs_the_time_left_is_near_the_truth(run):
    slack = 2.0 if run["run"].startswith("Flux") else 0.0
    assert mistaken(run["reports"], run["seconds"], expected_seconds(run["concepts"], run["steps"]), slack) == []


@pytest.mark.parametrize("factor", [0.05, 1.0, 8.0])
def test_a_stage_that_is_slower_or_faster_than_expected_counts_by_its_own_pace(factor):
    expected = {ENCODING: 60.0, PREPARING: 1.0, TRAINING: 2.0, FINISHING: 1.0}
    reports, end = steady({**expected, ENCODING: 60.0 * factor * 2})
    assert mistaken(reports, end, expected, slack=2.0) == []


def test_a_machine_that_was_slow_so_far_stays_slow():
    pace, clock = made({ENCODING: 1.0, PREPARING: 2.0, TRAINING: 10.0, FINISHING: 4.0})
    *_, (_, left) = replayed(pace, clock, [(0, PREPARING, 0, 1), (6, TRAINING, 0, 10)])
    assert left.seconds == pytest.approx(3 * 14)


def test_what_comes_before_the_first_piece_of_a_stage_is_no_measure_of_its_pieces():
    pace, clock = made({ENCODING: 100.0, FINISHING: 0.0})
    reports = [(0, ENCODING, 0, 100), (10, ENCODING, 0, 100), (30, ENCODING, 50, 100)]
    *_, (_, left) = replayed(pace, clock, reports)
    assert left.seconds == pytest.approx(20)


def test_steps_before_a_resume_take_no_time():
    pace, clock = made({TRAINING: 10.0, FINISHING: 0.0})
    *_, (_, left) = replayed(pace, clock, [(0, TRAINING, 80, 100), (3, TRAINING, 90, 100)])
    assert left.seconds == pytest.approx(3)


def test_the_share_never_falls_and_ends_at_one():
    reports, end = steady({ENCODING: 5.0, PREPARING: 9.0, TRAINING: 40.0, FINISHING: 1.0})
    pace, clock = made(expected_seconds(1, 10))
    shares = [left.share for _, left in replayed(pace, clock, [*reports, (end, FINISHING, 1, 1)])]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, pytest.approx(1.0))

"""How far a training is and how long the rest takes: by a clock that the test turns."""

import pytest

from unhype.training.remaining import STAGES, Remaining, duration, keep_pace, read_pace

KNOWN = {"encoding prompts": 0.05, "preparing": 2.0, "training": 0.1, "finishing": 3.0}
DRAWN = KNOWN | {"drawing": 10.0}


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(remaining, clock, seconds):
    """Every report of a run of 1,000 prompts and 200 steps, the stages of which take so long."""
    units = {"encoding prompts": 1000, "preparing": 1, "training": 200, "finishing": 4}
    for stage, total in units.items():
        for done in range(total + 1):
            yield stage, done, clock.now, remaining(stage, done, total)
            clock.now += seconds[stage] / total if done < total else 0


def test_the_first_line_says_what_is_done_and_what_is_left():
    remaining = Remaining(200, False, KNOWN, Clock())
    assert remaining("encoding prompts", 0, 1431).words == (
        "Encoding prompts, 0 of 1,431, about 72 s left, then training, about 25 s"
    )


def test_pictures_of_the_result_count_as_well():
    remaining = Remaining(200, True, DRAWN, Clock())
    assert remaining("encoding prompts", 0, 100).words.endswith("about 5 s left, then training, about 35 s")
    assert remaining("drawing", 1, 4).words == "Drawing, 25%, about 8 s left"


def test_without_an_earlier_run_no_time_is_made_up():
    clock = Clock()
    remaining = Remaining(200, False, {}, clock)
    assert remaining("encoding prompts", 0, 1431).words == "Encoding prompts, 0 of 1,431, then training"
    clock.now = 60  # the encoder is loaded: that is no pace
    assert remaining("encoding prompts", 8, 1431).words == "Encoding prompts, 8 of 1,431, then training"
    clock.now = 62
    assert remaining("encoding prompts", 108, 1431).words == (
        "Encoding prompts, 108 of 1,431, about 26 s left, then training"
    )
    assert remaining("training", 0, 200).words == "Training, step 0 of 200"


@pytest.mark.parametrize("pace", [{}, KNOWN])
@pytest.mark.parametrize("slower", [0.5, 1, 3])
def test_the_bar_never_goes_back_and_follows_the_time(pace, slower):
    clock = Clock()
    seconds = {
        "encoding prompts": 50 * slower,
        "preparing": 2 * slower,
        "training": 20 * slower,
        "finishing": 3 * slower,
    }
    shares = [(now, status.share) for _, _, now, status in run(Remaining(200, False, pace, clock), clock, seconds)]
    assert [share for _, share in shares] == sorted(share for _, share in shares)
    assert shares[0][1] == 0
    assert shares[-1][1] == 1
    for now, share in shares:
        if now > 0.2 * clock.now:
            assert abs(share - now / clock.now) < (0.1 if pace and slower == 1 else 0.35)


def test_encodings_that_are_kept_and_steps_before_a_resume_are_no_pace():
    clock = Clock()
    remaining = Remaining(200, False, {}, clock)
    remaining("training", 150, 200)
    clock.now = 1
    remaining("training", 151, 200)
    clock.now = 11
    assert remaining("training", 161, 200).words == "Training, step 161 of 200, about 39 s left"
    assert remaining.measured == {"training": 1.0}


def test_the_pace_of_a_run_is_kept_for_the_next(tmp_path):
    note = tmp_path / "unhype" / "pace.json"
    assert read_pace(note, "attention, BaseModel") == {}
    keep_pace(note, "attention, BaseModel", KNOWN)
    keep_pace(note, "direct, Flux", {"training": 9.0})
    keep_pace(note, "attention, BaseModel", {"training": 0.3})
    assert read_pace(note, "attention, BaseModel") == KNOWN | {"training": 0.3}
    assert set(read_pace(note, "direct, Flux")) <= STAGES.keys()
    for broken in ("[", "[]", '{"direct, Flux": {"training": "long"}}'):
        note.write_text(broken, "utf-8")
        assert read_pace(note, "direct, Flux") == {}


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (150, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_a_duration_is_said_in_words(seconds, words):
    assert duration(seconds) == words

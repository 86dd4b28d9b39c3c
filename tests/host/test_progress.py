"""The line and the bar of a training on its node."""

import io

import pytest

from unhype.nodes import progress as module
from unhype.nodes.progress import DRAWING, Progress, in_words
from unhype.training.pace import Left, Pace

EXPECTED = {"encoding prompts": 20.0, "preparing": 1.0, "training": 10.0, "finishing": 2.0, DRAWING: 5.0}


@pytest.fixture
def sent(monkeypatch):
    """What the interface gets: the texts, and the values of the bar."""
    texts, values = [], []

    class Interface:
        def send_progress_text(self, text, node):
            texts.append(text)

    class Bar:
        def __init__(self, total):
            pass

        def update_absolute(self, value, total, preview=None):
            values.append(value)

    monkeypatch.setattr(module, "_to_interfaces", Interface)
    monkeypatch.setattr(module.comfy.utils, "ProgressBar", Bar)
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    return texts, values


def finished(progress):
    for stage, total in (("encoding prompts", 40), ("preparing", 1), ("training", 20), ("finishing", 3)):
        for done in range(total + 1):
            progress(stage, done, total)


def test_the_first_line_comes_before_the_first_report_and_each_says_what_is_left(sent):
    texts, _ = sent
    progress = Progress("1", Pace(EXPECTED))
    assert texts == ["Getting ready"]
    progress("encoding prompts", 0, 40)
    assert texts[-1] == "Encoding prompts, 0%, about 38 s left"
    progress("preparing", 0, 1, note="Memory: about 2.1 GB (model 2.0, hypernet 0.1, step 0.0)")
    assert texts[-1].endswith(" left.\nMemory: about 2.1 GB")
    progress.close()
    assert texts[-1] == "Preparing, 0%.\nMemory: about 2.1 GB"
    assert in_words("training", 1200, 2000, Left(0.5, 90)) == "Training, step 1,200 of 2,000, about 2 min left"


def test_the_bar_rises_through_all_stages_and_the_pictures_to_its_end(sent):
    _, values = sent
    progress = Progress("1", Pace(EXPECTED))
    finished(progress)
    assert values[-1] < 1000
    for done in range(5):
        progress.drawing(done, 4)
    assert values == sorted(values)
    assert values[-1] == 1000
    progress.close()


def test_of_two_trainings_each_has_half_of_the_bar_and_its_title(sent):
    texts, values = sent
    short = {stage: seconds for stage, seconds in EXPECTED.items() if stage != DRAWING}
    for number in range(2):
        progress = Progress("1", Pace(short), (number, 2), f"{number + 1} of 2: cat")
        finished(progress)
        progress.close()
        assert values[-1] == 500 * (number + 1)
    assert texts[-1].startswith("2 of 2: cat.\nFinishing, 100%")


def test_the_console_has_one_colon_and_no_time_of_its_own(sent, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress(None, Pace(EXPECTED))
    progress("training", 5, 20)
    progress.console.refresh()
    progress.close()
    line = next(part for part in stream.getvalue().split("\r") if "step 5 of 20" in part)
    assert line.startswith("UnHype: Training, step 5 of 20, about ")
    assert line.count(": ") == 1
    assert "?" not in line

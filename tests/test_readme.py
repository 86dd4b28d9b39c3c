"""The README's figures are those of the result files, and what it shows and names is there."""

import json
import re

import pytest

from benchmarks import demo, speed
from benchmarks.environment import ROOT
from benchmarks.publish import RESULTS, markdown, section

README = (ROOT / "README.md").read_text("utf-8")


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def test_the_demos_table_is_its_result_file():
    found = results("demo")
    assert section("demo", README).group() == markdown(("", "before", "after"), demo.rows(found))


def test_the_speed_table_is_its_result_file():
    found = results("speed")
    assert section("speed", README).group() == markdown(("on " + found["device"], ""), speed.table(found))


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_every_picture_and_page_that_is_linked_is_there(target):
    assert (ROOT / target).is_file()

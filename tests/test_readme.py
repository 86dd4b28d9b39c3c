"""The README's figures are those of the result files, and what it shows and names is there."""

import json
import re

import pytest

from benchmarks import bypass, demo, speed
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


def test_the_bypass_table_is_its_result_file_and_has_every_way():
    found = results("bypass")
    assert section("bypass", README).group() == markdown(bypass.HEADER, bypass.rows(found["ways"]))
    assert list(found["ways"]) == list(bypass.WAYS)


def test_no_way_past_the_eraser_is_open():
    assert {
        words: row["acc_e_ours"] for words, row in results("bypass")["ways"].items() if row["acc_e_ours"] > 0.1
    } == {}


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_every_picture_and_page_that_is_linked_is_there(target):
    assert (ROOT / target).is_file()

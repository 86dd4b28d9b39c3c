"""The page for owners of a shared server: its examples are policies, its links lead somewhere, its words are the
pack's."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from unhype.policy import start
from unhype.policy.file import EraserEntry, Policy, parsed
from unhype.policy.rules import Rules

PAGE = (ROOT / "docs" / "owners.md").read_text("utf-8")
SOURCES = "".join(path.read_text("utf-8") for path in (ROOT / "policy").glob("*.py"))


@pytest.mark.parametrize("example", re.findall(r"```json\n(.+?)```", PAGE, re.S))
def test_an_example_is_a_policy(example):
    assert parsed(json.loads(example), Path("/policies")).erasers


def test_the_table_has_every_key():
    keys = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert set(keys) == {field.name for kind in (Policy, EraserEntry) for field in fields(kind)}


@pytest.mark.parametrize("target", re.findall(r"\]\(\.\./(\w+\.md#[\w-]+)\)", PAGE))
def test_a_link_leads_to_a_heading(target):
    page, _, heading = target.partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text("utf-8"), re.M)
    assert heading in {re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-") for words in headings}


def test_the_line_of_the_console_is_the_packs():
    (line,) = re.findall(r"policy\.json: (every graph draws .+?) on ", PAGE)
    assert line == "every graph draws with 'school'"
    assert "every graph draws with {listed}" in SOURCES


def test_the_sentence_that_visitors_see_is_the_packs():
    (quoted,) = re.findall(r"^> (.+)$", PAGE, re.M)
    said = re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", SOURCES))
    for part in quoted.replace("'school'", "|").split("|")[1:]:
        assert part.strip(" .") in said


def test_what_stays_outside_is_named_on_the_console_as_well():
    for option in ("--disable-all-custom-nodes", "--whitelist-custom-nodes", "--disable-api-nodes"):
        assert option in PAGE
        assert option in start._OUTSIDE
    assert Rules([]).sentence.startswith("This server draws only with the eraser")

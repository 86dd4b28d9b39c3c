"""A thousand names: the list, its parts, and the published table and curve."""

import json

import pytest

from benchmarks import protocol, thousand
from benchmarks.publish import MEASURED, RESULTS, section
from benchmarks.thousand_curve import curve
from unhype.training.prompts import mentions

RESULT = RESULTS / "thousand.json"
ROWS = [
    {"concepts": n, "h_c": 0.8, "benign_below_threshold": 1.0, "kept": 0.6, "kept_base": 0.7}
    | {"milliseconds_a_prompt": 0.1 * n, "bytes": 1e6 * n, "memory": 2e6 * n}
    for n in (1, 10, 1000)
]


def test_there_are_a_thousand_names_none_of_which_is_scored_as_kept():
    names = [name for part in thousand.parts() for name in part.names]
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert not {name.lower() for name in names} & {name.lower() for name in protocol.names_for_scoring()}


def test_the_first_parts_are_one_class_and_the_other_nine():
    first, second, *others = thousand.parts()
    assert (first.names, len(second.names)) == (("cat",), 9)
    assert max(len(part.names) for part in others) == 32
    assert {part.kind for part in others} == set(thousand.MAPPINGS)
    assert second.lines.splitlines()[0] == "airplane -> tree"


def test_benign_prompts_mention_no_name():
    names = [name for part in thousand.parts() for name in part.names]
    few, all_names = thousand.benign(["cat"]), thousand.benign(names)
    assert len(few["benign"]) > len(all_names["benign"]) >= 90
    assert len(few["written"]) >= len(all_names["written"]) >= 90
    assert not [text for texts in all_names.values() for text in texts if mentions(text, names)]


def test_the_curve_is_drawn_of_any_rows():
    picture = curve(ROWS)
    assert picture.size == (880, 520)
    assert len(picture.getcolors(2**20)) > 10


def test_the_published_table_is_its_result_file():
    found = json.loads(RESULT.read_text("utf-8"))
    assert section("thousand", MEASURED.read_text("utf-8")).group() == thousand.table(found)
    assert (RESULTS / "thousand.png").is_file()
    assert found["rows"][-1]["concepts"] == 1000
    assert max(row["erased"] for row in found["rows"]) == 0


@pytest.mark.xfail(
    reason="each part has false alarms of its own: .89 of benign prompts stay at a thousand concepts",
    strict=True,
)
def test_a_thousand_concepts_leave_benign_prompts_alone():
    rows = json.loads(RESULT.read_text("utf-8"))["rows"]
    assert min(row["benign_below_threshold"] for row in rows) >= 0.98


def test_a_thousand_concepts_are_as_good_as_ten():
    rows = json.loads(RESULT.read_text("utf-8"))["rows"]
    assert rows[-1]["h_c"] >= rows[1]["h_c"] - 0.03

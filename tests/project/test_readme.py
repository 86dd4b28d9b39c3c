"""The README's figures are those of the result files, and what it shows and names is there."""

import json
import re

import pytest

from benchmarks import bypass, demo, detector, first, prompt_tables, publish, report, speed, stages, starts, text_boxes
from benchmarks.environment import ROOT
from benchmarks.publish import RESULTS, markdown, section

README, MEASURED = publish.README.read_text("utf-8"), publish.MEASURED.read_text("utf-8")


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("lab", demo.LABS.values(), ids=list(demo.LABS))
def test_the_demos_table_is_its_result_file(lab):
    words = lab.page.read_text("utf-8")
    assert section(lab.results, words).group() == markdown(("", "before", "after"), demo.rows(results(lab.results)))


def test_the_small_flux_forgets_the_cat_alone():
    found = results("demo_flux")
    assert found["acc_e"] <= 0.05
    assert found["acc_s"] >= found["acc_s_base"] - 0.02
    assert found["identical_share"] >= 0.90


def test_the_table_of_whole_trainings_is_its_result_file():
    assert section("stages", MEASURED).group() == markdown(stages.HEADER, stages.table(results("stages")["runs"]))


def test_the_table_of_starts_is_its_result_file():
    assert section("starts", MEASURED).group() == markdown(starts.HEADER, starts.table(results("starts")["runs"]))


def test_the_closed_form_keeps_what_is_retained():
    """Of held-out prompts, by the goal that was set for the default."""
    default = [run for run in results("starts")["runs"] if run["steps"] == starts.SETTINGS.steps]
    assert sum(run["retention"] for run in default) / len(default) <= 5e-4


def test_the_speed_table_is_its_result_file():
    found = results("speed")
    assert section("speed", MEASURED).group() == markdown(("on " + found["device"], ""), speed.table(found))


def test_the_bypass_table_is_its_result_file_and_has_every_way():
    found = results("bypass")
    assert section("bypass", MEASURED).group() == markdown(bypass.HEADER, bypass.rows(found["ways"]))
    assert list(found["ways"]) == list(bypass.GRAPHS)
    assert section("bypass_boxes", MEASURED).group() == markdown(bypass.BOXES_HEADER, bypass.rows(found["boxes"]))
    # Those of Stable Diffusion 3 are still to be run.
    assert list(found["boxes"]) == [words for words in text_boxes.WAYS if not words.startswith("SD 3")]


def test_no_way_past_the_eraser_is_open():
    assert {
        (words, name): row[f"acc_e_{name}"]
        for words, row in results("bypass")["ways"].items()
        for name in ("ours", "strict")
        if row[f"acc_e_{name}"] > 0.05
    } == {}
    boxes = results("bypass")["boxes"].values()
    assert max(row[f"left_{name}"] for row in boxes for name in ("ours", "strict")) == 0


def test_the_readme_counts_the_ways_right():
    ways = results("bypass")["ways"].values()
    open_ways = {name: sum(row[f"acc_e_{name}"] > 0.1 for row in ways) for name in ("base", "single_pooled")}
    assert open_ways == {"base": len(ways), "single_pooled": 16}
    assert len(ways) == 32
    assert min(row["identical_share"] for row in ways) == 1
    assert "in thirty-two ways" in README
    assert "sixteen still do; with this pack none" in README


def test_the_erasure_tables_are_their_result_file():
    found = results("erasure")
    assert section("erasure", MEASURED).group() == markdown(report.HEADER, report.method_rows(found))
    assert section("erasure_hard", MEASURED).group() == markdown(report.HARD_HEADER, report.hard_rows(found))
    assert section("erasure_own", MEASURED).group() == markdown(("", ""), report.own_rows(found))


def test_the_detectors_table_is_its_result_file_and_has_every_candidate():
    rows = results("detector")["rows"]
    assert section("detector", MEASURED).group() == markdown(detector.HEADER, rows)
    assert {name.rpartition(", on ")[0] for name, *_ in rows} == set(detector.CANDIDATES)


def test_the_prompts_tables_are_their_result_file():
    families = results("prompts")["families"]
    assert section("prompts", MEASURED).group() == prompt_tables.text(families)
    for number, words in (("1", "none of 65 pictures still shows it"), ("10", "none of 46"), ("100", "none of 26")):
        drawn = families["sd15"][number]["pictures"]
        assert drawn["exact"]
        shown = {name: method["shown"]["holding an erased concept"]["all"] for name, method in drawn["methods"].items()}
        assert words in README
        assert shown["ours"] == [int(n) for n in re.findall(r"\d+", words.replace("none", "0"))]
        assert shown["uce"][0] == 0
        hits, total = drawn["methods"]["ours"]["identical"]["about benign subjects"]["all"]
        assert hits == total


def test_ours_erases_and_leaves_the_rest_alone():
    """What the README's words rest on, of the published figures."""
    found = results("erasure")
    ours, benign, together = found["methods"]["ours"], found["benign"], found["composition"]
    assert ours["h_o"] >= 0.97
    assert (benign["identical_share"] >= 0.99, benign["acc_e"] <= 0.03) == (True, True)
    assert benign["checked_bit_for_bit"]
    assert together["target_gone"] >= 0.95
    assert together["other_kept"] >= 0.8 * together["other_kept_base"]
    assert found["scaling"]["100"] >= found["scaling"]["1"] - 0.03
    assert found["attack"]["adaptive_acc_e"] <= found["attack"]["clean_acc_e"] + 0.1
    assert found["size"]["bytes"] * 20 <= found["size"]["reference_bytes"]


def test_what_the_readme_says_in_short_is_in_the_figures():
    """Of close relatives about two thirds stay; no attack in words gets through, one on the token states does."""
    found = results("erasure")
    assert 0.58 < found["benign"]["groups"]["relatives"] < 0.74
    got_through = [name for name, row in found["attack"]["by_attack"].items() if row["acc"] > 0.1]
    assert got_through == ["adaptive, 60%"]


def test_rows_that_beat_ours_are_named():
    found = results("erasure")["methods"]
    better = [name for name, row in found.items() if row["h_o"] > found["ours"]["h_o"]]
    words = section("erasure_words", MEASURED).group()
    assert [name for name in better if f"*{name}*" not in words] == []


@pytest.mark.parametrize(("page", "heading"), re.findall(r"\]\(([^)#:]*)#([^)]+)\)", README))
def test_every_heading_that_is_linked_is_there(page, heading):
    headings = re.findall(r"^#+ (.+)$", (ROOT / (page or "README.md")).read_text("utf-8"), re.M)
    assert heading in {re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-") for words in headings}


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http|#)([^)#]+)", README))
def test_every_picture_and_page_that_is_linked_is_there(target):
    assert (ROOT / target).is_file()


def troubles():
    """What the page of troubles quotes from the pack, cut where it has dots or the user's own words."""
    part = (ROOT / "docs" / "trouble.md").read_text("utf-8")
    for row in re.findall(r"^\| (\".+?) \| ", part, re.M):
        for quote in re.findall(r'"([^"]+)"', row):
            yield from (
                piece.strip() for piece in re.split(r"\.\.\.|Stable Diffusion 1\.x", quote) if piece.strip(" ,")
            )


def test_messages_in_the_table_of_troubles_are_ones_that_the_pack_gives():
    rooms = ("hypernet", "policy", "training", "evaluation", "nodes")
    source = "".join(path.read_text("utf-8") for room in rooms for path in (ROOT / room).glob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    said = list(troubles())
    assert len(said) > 20
    assert [words for words in said if words not in joined] == []


def test_the_table_of_first_runs_is_its_result_file():
    if not (publish.RESULTS / "first.json").exists():
        pytest.skip("the figures aren't in a file yet")
    found = {name: first.Seconds(*own) for name, own in results("first")["seconds"].items()}
    assert section("first", MEASURED).group() == first.table(found)

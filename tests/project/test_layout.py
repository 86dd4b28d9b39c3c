"""Templates can be read as they open: the zoom at which the interface shows all of a graph, from its bounding box."""

import json

import pytest

from benchmarks.graph import WORKFLOWS

WINDOW = (1600, 1000)
TITLE, MARGIN = 30, 10
FILL = 0.75  # the interface's "fit view" leaves a quarter of the window free
READABLE = 0.62  # below some 60% the classic canvas draws blank boxes


def bounds(workflow):
    """(width, height) of all nodes with their titles and the interface's margin."""
    nodes = workflow["nodes"]
    left, top = (min(node["pos"][axis] for node in nodes) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in nodes) for axis in (0, 1))
    return right - left + 2 * MARGIN, bottom - top + TITLE + 2 * MARGIN


def zoom(workflow):
    return FILL * min(window / side for window, side in zip(WINDOW, bounds(workflow), strict=True))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_opens_large_enough_to_be_read(name):
    assert zoom(json.loads(WORKFLOWS[name].read_text("utf-8"))) >= READABLE


def test_a_graph_that_is_too_wide_is_found():
    wide = {"nodes": [{"pos": [0, 0], "size": [400, 300]}, {"pos": [1900, 0], "size": [400, 300]}]}
    assert bounds(wide) == (2320, 350)
    assert zoom(wide) < READABLE


def test_the_cards_are_in_the_order_in_which_people_need_them():
    names = [name for name, path in WORKFLOWS.items() if path.parent.name == "workflows"]
    shipped = [name for name in names if name != "demo"]
    order = ["train_sd15", "apply_sd15", "before_after_sd15", "report_sd15", "train_flux", "apply_flux"]
    assert [name for name in shipped if name in order] == order
    assert all(WORKFLOWS[name].stem[0].isdigit() for name in shipped)

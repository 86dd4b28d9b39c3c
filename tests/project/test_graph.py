import contextlib
from urllib.error import HTTPError

import pytest

from benchmarks.graph import GraphError, to_prompt, widget_values
from benchmarks.server import PromptError

INFO = {
    "Load": {"input": {"required": {"name": [["a.sft", "b.sft"]]}}, "display_name": "Load Model"},
    "Patch": {"input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {"default": 1.0}]}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "sampler": ["COMBO", {"options": ["euler", "heun"]}],
            },
            "optional": {
                "mask": ["MASK"],
                "eta": ["FLOAT", {"default": 0.5}],
                "curve": ["FLOAT", {"forceInput": True}],
            },
        }
    },
    "Picture": {"input": {"required": {"image": [["x.png"], {"image_upload": True}], "channel": [["red", "blue"]]}}},
}


def node(number, kind, widgets=(), inputs=(), outputs=("MODEL",), mode=0):
    """A saved node; `inputs` are (name, type, link)."""
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "widgets_values": list(widgets),
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": kind, "type": kind} for kind in outputs],
    }


def chain(middle):
    """Load, something in between, Sample."""
    nodes = [
        node(1, "Load", ["b.sft"]),
        middle,
        node(3, "Sample", [7, "randomize", 9, "heun"], [("model", "MODEL", 2)]),
    ]
    return {"nodes": nodes, "links": [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"]]}


def between(kind, mode=0):
    return node(2, kind, [0.8], [("model", "MODEL", 1)], mode=mode)


def test_values_and_links_get_their_names():
    prompt = to_prompt(chain(between("Patch")), INFO)
    assert prompt["1"] == {"class_type": "Load", "inputs": {"name": "b.sft"}, "_meta": {"title": "Load Model"}}
    assert prompt["2"]["inputs"] == {"model": ["1", 0], "strength": 0.8}
    # The seed's "randomize" is skipped, the missing eta gets its default, sockets without a link stay out.
    assert prompt["3"]["inputs"] == {"model": ["2", 0], "seed": 7, "steps": 9, "sampler": "heun", "eta": 0.5}


@pytest.mark.parametrize("middle", [between("Patch", mode=4), between("Reroute")], ids=["bypassed", "reroute"])
def test_links_pass_through_nodes_that_do_not_run(middle):
    prompt = to_prompt(chain(middle), INFO)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["model"] == ["1", 0]


def test_a_muted_node_leaves_its_link_out():
    prompt = to_prompt(chain(between("Patch", mode=2)), INFO)
    assert set(prompt) == {"1", "3"}
    assert "model" not in prompt["3"]["inputs"]


def test_a_bypassed_node_passes_on_the_input_of_the_same_type():
    two = node(2, "Patch", [0.8], [("clip", "CLIP", 9), ("model", "MODEL", 1)], mode=4)
    assert to_prompt(chain(two), INFO)["3"]["inputs"]["model"] == ["1", 0]


def test_notes_are_left_out():
    workflow = chain(between("Patch"))
    workflow["nodes"] += [node(8, "Note", ["words"]), node(9, "MarkdownNote", ["words"])]
    assert set(to_prompt(workflow, INFO)) == {"1", "2", "3"}


def test_a_widget_made_an_input_takes_its_link_and_keeps_its_place():
    workflow = chain(between("Patch"))
    workflow["nodes"].append(node(4, "PrimitiveNode", [30, "fixed"], outputs=("INT",)))
    workflow["nodes"][2]["inputs"].append({"name": "steps", "type": "INT", "link": 3, "widget": {"name": "steps"}})
    workflow["links"].append([3, 4, 0, 3, 1, "INT"])
    inputs = to_prompt(workflow, INFO)["3"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["sampler"]) == (7, 30, "heun")


def test_the_upload_button_is_no_value():
    assert widget_values(node(1, "Picture", ["x.png", "image", "blue"]), INFO["Picture"]) == {
        "image": "x.png",
        "channel": "blue",
    }


def test_values_may_be_saved_by_name():
    named = {**node(1, "Patch"), "widgets_values": {"strength": 0.2}}
    assert widget_values(named, INFO["Patch"]) == {"strength": 0.2}


def test_a_list_is_no_link():
    workflow = {"nodes": [node(1, "Patch", [[1, 2]])], "links": []}
    assert to_prompt(workflow, INFO)["1"]["inputs"]["strength"] == {"__value__": [1, 2]}


def test_what_it_cannot_turn_it_names():
    with pytest.raises(GraphError, match="node 2 is Other, which this ComfyUI does not have"):
        to_prompt(chain(between("Other")), INFO)
    grouped = {**chain(between("0a-1b")), "definitions": {"subgraphs": [{"id": "0a-1b"}]}}
    with pytest.raises(GraphError, match="node 2 is a subgraph"):
        to_prompt(grouped, INFO)
    dynamic = {"Patch": {"input": {"required": {"mode": ["COMFY_DYNAMICCOMBO_V3", {}]}}}}
    with pytest.raises(GraphError, match="mode is a choice"):
        widget_values(between("Patch"), dynamic["Patch"])


def own_template(server):
    """A template of ComfyUI's own that draws a picture; newer ones come without `default`."""
    for name in ("default", "flux_schnell"):
        with contextlib.suppress(HTTPError):
            return server.get(f"/templates/{name}.json")
    raise AssertionError("this ComfyUI has neither template")


def test_a_template_of_comfyui_itself_becomes_a_valid_prompt(server):
    prompt = to_prompt(own_template(server), server.object_info())
    assert {entry["class_type"] for entry in prompt.values()} >= {"KSampler", "SaveImage"}
    (loader,) = [entry for entry in prompt.values() if entry["class_type"] == "CheckpointLoaderSimple"]
    loader["inputs"]["ckpt_name"] = "nobody has it.safetensors"
    # All it lacks is the checkpoint.
    with pytest.raises(PromptError) as refusal:
        server.queue(prompt)
    errors = [error for trouble in refusal.value.details["node_errors"].values() for error in trouble["errors"]]
    assert [error["extra_info"]["input_name"] for error in errors] == ["ckpt_name"]

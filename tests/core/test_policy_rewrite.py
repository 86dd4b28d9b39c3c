"""Graphs rewritten: which links pass the policy, and what stays as it is."""

import copy
import json

import pytest

from unhype.policy.rewrite import POLICY_NODE, REFUSAL_NODE, NodeTypes, refused, rewritten, texts_of


class _Anything(str):
    """The type by which packs of before `*` take and give anything."""

    __slots__ = ()

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


TYPES = {
    "Loader": NodeTypes(("MODEL", "CLIP", "VAE"), {"name": ["a", "b"]}),
    "Lora": NodeTypes(("MODEL", "CLIP"), {"model": "MODEL", "clip": "CLIP", "strength": "FLOAT"}),
    "Merge": NodeTypes(("MODEL",), {"model1": "MODEL", "model2": "MODEL"}),
    "Encode": NodeTypes(("CONDITIONING",), {"clip": "CLIP", "text": "STRING"}),
    "Sampler": NodeTypes(("LATENT",), {"model": "MODEL", "positive": "CONDITIONING", "seed": "INT"}),
    "Pipe": NodeTypes(("PIPE",), {"model": "MODEL"}),
    "FromPipe": NodeTypes(("MODEL",), {"pipe": "PIPE"}),
    "Reroute": NodeTypes(("*",), {"value": "*"}),
    "Anything": NodeTypes((_Anything("*"),), {"value": _Anything("*")}),
    "Match": NodeTypes(("COMFY_MATCHTYPE_V3",), {"value": "COMFY_MATCHTYPE_V3"}),
    "Union": NodeTypes(("CLIP, MODEL",), {"value": "CLIP,MODEL"}),
    "Combo": NodeTypes((["x", "y"],), {"value": ["x", "y"]}),
    "Show": NodeTypes((), {"value": "*"}),
}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph_of(prompt):
    """A graph rewritten, after a look that the one before is as it was and that a second time changes nothing."""
    before = copy.deepcopy(prompt)
    graph = rewritten(prompt, TYPES.get)
    assert prompt == before
    assert rewritten(graph, TYPES.get) == graph
    assert json.loads(json.dumps(graph)) == graph
    return graph


def added(graph):
    """The policy nodes of a graph: id to the link that they take."""
    return {number: entry["inputs"]["model"] for number, entry in graph.items() if entry["class_type"] == POLICY_NODE}


def test_a_model_passes_the_policy_on_its_way_to_the_sampler():
    graph = graph_of({"1": node("Loader", name="a"), "2": node("Sampler", model=["1", 0], seed=3)})
    assert graph["unhype_policy_1_0"] == node(POLICY_NODE, model=["1", 0])
    assert graph["2"] == node("Sampler", model=["unhype_policy_1_0", 0], seed=3)
    assert graph["1"] == node("Loader", name="a")


def test_an_output_passes_one_node_however_many_links_leave_it():
    prompt = {"1": node("Loader"), **{str(n): node("Sampler", model=["1", 0]) for n in (2, 3, 4)}}
    graph = graph_of(prompt)
    assert added(graph) == {"unhype_policy_1_0": ["1", 0]}
    assert {graph[str(n)]["inputs"]["model"][0] for n in (2, 3, 4)} == {"unhype_policy_1_0"}


def test_every_node_that_gives_a_model_is_followed_by_the_policy():
    """One in the middle may drop what the model carries."""
    graph = graph_of(
        {
            "1": node("Loader"),
            "2": node("Lora", model=["1", 0], clip=["1", 1], strength=1.0),
            "3": node("Merge", model1=["2", 0], model2=["1", 0]),
            "4": node("Sampler", model=["3", 0]),
        }
    )
    assert list(added(graph).values()) == [["1", 0], ["2", 0], ["3", 0]]
    assert graph["2"]["inputs"]["clip"] == ["1", 1]


@pytest.mark.parametrize(
    ("source", "slot", "target", "passes"),
    [
        ("Loader", 0, "Sampler.model", True),
        ("Loader", -3, "Sampler.model", True),
        ("Loader", -1, "Encode.clip", False),
        ("Loader", 1, "Sampler.model", False),  # ComfyUI refuses it
        ("Loader", 0, "Show.value", True),
        ("Loader", 0, "Reroute.value", True),
        ("Loader", 0, "Anything.value", True),
        ("Loader", 0, "Match.value", True),
        ("Loader", 0, "Union.value", True),
        ("Loader", 1, "Union.value", False),
        ("Loader", 0, "Combo.value", False),
        ("Loader", 0, "Sampler.unknown", True),
        ("Loader", 0, "Unknown.model", True),
        ("Loader", 0, "Pipe.model", True),
        ("Loader", 9, "Sampler.model", True),
        ("Loader", True, "Encode.clip", False),
        ("Reroute", 0, "Sampler.model", True),
        ("Anything", 0, "Sampler.model", True),
        ("Match", 0, "Sampler.model", True),
        ("Union", 0, "Sampler.model", True),
        ("Union", 0, "Encode.clip", False),
        ("Unknown", 4, "Sampler.model", True),
        ("FromPipe", 0, "Sampler.model", True),
        ("Reroute", 0, "Reroute.value", False),  # its model passed before, and passes again at its end
        ("Reroute", 0, "Encode.clip", False),
        ("Unknown", 0, "Unknown.value", False),
        ("Pipe", 0, "FromPipe.pipe", False),
        ("Combo", 0, "Sampler.model", False),
    ],
)
def test_a_link_passes_where_an_end_names_a_model_and_the_other_may_be_one(source, slot, target, passes):
    kind, _, name = target.partition(".")
    graph = graph_of({"1": node(source), "2": node(kind, **{name: ["1", slot]})})
    assert bool(added(graph)) == passes
    assert (graph["2"]["inputs"][name] == ["1", slot]) != passes


def test_a_negative_slot_and_its_positive_one_are_the_same_output():
    prompt = {"1": node("Loader"), "2": node("Sampler", model=["1", -3]), "3": node("Sampler", model=["1", 0])}
    assert added(graph_of(prompt)) == {"unhype_policy_1_0": ["1", 0]}


def test_ids_do_not_depend_on_the_order_and_have_nothing_that_means_a_place():
    prompt = {"2:7": node("Loader"), "9.0.1": node("Loader")}
    prompt |= {"5": node("Sampler", model=["2:7", 0]), "6": node("Sampler", model=["9.0.1", 0])}
    ids = added(graph_of(prompt))
    assert ids == {"unhype_policy_2_7_0": ["2:7", 0], "unhype_policy_9_0_1_0": ["9.0.1", 0]}
    assert added(graph_of(dict(reversed(prompt.items())))) == ids


def test_an_id_that_is_taken_is_left_alone():
    taken = node("Encode", text="mine")
    prompt = {"1": node("Loader"), "2": node("Sampler", model=["1", 0]), "unhype_policy_1_0": taken}
    graph = graph_of(prompt)
    assert graph["unhype_policy_1_0"] == taken
    assert added(graph) == {"unhype_policy_1_0_2": ["1", 0]}


def test_two_outputs_whose_ids_look_alike_get_two_nodes():
    prompt = {"1:2": node("Loader"), "1_2": node("Loader")}
    prompt |= {"5": node("Merge", model1=["1:2", 0], model2=["1_2", 0])}
    graph = graph_of(prompt)
    assert list(added(graph).values()) == [["1:2", 0], ["1_2", 0]]


def test_a_node_that_only_looks_like_the_policys_is_followed_by_it():
    prompt = {"unhype_policy_1_0": node("Loader"), "2": node("Sampler", model=["unhype_policy_1_0", 0])}
    assert list(added(graph_of(prompt)).values()) == [["unhype_policy_1_0", 0]]


def test_a_policy_node_in_a_graph_is_kept_whatever_it_takes():
    prompt = {"1": node("Loader"), "p": node(POLICY_NODE, model=["1", 0]), "2": node("Sampler", model=["p", 0])}
    assert graph_of(prompt) == prompt


@pytest.mark.parametrize("value", [["1"], ["1", 0, 0], [1, 0], ["none", 0], ["1", "0"], ["1", 0.0], "1", None, {}, []])
def test_what_is_no_link_is_left_alone(value):
    prompt = {"1": node("Loader"), "2": node("Sampler", model=value)}
    assert graph_of(prompt) == prompt


@pytest.mark.parametrize("broken", [None, [], {}, {"class_type": "Sampler"}, {"inputs": {}}, {"class_type": 3}])
def test_a_node_that_comfyui_will_refuse_is_left_alone(broken):
    prompt = {"1": node("Loader"), "2": broken, "3": node("Sampler", model=["1", 0])}
    assert graph_of(prompt)["2"] == broken
    assert "unhype_policy_1_0" in graph_of(prompt)


def test_other_keys_of_a_node_are_kept():
    prompt = {"1": node("Loader"), "2": {**node("Sampler", model=["1", 0]), "_meta": {"title": "mine"}}}
    assert graph_of(prompt)["2"]["_meta"] == {"title": "mine"}


def test_a_refused_graph_ends_in_the_reason_on_a_node_of_its_own():
    request = {"prompt": {"7": node("Loader"), "8": node("Show")}, "client_id": "me", "prompt_id": "x"}
    assert refused(request, "because") == {
        "prompt": {"7": node(REFUSAL_NODE, reason="because")},
        "partial_execution_targets": ["7"],
        "client_id": "me",
        "prompt_id": "x",
    }
    assert list(refused(request | {"partial_execution_targets": ["8"]}, "because")["prompt"]) == ["8"]


@pytest.mark.parametrize("prompt", [None, [], {}, "text", 3])
def test_something_that_is_no_graph_is_refused_as_well(prompt):
    assert refused({"prompt": prompt}, "because")["prompt"] == {"1": node(REFUSAL_NODE, reason="because")}


def test_the_texts_of_a_graph_are_listed_once():
    prompt = {"1": node("Encode", text="a cat"), "2": node("Encode", text="a cat"), "3": node("Show", value="no")}
    assert texts_of(prompt | {"4": None}) == ["a cat", "no"]

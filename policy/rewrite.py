"""Graphs in ComfyUI's API format, rewritten so that every link that carries a model passes a node of the policy.

Pure functions on dictionaries: node id to {"class_type": str, "inputs": {name: value or link}}. A link is a list of
the source's id and the number of its output. One node is put behind an output, however many links leave it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MODEL = "MODEL"
# The class ids of the nodes that are put in. The interface shows them in errors.
POLICY_NODE, REFUSAL_NODE = "UnHypeServerPolicy", "UnHypeServerRefusal"
# Types that take or give anything.
_ANY = ("*", "COMFY_MATCHTYPE_V3")

Graph = dict[str, Any]


class NodeTypes(NamedTuple):
    """The types of a node class as the host declares them: of its outputs, and of its inputs by name."""

    outputs: Sequence[Any]
    inputs: Mapping[str, Any]


class Link(NamedTuple):
    """The output that a link leaves: a node's id and the number of the output, from 0."""

    source: str
    slot: int


def rewritten(prompt: Graph, types_of: Callable[[str], NodeTypes | None]) -> Graph:
    """A copy of a graph in which every link that carries a model passes a policy node; `prompt` stays as it is.

    types_of: the types of a node class, None for an unknown one. A link carries a model where one of its ends names
    that type and the other may be of it. Links that leave a policy node do so already, so that a rewritten graph is
    rewritten to itself. What no type shows, such as a model in a pipe, the guard sees.
    """
    known = {name: types_of(name) for name in {_class_of(node) for node in prompt.values()}}
    graph, added = dict(prompt), dict[Link, str]()
    for number, node in prompt.items():
        types, inputs = known[_class_of(node)], _inputs_of(node)
        through = dict[str, list[Any]]()
        for name, value in inputs.items():
            link = _link(value, prompt, known)
            if link is None or POLICY_NODE in (_class_of(node), _class_of(prompt[link.source])):
                continue
            if _carries_model(_output(known[_class_of(prompt[link.source])], link.slot), _input(types, name)):
                if link not in added:
                    added[link] = _free_id(link, graph)
                    graph[added[link]] = {"class_type": POLICY_NODE, "inputs": {"model": list(link)}}
                through[name] = [added[link], 0]
        if through:
            graph[number] = {**node, "inputs": {**inputs, **through}}
    return graph


def refused(request: dict[str, Any], reason: str) -> dict[str, Any]:
    """A request to queue a graph, with one in place of its own that ends in an error: `reason`, on one of its nodes.

    An error at run time is the one whose words the interface shows.
    """
    targets, prompt = request.get("partial_execution_targets"), request.get("prompt")
    wanted = targets if isinstance(targets, list) and targets else list(prompt) if isinstance(prompt, dict) else []
    number = str(next(iter(wanted), "1"))
    refusal = {number: {"class_type": REFUSAL_NODE, "inputs": {"reason": reason}}}
    return {**request, "prompt": refusal, "partial_execution_targets": [number]}


def texts_of(prompt: Graph) -> list[str]:
    """Every text in a graph's inputs, each once: which of them are prompts, only their nodes know."""
    values = (value for node in prompt.values() for value in _inputs_of(node).values())
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def _class_of(node: Any) -> str:
    kind = node.get("class_type") if isinstance(node, dict) else None
    return kind if isinstance(kind, str) else ""


def _inputs_of(node: Any) -> dict[str, Any]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _link(value: Any, prompt: Graph, known: Mapping[str, NodeTypes | None]) -> Link | None:
    """The output that a value links to, with its number from 0: the host counts negative ones from the end."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    source, slot = value
    if not isinstance(source, str) or source not in prompt or not isinstance(slot, int):
        return None
    types = known[_class_of(prompt[source])]
    return Link(source, int(slot) + len(types.outputs) if types is not None and slot < 0 else int(slot))


def _output(types: NodeTypes | None, slot: int) -> Any:
    return types.outputs[slot] if types is not None and 0 <= slot < len(types.outputs) else _ANY[0]


def _input(types: NodeTypes | None, name: str) -> Any:
    return _ANY[0] if types is None else types.inputs.get(name, _ANY[0])


def _carries_model(output: Any, expected: Any) -> bool:
    return (_names_model(output) or _names_model(expected)) and _may_be_model(output) and _may_be_model(expected)


def _names_model(kind: Any) -> bool:
    return isinstance(kind, str) and MODEL in _parts(kind)


def _may_be_model(kind: Any) -> bool:
    # Packs take anything by a type of their own that is unequal to none, and equal to none either.
    unequal = kind != MODEL
    return isinstance(kind, str) and (not unequal or any(part in (MODEL, *_ANY) for part in _parts(kind)))


def _parts(kind: str) -> list[str]:
    """The types of a union, as plain texts whatever comparisons the type's own class has."""
    return [part.strip() for part in str.split(kind, ",")]


def _free_id(link: Link, graph: Graph) -> str:
    """An id that only depends on the graph. Without the colons and points by which the interface and the host find
    the node that another one lies in."""
    place = "".join(letter if letter.isalnum() else "_" for letter in link.source)
    base = f"unhype_policy_{place}_{link.slot}"
    number, candidate = 1, base
    while candidate in graph:
        number += 1
        candidate = f"{base}_{number}"
    return candidate

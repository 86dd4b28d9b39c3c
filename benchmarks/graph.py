"""From a workflow as people save it (nodes, links, widget values) to a prompt as ComfyUI's API takes it.

The browser does this when someone presses Run. Here it lets the workflows that the pack ships run without
one. What it can't turn, it refuses: subgraphs, choices that bring inputs of their own, and nodes that the
server doesn't have.
"""

from collections import deque
from typing import Any, NamedTuple

from .environment import ROOT

# The cards of the template browser show the names of the files, and in this order. Here they have short names.
_SHORT = {
    "1 Erase a concept (SD 1.5, SDXL)": "erase_sd15",
    "2 Train an eraser (SD 1.5, SDXL)": "train_sd15",
    "3 Draw with an eraser (SD 1.5, SDXL)": "apply_sd15",
    "4 Before and after (SD 1.5, SDXL)": "before_after_sd15",
    "5 Report on an eraser (SD 1.5, SDXL)": "report_sd15",
    "6 Train an eraser (Flux.1)": "train_flux",
    "7 Draw with an eraser (Flux.1)": "apply_flux",
}
# The workflows that the pack ships, and the lab's own, which need its loader: name to file.
WORKFLOWS = {
    _SHORT.get(path.stem, path.stem): path
    for folder in (ROOT / "workflows", ROOT / "benchmarks" / "lab" / "loader" / "workflows")
    for path in sorted(folder.glob("*.json"))
}
MUTED, BYPASSED = 2, 4
NOTES = {"Note", "MarkdownNote"}
PASSING = {"Reroute", "PrimitiveNode"}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# What the browser keeps behind a seed: whether it changes after each run. Old files have a yes or no there.
CONTROLS = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}


class GraphError(Exception):
    """The workflow can't be turned into a prompt."""


class Constant(NamedTuple):
    """A value that a primitive node hands to the inputs linked to it."""

    value: Any


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """Return `{node id: {class_type, inputs, _meta}}` for a saved workflow, given a server's /object_info."""
    graph = _Graph(workflow)
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in NOTES or kind in PASSING or node.get("mode") in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            what = "a subgraph" if kind in graph.subgraphs else f"{kind}, which this ComfyUI does not have"
            raise GraphError(f"node {node['id']} is {what}")
        inputs = {name: _quote(value) for name, value in widget_values(node, object_info[kind]).items()}
        prompt[str(node["id"])] = {
            "class_type": kind,
            "inputs": inputs | graph.linked_inputs(node),
            "_meta": {"title": node.get("title") or object_info[kind].get("display_name") or kind},
        }
    return prompt


def _quote(value):
    # A bare list would read as a link.
    return {"__value__": value} if isinstance(value, list) else value


def widget_values(node: dict, info: dict) -> dict[str, Any]:
    """The values a node was saved with, by input name; they are stored in the order of its widgets."""
    saved = node.get("widgets_values") or []
    declared = [(name, spec) for name, spec in _declared(info) if _is_widget(node, name, spec)]
    for name, spec in declared:
        if spec[0] == DYNAMIC:
            raise GraphError(f"node {node['id']} ({node['type']}): {name} is a choice that brings inputs of its own")
    if isinstance(saved, dict):
        return {name: saved[name] if name in saved else _default(spec) for name, spec in declared}
    queue = deque(saved)
    values = {}
    for name, spec in declared:
        # An input newer than the workflow has no saved value.
        value = queue.popleft() if queue else _default(spec)
        if value is not None:
            values[name] = value
        if queue and _has_companion(name, spec, queue[0]):
            queue.popleft()
    return values


def _declared(info: dict):
    for part in ("required", "optional"):
        yield from info["input"].get(part, {}).items()


def _options(spec) -> dict:
    return spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}


def _is_widget(node: dict, name: str, spec) -> bool:
    for entry in node.get("inputs") or ():
        if entry["name"] == name:
            return "widget" in entry
    return (isinstance(spec[0], list) or spec[0] in {*WIDGETS, DYNAMIC}) and not _options(spec).get("forceInput")


def _default(spec):
    options = _options(spec)
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    return options.get("default", choices[0] if choices else None)


def _has_companion(name: str, spec, following) -> bool:
    """Whether the next saved value belongs to this input too: a seed's control or an upload button."""
    options = _options(spec)
    if spec[0] == "INT" and (options.get("control_after_generate") or name in ("seed", "noise_seed")):
        return isinstance(following, bool) or following in CONTROLS
    return following in ("image", "video", "audio") and any(key.endswith("_upload") for key in options)


class _Graph:
    """Follows links through the nodes that exist in the browser only."""

    def __init__(self, workflow: dict):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
        self.subgraphs = {graph["id"] for graph in (workflow.get("definitions") or {}).get("subgraphs", ())}

    def linked_inputs(self, node: dict) -> dict[str, Any]:
        found = {}
        for entry in node.get("inputs") or ():
            source = self._source(entry.get("link"))
            if isinstance(source, Constant):
                found[entry["name"]] = _quote(source.value)
            elif source is not None:
                found[entry["name"]] = source
        return found

    def _source(self, link_id):
        """`[node id, slot]`, a Constant, or None where the link leads nowhere."""
        if link_id not in self.links:
            return None
        origin, slot = self.links[link_id]
        node = self.nodes[origin]
        if node.get("mode") == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return Constant(node["widgets_values"][0])
        if node["type"] == "Reroute":
            return self._source(node["inputs"][0].get("link"))
        if node.get("mode") == BYPASSED:
            return self._source(_bypass(node, slot))
        return [str(origin), slot]


def _bypass(node: dict, slot: int):
    """The link that a bypassed node passes on: of the input at the same place, or the first, of the same type."""
    inputs, wanted = node.get("inputs") or [], node["outputs"][slot]["type"]
    for entry in [*inputs[slot : slot + 1], *inputs]:
        if entry["type"] == wanted:
            return entry.get("link")
    return None

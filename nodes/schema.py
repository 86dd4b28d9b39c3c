"""Node schemas on every host: what an older ComfyUI does not know yet is left out."""

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

from ..hypernet.record import short

Hypernet = io.Custom("UNHYPE")
CATEGORY = "UnHype"
# What people type into the search of nodes when they need an eraser.
PURPOSES = (
    "erase",
    "unlearn",
    "remove concept",
    "remove style",
    "remove person",
    "forget",
    "block",
    "ban",
    "censor",
    "nsfw",
    "safety",
    "concept erasure",
)
# And when they look for what goes in front of the sampler.
APPLIED = (*PURPOSES, "negative", "negative prompt")


def schema(**fields: Any) -> io.Schema:
    """An `io.Schema` from the fields that this host's Schema has (search aliases came late)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def advanced(input_type: Any, *args: Any, **options: Any) -> Any:
    """An optional input that newer hosts fold away under 'advanced' and older ones show like any other."""
    options["optional"] = True
    if "advanced" in inspect.signature(input_type.__init__).parameters:
        options["advanced"] = True
    return input_type(*args, **options)


def strength_input(tooltip: str) -> Any:
    """The strength of a node that puts an eraser on a model."""
    return io.Float.Input("strength", default=1.0, min=0.0, max=3.0, step=0.05, optional=True, tooltip=tooltip)


def node_id(cls: type[io.ComfyNode]) -> str | None:
    """The id of the node that runs, None where no server runs it: scripts call a node's functions themselves."""
    return None if cls.hidden is None else cls.hidden.unique_id


def only_links(node: str, optional: dict[str, Any] | None = None, **sockets: Any) -> None:
    """Raise ValueError for a socket to which a workflow written by hand gives a value instead of another node's output.

    ComfyUI itself looks only at the values of inputs that have a widget. optional: sockets by name that may be None.
    """
    connected = {name: value for name, value in (optional or {}).items() if value is not None}
    for name, value in {**sockets, **connected}.items():
        if value is None or isinstance(value, (str, int, float, dict)):
            raise ValueError(f"{node}, '{name}': connect the output of another node here; no value can be given.")


def only_choices(node: type[io.ComfyNode], **values: Any) -> None:
    """Raise ValueError for a value that its input's list doesn't have.

    ComfyUI looks at no value that comes by a link, and up to 0.3.75 at none of a list.
    """
    definition = node.define_schema()
    for entry in definition.inputs:
        if entry.id in values and values[entry.id] not in entry.options:
            raise ValueError(
                f"{definition.display_name}, '{entry.id}': {short(repr(values[entry.id]))} is not in the list. "
                f"Choose one of {', '.join(entry.options)}."
            )

"""Node schemas on every host: what an older ComfyUI does not know yet is left out."""

import dataclasses
import inspect

from comfy_api.latest import io

Hypernet = io.Custom("UNHYPE")
CATEGORY = "UnHype"


def schema(**fields):
    """An `io.Schema` from the fields that this host's Schema has (search aliases came late)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def advanced(input_type, *args, **options):
    """An input that newer hosts fold away under 'advanced' and older ones show like any other."""
    if "advanced" in inspect.signature(input_type.__init__).parameters:
        options["advanced"] = True
    return input_type(*args, **options)

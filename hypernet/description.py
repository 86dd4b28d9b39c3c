"""What a hypernet file says of itself: the layout of its network and how it was made, as JSON in its metadata.

Files come from strangers, so everything is checked before it is believed.
"""

import json
import math
from dataclasses import dataclass, field

from .families import POOLED, TOKENS
from .network import Hypernet, HypernetConfig
from .published import KIND, PublishedConfig, PublishedHypernet

FORMAT = "2"
# Kind of network in a file's config to its classes; what is trained here says no kind.
_KINDS = {None: (HypernetConfig, Hypernet), KIND: (PublishedConfig, PublishedHypernet)}
_LIMITS = {"rank": 256, "basis": 1024, "hidden": 8192, "trajectory": 100_000, "octaves": 16, "embedding_width": 65_536}
_MAX_LAYERS, _MAX_FEATURES, _MAX_TOKENS = 4096, 262_144, 65_536
# Characters. Thousands of concepts and the losses of long runs need a tenth; JSON takes twenty times that in memory.
_MAX_DESCRIPTION = 8_000_000


class HypernetFileError(ValueError):
    """A file is no hypernet, is damaged, or does not fit the model."""


@dataclass(frozen=True)
class Record:
    """What a hypernet is for and how it was made.

    `concepts`: pairs (erased concept, what it turns into). `dead_zone`: the threshold of
    ``deadzone``. `base`: family class and weight spread of the model it was trained on. `training`:
    settings and measurements of the run. `reading`: of the text encoder, `tokens` that it makes at once,
    `widths` of the states that the file's reader takes, the `layers` that it knows and its `rank` (none without);
    empty in files that weren't trained here. `embedding`: what drives H, one of ``families``' sources.
    """

    family: str
    concepts: tuple[tuple[str, str], ...]
    dead_zone: float
    base: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    reading: dict = field(default_factory=dict)
    embedding: str = POOLED

    def changes(self):
        """Each erased concept and what it turns into, a list of words for people."""
        return [f"{concept} -> {mapping or 'an empty prompt'}" for concept, mapping in self.concepts]

    def summary(self):
        """The erased concepts in words, one a line."""
        return "\n".join(f"{concept} -> {mapping}" for concept, mapping in self.concepts)


def short(words, limit=160):
    """Words from a file, short enough for a message."""
    words = str(words)
    return words if len(words) <= limit else f"{words[:limit]}..."


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _parse_config(text):
    """The class of the network and its config."""
    values = json.loads(text)
    config_class, network_class = _KINDS[values.pop("kind", None)]
    config = config_class.from_dict(values)
    for name, limit in _LIMITS.items():
        value = getattr(config, name, 1)
        if type(value) is not int or not 1 <= value <= limit:
            raise ValueError(f"{name} is {value!r}")
    if not 1 <= len(config.layers) <= _MAX_LAYERS:
        raise ValueError(f"{len(config.layers)} layers")
    for layer in config.layers:
        if type(layer.name) is not str:
            raise ValueError(f"the name of a layer is {layer.name!r}")
        if not all(type(n) is int and 1 <= n <= _MAX_FEATURES for n in (layer.inputs, layer.outputs)):
            raise ValueError(f"layer {layer.name} has {layer.inputs!r} inputs and {layer.outputs!r} outputs")
        if type(layer.start) is not int or type(layer.features) is not int:
            raise ValueError(f"layer {layer.name} has rows {layer.start!r} of {layer.features!r}")
        if not 0 <= layer.start <= layer.features - layer.outputs <= _MAX_FEATURES:
            raise ValueError(f"layer {layer.name} has rows {layer.start} to {layer.rows.stop} of {layer.features}")
    return network_class, config


def _parse_record(text):
    values = json.loads(text)
    concepts = tuple((str(concept), str(mapping)) for concept, mapping in values["concepts"])
    dead_zone = float(values["dead_zone"])
    if not 0 <= dead_zone < float("inf"):
        raise ValueError(f"dead zone {dead_zone}")
    base, training = dict(values["base"]), dict(values["training"])
    if not all(_is_number(spread) for spread in base.get("weight_spread", ())):
        raise ValueError("the weight spread is not made of numbers")
    reading, embedding = _parse_reading(values.get("reading", {})), values.get("embedding", POOLED)
    if embedding not in (POOLED, TOKENS):
        raise ValueError(f"embedding is {embedding!r}")
    if not isinstance(values["family"], str) or len(values["family"]) > 100:
        raise ValueError(f"the model family is {values['family']!r}")
    return Record(values["family"], concepts, dead_zone, base, training, reading, embedding)


def _parse_reading(values):
    """`Record.reading`, of which imported files have nothing."""
    if not values:
        return {}
    tokens, widths, layers = values["tokens"], values["widths"], values["layers"]
    if type(tokens) is not int or not 1 <= tokens <= _MAX_TOKENS:
        raise ValueError(f"the text encoder makes {tokens!r} tokens")
    if type(widths) is not list or not all(type(width) is int and 1 <= width <= _MAX_FEATURES for width in widths):
        raise ValueError(f"the widths of the text encoder are {widths!r}")
    if type(layers) is not int or not bool(widths) <= layers <= _MAX_LAYERS:
        raise ValueError(f"{layers!r} layers of the text encoder are read")
    if type(values["rank"]) is not int or not bool(widths) <= values["rank"] <= _MAX_TOKENS:
        raise ValueError(f"the reader's maps have rank {values['rank']!r}")
    return {"tokens": tokens, "widths": widths, "layers": layers, "rank": values["rank"]}


def describe(file, path):
    """Read config and record from an open file's metadata."""
    metadata = file.metadata() or {}
    if "unhype.config" not in metadata:
        raise HypernetFileError(
            f"'{path.name}' is a safetensors file but no UnHype hypernet (a LoRA or a checkpoint perhaps). "
            "Pick a file that Train Erasure wrote."
        )
    if metadata.get("unhype.format") != FORMAT:
        raise HypernetFileError(
            f"'{path.name}' has UnHype format {short(metadata.get('unhype.format'))}, this version reads {FORMAT}. "
            "Update the UnHype node pack."
        )
    try:
        parts = metadata["unhype.config"], metadata["unhype.record"]
        if max(map(len, parts)) > _MAX_DESCRIPTION:
            raise ValueError(f"it is longer than {_MAX_DESCRIPTION} characters")
        return _parse_config(parts[0]), _parse_record(parts[1])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise HypernetFileError(
            f"The description inside '{path.name}' is damaged ({short(error)}). Download or train it again."
        ) from error

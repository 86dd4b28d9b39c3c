"""The description of a hypernet file, as JSON in its metadata: config and record.

`unhype.config` holds the fields of `network.HypernetConfig` or `published.PublishedConfig`, `unhype.record`
those of `Record` and of the classes in it. All keys of both are fields of these classes. Files come from
strangers, so every value is checked before it is used.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from .errors import UserError
from .families import POOLED, TOKENS
from .network import HypernetConfig
from .published import KIND, PublishedConfig

FORMAT = "7"
# Of a merged file, which holds the descriptions of its parts, each in a format of its own.
FORMAT_MERGED = "5"
# Format 6 had no spans, format 4 no neighbours, format 3 no token detector. Format 2 had other names for the same
# things: of fields of the record and of tensors.
_FORMAT_6, _FORMAT_4, _FORMAT_3, _FORMAT_2 = "6", "4", "3", "2"
_RENAMED = {
    "base": {"weight_spread": "weight_std"},
    "reading": {"tokens": "chunk"},
    "training": {
        "drift": "retention_error",
        "drift_curve": "retention_curve",
        "held_out_silent": "held_out_unchanged",
        "preserve_heard": "preserve_detected",
        "reader_explains": "regressor_r2",
    },
}
_RENAMED_TENSORS = {"switch.": "detector.", "reader.": "regressor.", "concepts.c": "concept_embeddings"}

_LIMITS = {"rank": 256, "basis": 1024, "hidden": 8192, "trajectory": 100_000, "octaves": 16, "embedding_width": 65_536}
_MAX_PARTS = 10_000
_MAX_LAYERS, _MAX_FEATURES, _MAX_TOKENS = 4096, 262_144, 65_536
# Characters. Thousands of concepts and the losses of long runs need a tenth; JSON takes twenty times that in memory.
_MAX_DESCRIPTION = 8_000_000

# A name with one of them stands in quotes in a list of concepts.
_COMMAS = frozenset(",;\uff0c\uff1b\u3001")


class HypernetFileError(UserError, ValueError):
    """A file is no hypernet, is damaged, or does not fit the model."""


def as_list(concepts: Sequence[tuple[str, str]]) -> str:
    """Pairs (concept, mapping), one a line, as Train Erasure takes them."""
    quoted = [f'"{concept}"' if _COMMAS.intersection(concept) else concept for concept, _ in concepts]
    return "\n".join(f"{name} -> {mapping}" for name, (_, mapping) in zip(quoted, concepts, strict=True))


@dataclass(frozen=True)
class BaseModel:
    """The model that a hypernet was trained on: its class, `targets.weight_std`, and a hash of its LoRAs."""

    model: str = ""
    weight_std: list[float] = field(default_factory=list)
    loras: str = ""


@dataclass(frozen=True)
class TextEncoder:
    """The text encoder of a run. chunk: tokens that it processes together, 0 where that is not known.

    widths, layers, rank: of the file's `PooledRegressor`: the widths of the states that it takes, the encoder
    layers that it knows and the rank of its maps; empty and 0 without one. token_widths: the widths of the states
    that the file's `TokenDetector` takes, empty without one; token_spans: its spans, empty where all are 1. neighbours:
    how many embeddings the file's `Neighbours` are, 0 without them.
    """

    chunk: int = 0
    widths: list[int] = field(default_factory=list)
    layers: int = 0
    rank: int = 0
    token_widths: list[int] = field(default_factory=list)
    token_spans: list[int] = field(default_factory=list)
    neighbours: int = 0


@dataclass(frozen=True)
class TrainingRun:
    """Settings and measurements of a training run.

    recipe: hash of all that decides the run. settings: the fields of `training.settings.Settings`. steps:
    those that were run. stopped: why it ended. seconds: how long it took. losses: of each step.
    retention_error: as the loop measures it; retention_curve: pairs (step, retention error). erased_norms: of
    the delta, least, median and largest over the wordings. retain_prompts: how many were trained on and held
    out. regressor_r2: explained variance on held-out prompts. preserve: the lines of the user's list;
    preserve_detected: those that the detector can't tell from what is erased. relatives: retained prompts that are near
    the erased concepts. held_out_unchanged: share of
    held-out prompts below the threshold. imported_from: name, size and time of the authors' file.
    """

    recipe: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    stopped: str = ""
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    retention_error: float = 0.0
    retention_curve: list[list[float]] = field(default_factory=list)
    erased_norms: list[float] = field(default_factory=list)
    retain_prompts: list[int] = field(default_factory=list)
    regressor_r2: float = 0.0
    preserve: list[str] = field(default_factory=list)
    preserve_detected: list[str] = field(default_factory=list)
    relatives: list[str] = field(default_factory=list)
    held_out_unchanged: float = 0.0
    imported_from: list[Any] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The sort of concepts that the run erased, a key of `training.prompts.TEMPLATES`."""
        return str(self.settings.get("kind", "object"))


@dataclass(frozen=True)
class Record:
    """What a hypernet is for and how it was made.

    family: key of a `families.Family`. concepts: pairs (erased concept, mapping concept). embedding: the
    source of c, `families.POOLED` or `families.TOKENS`.
    """

    family: str
    concepts: tuple[tuple[str, str], ...]
    base: BaseModel = field(default_factory=BaseModel)
    training: TrainingRun = field(default_factory=TrainingRun)
    text_encoder: TextEncoder = field(default_factory=TextEncoder)
    embedding: str = POOLED

    def changes(self) -> list[str]:
        """Each erased concept with its mapping, as lines for people."""
        return [f"{concept} -> {mapping or 'an empty prompt'}" for concept, mapping in self.concepts]

    def summary(self) -> str:
        """The erased concepts with their mappings, one a line, as Train Erasure takes them."""
        return as_list(self.concepts)

    def to_json(self) -> str:
        """The record as JSON, the value of `unhype.record`."""
        return json.dumps(asdict(self))


_T = TypeVar("_T", BaseModel, TrainingRun, TextEncoder)


def short(text: object, limit: int = 160) -> str:
    """A text from a file, short enough for a message."""
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def describe(metadata: Mapping[str, str] | None, name: str) -> tuple[HypernetConfig | PublishedConfig, Record]:
    """The config of a file's network and its record from its metadata; `name` is for messages.

    Raises `HypernetFileError` for anything else than a hypernet of a known format with sane values.
    """
    metadata = metadata or {}
    if "unhype.config" not in metadata:
        raise HypernetFileError(
            f"'{name}' is a safetensors file but no UnHype hypernet (a LoRA or a checkpoint perhaps). "
            "Pick a file that Train Erasure wrote."
        )
    if metadata.get("unhype.format") not in (FORMAT, _FORMAT_6, _FORMAT_4, _FORMAT_3, _FORMAT_2):
        raise HypernetFileError(
            f"'{name}' has UnHype format {short(metadata.get('unhype.format'))}, this version reads {_FORMAT_2} to "
            f"{FORMAT}. Update the UnHype node pack, or train the file again if it is an old one."
        )
    try:
        parts = metadata["unhype.config"], metadata["unhype.record"]
        if max(map(len, parts)) > _MAX_DESCRIPTION:
            raise ValueError(f"it is longer than {_MAX_DESCRIPTION} characters")
        config, values = _parse_config(json.loads(parts[0])), json.loads(parts[1])
        return config, _parse_record(_upgraded(values) if _is_format_2(metadata) else values)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise HypernetFileError(
            f"The description inside '{name}' is damaged ({short(error)}). Download or train it again."
        ) from error


def described_parts(
    metadata: Mapping[str, str], name: str
) -> list[tuple[str, HypernetConfig | PublishedConfig, Record]]:
    """Name, config and record of each part of a merged file; see `describe`."""
    try:
        if len(metadata["unhype.parts"]) > _MAX_DESCRIPTION:
            raise ValueError(f"it is longer than {_MAX_DESCRIPTION} characters")
        parts = json.loads(metadata["unhype.parts"])
        if type(parts) is not list or not 1 <= len(parts) <= _MAX_PARTS:
            raise ValueError("it has no list of parts")
        named = [(str(part.pop("name")), part) for part in parts]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise HypernetFileError(
            f"The description inside '{name}' is damaged ({short(error)}). Download or merge it again."
        ) from error
    return [(part_name, *describe(part, name)) for part_name, part in named]


def tensor_names(metadata: Mapping[str, str] | None, names: list[str]) -> dict[str, str]:
    """Each tensor's present name to its name in the file; format 2 had others for what lies beside the network."""
    if not _is_format_2(metadata or {}):
        return {name: name for name in names}
    return {_renamed(name, _RENAMED_TENSORS): name for name in names}


def _is_format_2(metadata: Mapping[str, str]) -> bool:
    return metadata.get("unhype.format") == _FORMAT_2


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    former = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return name if former is None else name.replace(former, prefixes[former], 1)


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A record of format 2 in the names of today. Its threshold of the delta's norm had become a constant."""
    named = {part: {_RENAMED[part].get(key, key): v for key, v in values.get(part, {}).items()} for part in _RENAMED}
    unchanged = {key: value for key, value in values.items() if key not in (*_RENAMED, "dead_zone")}
    return {**unchanged, "base": named["base"], "training": named["training"], "text_encoder": named["reading"]}


def _parse_config(values: dict[str, Any]) -> HypernetConfig | PublishedConfig:
    kind = values.pop("kind", None)
    if kind not in (None, KIND):  # networks that are trained here name no kind
        raise ValueError(f"the kind of network is {kind!r}")
    config = PublishedConfig.from_dict(values) if kind else HypernetConfig.from_dict(values)
    _check_config(config)
    return config


def _check_config(config: HypernetConfig | PublishedConfig) -> None:
    for name, limit in _LIMITS.items():
        value = getattr(config, name, 1)
        if type(value) is not int or not 1 <= value <= limit:
            raise ValueError(f"{name} is {value!r}")
    if type(bounded := getattr(config, "bounded", False)) is not bool:
        raise ValueError(f"bounded is {bounded!r}")
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


def _parse_record(values: dict[str, Any]) -> Record:
    concepts = tuple((str(concept), str(mapping)) for concept, mapping in values["concepts"])
    base, training = _typed(BaseModel, values["base"]), _typed(TrainingRun, values["training"])
    encoder, embedding = _typed(TextEncoder, values.get("text_encoder", {})), values.get("embedding", POOLED)
    if not all(_is_number(value) for value in base.weight_std):
        raise ValueError("the weight standard deviations are not numbers")
    _check_encoder(encoder, len(concepts))
    if embedding not in (POOLED, TOKENS):
        raise ValueError(f"embedding is {embedding!r}")
    if not isinstance(values["family"], str) or len(values["family"]) > 100:
        raise ValueError(f"the model family is {values['family']!r}")
    return Record(values["family"], concepts, base, training, encoder, embedding)


def _typed(kind: type[_T], values: dict[str, Any]) -> _T:
    """An instance of the dataclass `kind` from the keys that it knows, each of its default's type."""
    if type(values) is not dict:
        raise ValueError(f"{short(repr(values))} must be a dict")
    known: dict[str, Any] = {}
    for own in fields(kind):
        if own.name in values:
            value, expected = values[own.name], type(getattr(kind(), own.name))
            if expected is float and type(value) is int:
                value = float(value)
            if type(value) is not expected:
                raise ValueError(f"{own.name} is {short(repr(value))}")
            known[own.name] = value
    return kind(**known)


def _check_encoder(encoder: TextEncoder, concepts: int) -> None:
    has_regressor = bool(encoder.widths)
    needs_chunk = has_regressor or bool(encoder.token_widths)
    if not 0 <= encoder.chunk <= _MAX_TOKENS or (needs_chunk and not encoder.chunk):
        raise ValueError(f"the text encoder makes {encoder.chunk!r} tokens")
    if not all(type(n) is int and 1 <= n <= _MAX_FEATURES for n in (*encoder.widths, *encoder.token_widths)):
        raise ValueError(f"the widths of the text encoder are {encoder.widths!r} and {encoder.token_widths!r}")
    spans = encoder.token_spans
    if len(spans) not in (0, concepts) or not all(type(n) is int and 1 <= n <= encoder.chunk for n in spans):
        raise ValueError(f"the spans of the concepts' tokens are {short(repr(spans))}")
    if not has_regressor <= encoder.layers <= _MAX_LAYERS:
        raise ValueError(f"the regressor knows {encoder.layers!r} layers of the text encoder")
    if not has_regressor <= encoder.rank <= _MAX_TOKENS:
        raise ValueError(f"the regressor's maps have rank {encoder.rank!r}")
    if not 0 <= encoder.neighbours <= (encoder.chunk and _MAX_TOKENS):
        raise ValueError(f"the number of neighbours is {encoder.neighbours!r}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

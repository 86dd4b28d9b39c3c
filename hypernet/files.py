"""Hypernet files: safetensors, with everything that describes the hypernet as readable metadata.

`modelspec.*` keys are what ComfyUI's model library shows, `unhype.*` keys are ours. A file is checked
against its own description before a tensor is read, and against the model before it is applied.
"""

import json
import math
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .deadzone import Switch
from .embedding import Reader
from .factors import delta_norm
from .families import POOLED, TOKENS
from .network import Hypernet, HypernetConfig
from .published import KIND, PublishedConfig, PublishedHypernet
from .targets import family_by_key

FORMAT = "2"
SUFFIX = ".safetensors"
# Kind of network in a file's config to its classes; what is trained here says no kind.
_KINDS = {None: (HypernetConfig, Hypernet), KIND: (PublishedConfig, PublishedHypernet)}
_LIMITS = {"rank": 256, "basis": 1024, "hidden": 8192, "trajectory": 100_000, "octaves": 16, "embedding_width": 65_536}
_MAX_LAYERS, _MAX_FEATURES, _MAX_TOKENS = 4096, 262_144, 65_536
_READER, _CONCEPTS = {part: f"reader.{part}" for part in ("up", "down", "bias", "key")}, "concepts.c"
_SWITCH = ("switch.weight", "switch.bias")
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

    def summary(self):
        """The erased concepts in words, one a line."""
        return "\n".join(f"{concept} -> {mapping}" for concept, mapping in self.concepts)


@dataclass(frozen=True)
class TrainedHypernet:
    """What travels on an UNHYPE socket: the network, its record and a name for messages.

    reader: reads c from tokens. concept_c: the mean embedding of each concept's wordings, (concepts,
    width) fp32 on the CPU. switch: tells prompts that mean an erased concept. Each is None where the file
    has none.
    """

    network: Hypernet | PublishedHypernet
    record: Record
    name: str
    reader: Reader | None = None
    concept_c: torch.Tensor | None = None
    switch: Switch | None = None

    def presence(self, c, layers):
        """How present the erased concepts are in c (p, width), for which H writes `layers` at s = S: (p,).

        The dead zone compares it with `Record.dead_zone`. Without a switch it is the size of the delta.
        """
        return delta_norm(layers) if self.switch is None else self.switch(c)

    @property
    def device(self):
        """Where H computes."""
        return next(self.network.parameters()).device

    @property
    def chunk(self):
        """Tokens that the text encoder makes at once, 0 where the file doesn't say."""
        return self.record.reading.get("tokens", 0)

    def tensors(self):
        """Everything that the file holds, by name."""
        tensors = dict(self.network.state_dict())
        if self.reader is not None:
            tensors |= {name: getattr(self.reader, part) for part, name in _READER.items()}
        if self.concept_c is not None:
            tensors[_CONCEPTS] = self.concept_c
        if self.switch is not None:
            tensors |= {f"switch.{name}": tensor for name, tensor in self.switch.state_dict().items()}
        return tensors


def write_aside(tensors, path, metadata):
    """Write a safetensors file beside `path` and move it into place, so that `path` is always whole.

    Raises OSError (disk full, folder not writable) with the former file untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, str(aside), metadata=metadata)
        aside.replace(path)
    except SafetensorError as error:
        raise OSError(f"Could not write {path}: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def metadata_of(trained, extra=None):
    """The metadata of a hypernet file as a dict of strings; `extra` adds keys such as `workflow`."""
    record, family = trained.record, family_by_key(trained.record.family)
    erased = ", ".join(concept for concept, _ in record.concepts)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": f"UnHype: {erased}"[:200],
        "modelspec.architecture": f"{family.architecture}/unhype",
        "modelspec.implementation": "https://arxiv.org/abs/2602.03410",
        "modelspec.description": f"Concept eraser for {family.title}. Erases: {record.summary()}"[:4000],
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "unhype.format": FORMAT,
        "unhype.config": json.dumps(trained.network.config.to_dict()),
        "unhype.record": json.dumps(asdict(record)),
        **(extra or {}),
    }


def save(trained, path, extra=None):
    """Save a `TrainedHypernet` at `path` in fp16, imported ones as exactly as they came in fp32.

    See `write_aside` for what it raises.
    """
    exact = isinstance(trained.network, PublishedHypernet)
    tensors = {name: tensor if exact else tensor.half() for name, tensor in trained.tensors().items()}
    write_aside(tensors, path, metadata_of(trained, extra))


def _short(words, limit=160):
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


def _describe(file, path):
    """Read config and record from an open file's metadata."""
    metadata = file.metadata() or {}
    if "unhype.config" not in metadata:
        raise HypernetFileError(
            f"'{path.name}' is a safetensors file but no UnHype hypernet (a LoRA or a checkpoint perhaps). "
            "Pick a file that Train Erasure wrote."
        )
    if metadata.get("unhype.format") != FORMAT:
        raise HypernetFileError(
            f"'{path.name}' has UnHype format {_short(metadata.get('unhype.format'))}, this version reads {FORMAT}. "
            "Update the UnHype node pack."
        )
    try:
        parts = metadata["unhype.config"], metadata["unhype.record"]
        if max(map(len, parts)) > _MAX_DESCRIPTION:
            raise ValueError(f"it is longer than {_MAX_DESCRIPTION} characters")
        return _parse_config(parts[0]), _parse_record(parts[1])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise HypernetFileError(
            f"The description inside '{path.name}' is damaged ({_short(error)}). Download or train it again."
        ) from error


def read_tensors(file, shapes, path, dtype="F32"):
    """Read the tensors `shapes` (name to shape) of an open file as fp32, all checked before any is read.

    dtype: what they are stored as, in safetensors' words.
    """
    names = set(file.keys())
    if names != set(shapes):
        wrong = sorted(names.symmetric_difference(shapes))
        raise HypernetFileError(
            f"The weights in '{path.name}' do not match its description: {len(wrong)} tensors are missing or "
            f"unknown, '{_short(wrong[0])}' among them. Download or train it again."
        )
    for name, shape in shapes.items():
        found = file.get_slice(name)
        if tuple(found.get_shape()) != tuple(shape) or found.get_dtype() != dtype:
            raise HypernetFileError(
                f"Tensor '{name}' in '{path.name}' is {found.get_dtype()} {_short(tuple(found.get_shape()))}, expected "
                f"{dtype} {tuple(shape)}. Download or train it again."
            )
    # Copies: on a mapped file, sums differ in the last bit with the alignment, and Windows can't replace it.
    tensors = {name: file.get_tensor(name).clone().float() for name in shapes}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise HypernetFileError(f"Tensor '{name}' in '{path.name}' holds values that are not numbers.")
    return tensors


def open_checked(path):
    """Open a safetensors file; raises `HypernetFileError` when it is none or is cut short."""
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise HypernetFileError(f"There is no file '{path}'.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise HypernetFileError(
            f"'{path.name}' is damaged, cut short or no safetensors file ({_short(error)}). Download or train it again."
        ) from error


def load(path):
    """Load a hypernet file as a `TrainedHypernet` on the CPU in fp32.

    Raises `HypernetFileError` for anything that is no whole, consistent hypernet file, and
    `targets.UnsupportedModelError` for a family that this version does not know.
    """
    path = Path(path)
    with open_checked(path) as file:
        (network_class, config), record = _describe(file, path)
        family_by_key(record.family)
        with torch.device("meta"):
            network = network_class(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        beside = _shapes_of_reading(record, config.embedding_width)
        if _SWITCH[0] in file.keys():  # noqa: SIM118 - the file is no dict
            beside |= {_SWITCH[0]: (len(record.concepts), config.embedding_width), _SWITCH[1]: (len(record.concepts),)}
        stored = "F32" if network_class is PublishedHypernet else "F16"
        tensors = read_tensors(file, shapes | beside, path, stored)
    network.load_state_dict({name: tensors[name] for name in shapes}, assign=True)
    reader = None
    if widths := record.reading.get("widths"):
        reader = Reader(tuple(widths), **{part: tensors[name] for part, name in _READER.items()})
    switch = Switch(*(tensors[name] for name in _SWITCH)) if _SWITCH[0] in tensors else None
    network = network.requires_grad_(False).eval()
    return TrainedHypernet(network, record, path.stem, reader, tensors.get(_CONCEPTS), switch)


def _shapes_of_reading(record, width):
    """What a file holds beside the network."""
    if not record.reading:
        return {}
    shapes = {_CONCEPTS: (len(record.concepts), width)}
    if widths := record.reading["widths"]:
        layers, features, rank = record.reading["layers"], 2 * sum(widths), record.reading["rank"]
        sizes = {
            "up": (layers, len(widths), width, rank),
            "down": (layers, rank, features),
            "bias": (layers, len(widths), width),
            "key": (layers, features + 1),
        }
        shapes |= {_READER[part]: size for part, size in sizes.items()}
    return shapes


def _size(layer):
    rows = "" if layer.outputs == layer.features else f" (rows {layer.start} to {layer.rows.stop} of {layer.features})"
    return f"{layer.inputs} to {layer.outputs}{rows}"


def check_fits(trained, family, layers):
    """Raise `HypernetFileError` in the user's words unless the hypernet fits a model of `family`.

    `layers` are the model's own `TargetLayer`s.
    """
    record, config = trained.record, trained.network.config
    if record.family != family.key:
        raise HypernetFileError(
            f"Hypernet '{trained.name}' was trained for {family_by_key(record.family).title}, but the model is "
            f"{family.title}. Connect a {family_by_key(record.family).title} model, or train a hypernet on this one."
        )
    own = {layer.name: layer for layer in layers}
    for layer in config.layers:
        if own.get(layer.name) != layer:
            found = own.get(layer.name)
            raise HypernetFileError(
                f"Hypernet '{trained.name}' does not fit this {family.title} model: layer '{layer.name}' is "
                f"{_size(found) if found else 'missing'} in the model and {_size(layer)} in the hypernet. It was "
                "trained on a model of another size; train one on this model."
            )

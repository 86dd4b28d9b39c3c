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

from .network import Hypernet, HypernetConfig
from .targets import family_by_key

FORMAT = "1"
SUFFIX = ".safetensors"
_LIMITS = {"rank": 256, "hidden": 8192, "trajectory": 100_000, "octaves": 16, "embedding_width": 65_536}
_MAX_LAYERS, _MAX_FEATURES = 4096, 262_144
# Characters. Thousands of concepts and the losses of long runs need a tenth; JSON takes twenty times that in memory.
_MAX_DESCRIPTION = 8_000_000


class HypernetFileError(ValueError):
    """A file is no hypernet, is damaged, or does not fit the model."""


@dataclass(frozen=True)
class Record:
    """What a hypernet is for and how it was made.

    `concepts`: pairs (erased concept, what it turns into). `dead_zone`: the threshold of
    ``deadzone``. `base`: family class and weight spread of the model it was trained on. `training`:
    settings and measurements of the run.
    """

    family: str
    concepts: tuple[tuple[str, str], ...]
    dead_zone: float
    base: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)

    def summary(self):
        """The erased concepts in words, one a line."""
        return "\n".join(f"{concept} -> {mapping}" for concept, mapping in self.concepts)


@dataclass(frozen=True)
class TrainedHypernet:
    """What travels on an UNHYPE socket: the network, its record and a name for messages."""

    network: Hypernet
    record: Record
    name: str


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
    """Save a `TrainedHypernet` at `path`; see `write_aside` for what it raises."""
    write_aside(trained.network.state_dict(), path, metadata_of(trained, extra))


def _short(words, limit=160):
    """Words from a file, short enough for a message."""
    words = str(words)
    return words if len(words) <= limit else f"{words[:limit]}..."


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _parse_config(text):
    config = HypernetConfig.from_dict(json.loads(text))
    for name, limit in _LIMITS.items():
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= limit:
            raise ValueError(f"{name} is {value!r}")
    if not _is_number(config.alpha):
        raise ValueError(f"alpha is {config.alpha!r}")
    if not 1 <= len(config.layers) <= _MAX_LAYERS:
        raise ValueError(f"{len(config.layers)} layers")
    for layer in config.layers:
        if type(layer.name) is not str:
            raise ValueError(f"the name of a layer is {layer.name!r}")
        if not all(type(n) is int and 1 <= n <= _MAX_FEATURES for n in (layer.inputs, layer.outputs)):
            raise ValueError(f"layer {layer.name} has {layer.inputs!r} inputs and {layer.outputs!r} outputs")
    return config


def _parse_record(text):
    values = json.loads(text)
    concepts = tuple((str(concept), str(mapping)) for concept, mapping in values["concepts"])
    dead_zone = float(values["dead_zone"])
    if not 0 <= dead_zone < float("inf"):
        raise ValueError(f"dead zone {dead_zone}")
    base, training = dict(values["base"]), dict(values["training"])
    if not all(_is_number(spread) for spread in base.get("weight_spread", ())):
        raise ValueError("the weight spread is not made of numbers")
    if not isinstance(values["family"], str) or len(values["family"]) > 100:
        raise ValueError(f"the model family is {values['family']!r}")
    return Record(values["family"], concepts, dead_zone, base, training)


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


def read_tensors(file, shapes, path):
    """Read the fp32 tensors `shapes` (name to shape) of an open file, all checked before any is read."""
    names = set(file.keys())
    if names != set(shapes):
        wrong = sorted(names.symmetric_difference(shapes))
        raise HypernetFileError(
            f"The weights in '{path.name}' do not match its description: {len(wrong)} tensors are missing or "
            f"unknown, '{_short(wrong[0])}' among them. Download or train it again."
        )
    for name, shape in shapes.items():
        found = file.get_slice(name)
        if tuple(found.get_shape()) != tuple(shape) or found.get_dtype() != "F32":
            raise HypernetFileError(
                f"Tensor '{name}' in '{path.name}' is {found.get_dtype()} {_short(tuple(found.get_shape()))}, expected "
                f"F32 {tuple(shape)}. Download or train it again."
            )
    # Copies: on a mapped file, sums differ in the last bit with the alignment, and Windows can't replace it.
    tensors = {name: file.get_tensor(name).clone() for name in shapes}
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
        config, record = _describe(file, path)
        family_by_key(record.family)
        with torch.device("meta"):
            network = Hypernet(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        tensors = read_tensors(file, shapes, path)
    network.load_state_dict(tensors, assign=True)
    return TrainedHypernet(network.requires_grad_(False).eval(), record, path.stem)


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
            size = f"{found.inputs} to {found.outputs}" if found else "missing"
            raise HypernetFileError(
                f"Hypernet '{trained.name}' does not fit this {family.title} model: layer '{layer.name}' is {size} "
                f"in the model and {layer.inputs} to {layer.outputs} in the hypernet. It was trained on a model of "
                "another size; train one on this model."
            )

"""Hypernet files: safetensors, with everything that describes the hypernet as readable metadata.

`modelspec.*` keys are what ComfyUI's model library shows, `unhype.*` keys are ours. A file is checked
against its own description before a tensor is read, and against the model before it is applied.
"""

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .deadzone import Switch
from .description import FORMAT, HypernetFileError, Record, describe, short
from .embedding import Reader
from .factors import delta_norm
from .network import Hypernet
from .published import PublishedHypernet
from .targets import family_by_key

SUFFIX = ".safetensors"
_READER, _CONCEPTS = {part: f"reader.{part}" for part in ("up", "down", "bias", "key")}, "concepts.c"
_SWITCH = ("switch.weight", "switch.bias")


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

    def heard(self, c):
        """The embeddings that H answers for c (p, width), see `Switch.raised`."""
        if self.switch is None or self.concept_c is None:
            return c
        return self.switch.raised(c, self.concept_c.to(c))

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


def read_tensors(file, shapes, path, dtype="F32"):
    """Read the tensors `shapes` (name to shape) of an open file as fp32, all checked before any is read.

    dtype: what they are stored as, in safetensors' words.
    """
    names = set(file.keys())
    if names != set(shapes):
        wrong = sorted(names.symmetric_difference(shapes))
        raise HypernetFileError(
            f"The weights in '{path.name}' do not match its description: {len(wrong)} tensors are missing or "
            f"unknown, '{short(wrong[0])}' among them. Download or train it again."
        )
    for name, shape in shapes.items():
        found = file.get_slice(name)
        if tuple(found.get_shape()) != tuple(shape) or found.get_dtype() != dtype:
            raise HypernetFileError(
                f"Tensor '{name}' in '{path.name}' is {found.get_dtype()} {short(tuple(found.get_shape()))}, expected "
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
            f"'{path.name}' is damaged, cut short or no safetensors file ({short(error)}). Download or train it again."
        ) from error


def load(path):
    """Load a hypernet file as a `TrainedHypernet` on the CPU in fp32.

    Raises `HypernetFileError` for anything that is no whole, consistent hypernet file, and
    `targets.UnsupportedModelError` for a family that this version does not know.
    """
    path = Path(path)
    with open_checked(path) as file:
        (network_class, config), record = describe(file, path)
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

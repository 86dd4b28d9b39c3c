"""Hypernet files: an `Eraser` to safetensors and back, described by readable metadata.

`modelspec.*` keys are what ComfyUI's model library shows, `unhype.*` keys are ours (``record``). A file is
checked against its own description before a tensor is read, and against the model before it is applied.
"""

import json
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .detector import Detector
from .eraser import Eraser
from .families import Family
from .merged import AnyEraser, MergedEraser, check_one_base
from .neighbours import Neighbours
from .network import Hypernet, HypernetConfig
from .published import PublishedConfig, PublishedHypernet
from .record import FORMAT, FORMAT_MERGED, HypernetFileError, Record, describe, described_parts, short, tensor_names
from .regressor import PooledRegressor
from .targets import TargetLayer, family_by_key
from .token_detector import TokenDetector

SUFFIX = ".safetensors"
_REGRESSOR = {part: f"regressor.{part}" for part in ("up", "down", "bias", "key")}
_DETECTOR, _CONCEPTS = ("detector.weight", "detector.bias"), "concept_embeddings"
_NEIGHBOURS = "detector.neighbours.embeddings"
_TOKEN_DETECTOR = ("token_detector.weight", "token_detector.bias")


def tensors_of(eraser: AnyEraser) -> dict[str, Tensor]:
    """Everything that a file holds, by name; the names in a merged one begin with the number of the part."""
    if isinstance(eraser, MergedEraser):
        own = enumerate(map(tensors_of, eraser.parts))
        return {f"{n}.{name}": tensor for n, tensors in own for name, tensor in tensors.items()}
    tensors = dict(eraser.hypernet.state_dict())
    if eraser.regressor is not None:
        tensors |= {name: getattr(eraser.regressor, part) for part, name in _REGRESSOR.items()}
    if eraser.concept_embeddings is not None:
        tensors[_CONCEPTS] = eraser.concept_embeddings
    if eraser.detector is not None:
        tensors |= {f"detector.{name}": tensor for name, tensor in eraser.detector.state_dict().items()}
    if eraser.token_detector is not None:
        tensors |= {f"token_detector.{name}": tensor for name, tensor in eraser.token_detector.state_dict().items()}
    return tensors


def same_eraser(one: AnyEraser, other: AnyEraser) -> bool:
    """Whether two erasers hold the same numbers, as those of one file do that was loaded twice."""
    if one is other:
        return True
    a, b = tensors_of(one), tensors_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name].to(a[name].device)) for name in a)


@contextmanager
def written_aside(path: Path) -> Generator[Path]:
    """Gives a path beside `path` to write to, and moves that file into place, so that `path` is always whole.

    Raises OSError (disk full, folder not writable) with the former file untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.touch()
        usual = part.stat().st_mode
        yield part
        part.chmod(usual)  # safetensors lets only the owner read what it writes
        part.replace(path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"Could not write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def metadata_of(eraser: AnyEraser, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The metadata of a hypernet file; `extra` adds keys such as `workflow`."""
    record, family = eraser.record, family_by_key(eraser.record.family)
    erased = ", ".join(concept for concept, _ in record.concepts)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": f"UnHype: {erased}"[:200],
        "modelspec.architecture": f"{family.architecture}/unhype",
        "modelspec.implementation": "https://arxiv.org/abs/2602.03410",
        "modelspec.description": f"Concept eraser for {family.title}. Erases: {record.summary()}"[:4000],
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **_description(eraser),
        **(extra or {}),
    }


def _description(eraser: AnyEraser) -> dict[str, str]:
    if isinstance(eraser, MergedEraser):
        parts = [{"name": part.name, **_description(part)} for part in eraser.parts]
        return {"unhype.format": FORMAT_MERGED, "unhype.parts": json.dumps(parts)}
    config = json.dumps(eraser.hypernet.config.to_dict())
    return {"unhype.format": FORMAT, "unhype.config": config, "unhype.record": eraser.record.to_json()}


def save(eraser: AnyEraser, path: Path, extra: Mapping[str, str] | None = None) -> None:
    """Save an `Eraser` at `path` in fp16, imported ones as exactly as they came in fp32.

    See `written_aside` for the errors.
    """
    exact = isinstance(eraser, Eraser) and isinstance(eraser.hypernet, PublishedHypernet)
    tensors = {name: tensor if exact else tensor.half() for name, tensor in tensors_of(eraser).items()}
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with written_aside(path) as part:
        save_file(tensors, str(part), metadata=metadata_of(eraser, extra))


def read_tensors(file: Any, shapes: Mapping[str, tuple[int, ...]], path: Path, dtype: str = "F32") -> dict[str, Tensor]:
    """Read the tensors `shapes` (name to shape) of an open file as fp32, all checked before any is read.

    dtype: of the stored tensors, in safetensors' words. Raises `HypernetFileError` for other names, shapes or
    dtypes and for values that are not numbers.
    """
    stored = tensor_names(file.metadata(), list(file.keys()))
    if set(stored) != set(shapes):
        wrong = sorted(set(stored).symmetric_difference(shapes))
        raise HypernetFileError(
            f"The weights in '{path.name}' do not match its description: {len(wrong)} tensors are missing or "
            f"unknown, '{short(wrong[0])}' among them. Download or train it again."
        )
    for name, shape in shapes.items():
        found = file.get_slice(stored[name])
        if tuple(found.get_shape()) != tuple(shape) or found.get_dtype() != dtype:
            raise HypernetFileError(
                f"Tensor '{name}' in '{path.name}' is {found.get_dtype()} {short(tuple(found.get_shape()))}, expected "
                f"{dtype} {tuple(shape)}. Download or train it again."
            )
    # Copies: on a mapped file, sums differ in the last bit with the alignment, and Windows can't replace it.
    tensors = {name: file.get_tensor(stored[name]).clone().float() for name in shapes}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise HypernetFileError(f"Tensor '{name}' in '{path.name}' holds values that are not numbers.")
    return tensors


def open_checked(path: Path) -> Any:
    """Open a safetensors file; raises `HypernetFileError` when it is none or is cut short."""
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise HypernetFileError(f"There is no file '{path}'.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise HypernetFileError(
            f"'{path.name}' is damaged, cut short or no safetensors file ({short(error)}). Download or train it again."
        ) from error


def network_of(config: HypernetConfig | PublishedConfig, tensors: Mapping[str, Tensor]) -> Hypernet | PublishedHypernet:
    """The network of a config over these tensors, which must be of its `shapes`; nothing else is allocated."""
    with torch.device("meta"):
        network = PublishedHypernet(config) if isinstance(config, PublishedConfig) else Hypernet(config)
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False).eval()


def load(path: Path) -> AnyEraser:
    """Load a hypernet file as an `Eraser`, or a merged one as a `MergedEraser`, on the CPU in fp32.

    Raises `HypernetFileError` for anything that is no whole, consistent hypernet file, and
    `targets.UnsupportedModelError` for a family that this version does not know.
    """
    with open_checked(path) as file:
        metadata = file.metadata()
        if (metadata or {}).get("unhype.format") == FORMAT_MERGED:
            return _load_merged(file, path)
        config, record = describe(metadata, path.name)
        has_detector = _DETECTOR[0] in tensor_names(metadata, list(file.keys()))
        shapes = _shapes(config, record, has_detector)
        tensors = read_tensors(file, shapes, path, "F32" if isinstance(config, PublishedConfig) else "F16")
    return _eraser_of(config, record, tensors, path.stem)


def _load_merged(file: Any, path: Path) -> MergedEraser:
    parts = described_parts(file.metadata(), path.name)
    shapes = [_shapes(config, record, True) for _, config, record in parts]
    named = {f"{n}.{name}": shape for n, own in enumerate(shapes) for name, shape in own.items()}
    tensors = read_tensors(file, named, path, "F16")
    erasers = [
        _eraser_of(config, record, {key: tensors[f"{n}.{key}"] for key in own}, name)
        for n, (own, (name, config, record)) in enumerate(zip(shapes, parts, strict=True))
    ]
    check_one_base(erasers)
    return MergedEraser(tuple(erasers), path.stem)


def _eraser_of(
    config: HypernetConfig | PublishedConfig, record: Record, tensors: Mapping[str, Tensor], name: str
) -> Eraser:
    own = config.shapes()
    hypernet = network_of(config, {name: tensors[name] for name in own})
    regressor = None
    if widths := record.text_encoder.widths:
        regressor = PooledRegressor(tuple(widths), **{part: tensors[name] for part, name in _REGRESSOR.items()})
    neighbours = Neighbours(tensors[_NEIGHBOURS], tensors[_CONCEPTS]) if record.text_encoder.neighbours else None
    detector = Detector(*(tensors[name] for name in _DETECTOR), neighbours) if _DETECTOR[0] in tensors else None
    token_detector = None
    if widths := record.text_encoder.token_widths:
        spans = record.text_encoder.token_spans
        token_detector = TokenDetector(tuple(widths), *(tensors[name] for name in _TOKEN_DETECTOR), spans)
    return Eraser(hypernet, record, name, detector, regressor, tensors.get(_CONCEPTS), token_detector)


def _shapes(config: HypernetConfig | PublishedConfig, record: Record, has_detector: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of an eraser in a file: name to shape."""
    family_by_key(record.family)
    width, shapes = config.embedding_width, config.shapes()
    encoder, concepts = record.text_encoder, len(record.concepts)
    if encoder.chunk:
        shapes[_CONCEPTS] = (concepts, width)
    if encoder.widths:
        layers, encoders, features = encoder.layers, len(encoder.widths), 2 * sum(encoder.widths)
        sizes = (
            (layers, encoders, width, encoder.rank),
            (layers, encoder.rank, features),
            (layers, encoders, width),
            (layers, features + 1),
        )
        shapes |= dict(zip(_REGRESSOR.values(), sizes, strict=True))
    if widths := encoder.token_widths:
        shapes |= dict(zip(_TOKEN_DETECTOR, ((concepts, sum(widths)), (len(widths), concepts)), strict=True))
    if has_detector:
        shapes |= {_DETECTOR[0]: (concepts, width), _DETECTOR[1]: (concepts,)}
    if encoder.neighbours:
        shapes[_NEIGHBOURS] = (encoder.neighbours, width)
    return shapes


def _size(layer: TargetLayer) -> str:
    rows = "" if layer.outputs == layer.features else f" (rows {layer.start} to {layer.rows.stop} of {layer.features})"
    return f"{layer.inputs} to {layer.outputs}{rows}"


def check_fits(eraser: AnyEraser, family: Family, layers: tuple[TargetLayer, ...]) -> None:
    """Raise `HypernetFileError` in the user's words unless the hypernet fits a model of `family`.

    `layers` are the model's own `TargetLayer`s. A hypernet that was trained here must change all of them, since the
    text would go on entering by the others; the paper's authors chose some.
    """
    record, config = eraser.record, eraser.config
    if record.family != family.key:
        raise HypernetFileError(
            f"Hypernet '{eraser.name}' was trained for {family_by_key(record.family).title}, but the model is "
            f"{family.title}. Connect a {family_by_key(record.family).title} model, or train a hypernet on this one."
        )
    own = {layer.name: layer for layer in layers}
    for layer in config.layers:
        if own.get(layer.name) != layer:
            found = own.get(layer.name)
            raise HypernetFileError(
                f"Hypernet '{eraser.name}' does not fit this {family.title} model: layer '{layer.name}' is "
                f"{_size(found) if found else 'missing'} in the model and {_size(layer)} in the hypernet. It was "
                "trained on a model of another size; train one on this model."
            )
    left = own.keys() - {layer.name for layer in config.layers}
    if left and isinstance(config, HypernetConfig):
        raise HypernetFileError(
            f"Hypernet '{eraser.name}' does not fit this {family.title} model: {len(left)} layers that read the "
            f"prompt, '{min(left)}' among them, are not in the hypernet, and the concepts would still be drawn. It was "
            "trained on another kind of the model; train one on this model."
        )

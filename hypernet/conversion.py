"""The .pth files of the paper's authors, read safely and made into hypernet files of our own.

A file holds `state_dict` and `config`, or the state dict alone. Every target layer has its keys under
`<layer>.hyper_lora.`; the base model's own weights, which ride along, are dropped.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .eraser import Eraser
from .families import value_before_mlp, value_of_qkv, whole
from .files import SUFFIX, load, network_of, save
from .network import Hypernet
from .published import PublishedConfig, PublishedHypernet
from .record import HypernetFileError, Record, TrainingRun
from .targets import TargetLayer

_PREFIX = re.compile(r"^((module|model|diffusion_model|transformer|unet)\.)+")
_HEADS = tuple(f"{side}_head.{n}.{part}" for side in ("left", "right") for n in (0, 2) for part in ("weight", "bias"))
_NEEDED = {"alpha_b", "alpha", "time_feat.freqs", *_HEADS}
_OWN_ENCODER = {None, "clip", "openai/clip-vit-large-patch14"}
# Layers may share small tensors.
_SHARED = 2
_UNKNOWN = "(what it turns into is not recorded)"

# Layer name to its tensors by name.
Layers = Mapping[str, Mapping[str, Tensor]]

# Names of diffusers, with the host's name, the rule for its rows, and the layer's features over its inputs.
_FLUX = (
    (r"transformer_blocks\.(\d+)\.attn\.to_v", r"double_blocks.\1.img_attn.qkv", value_of_qkv, 3),
    (r"transformer_blocks\.(\d+)\.attn\.add_v_proj", r"double_blocks.\1.txt_attn.qkv", value_of_qkv, 3),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj", whole, 1),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_v", r"single_blocks.\1.linear1", value_before_mlp, 7),
)


def _refuse(path: Path, reason: str) -> HypernetFileError:
    return HypernetFileError(f"Import UnHype Weights: '{path.name}' {reason}")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and the config of a file; nothing in it is run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise HypernetFileError(f"There is no file '{path}'.") from error
    except Exception as error:  # damaged and unsafe files raise errors of many types
        raise _refuse(
            path, "is damaged, or holds more than weights and is not opened for safety's sake. Download it again."
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    config = content.get("config", {}) if isinstance(content, dict) else {}
    tensors = {_PREFIX.sub("", str(key)): value for key, value in state.items() if torch.is_tensor(value)}
    # A few stored numbers can be claimed to be any number of them, by strides of zero.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > _SHARED * path.stat().st_size:
        raise _refuse(path, "is damaged: it claims more weights than it holds. Download it again.")
    return tensors, dict(config) if isinstance(config, dict) else {}


def _by_layer(tensors: Mapping[str, Tensor], path: Path) -> Layers:
    """Layer name to its tensors (name after `.hyper_lora.` to tensor), less the base model's weights."""
    layers = defaultdict(dict)
    for key, tensor in tensors.items():
        layer, found, name = key.partition(".hyper_lora.")
        if found:
            layers[layer][name] = tensor
    if not layers:
        raise _refuse(path, "holds no hypernet of the UnHype authors (no '.hyper_lora.' weights).")
    for layer, parts in layers.items():
        if "xL_const_flat" not in parts:
            raise _refuse(
                path,
                "lacks the random constant that it was trained with ('xL_const_flat'): early versions did not save it, "
                "and without it the file can't work. Ask for a newer file, or train one here.",
            )
        missing = _NEEDED - set(parts)
        unknown = set(parts) - _NEEDED - {"xL_const_flat", "xR_const_flat", "original.weight", "original.bias"}
        if missing or unknown:
            raise _refuse(
                path, f"is of an unknown version: layer '{layer}' lacks {sorted(missing)}, has {sorted(unknown)}."
            )
    return dict(layers)


def _check_config(config: Mapping[str, Any], layers: Layers, path: Path) -> None:
    """Refuse what this pack can't drive."""
    encoder = config.get("embedding_model")
    if encoder not in _OWN_ENCODER:
        raise _refuse(path, f"is driven by another text encoder ({encoder}) than the model's own CLIP-L.")
    if config.get("use_orig_concat"):
        raise _refuse(path, "is of a kind that also reads each layer's output (use_orig_concat), which is unsupported.")
    if not config.get("use_pooler", True):
        raise _refuse(path, "is driven by something else than the pooled embedding (use_pooler off): unsupported.")
    if any(bool(parts["xR_const_flat"].any()) for parts in layers.values() if "xR_const_flat" in parts):
        raise _refuse(path, "changes the model for every prompt (its constant 'xR_const_flat' is not zero).")
    if not all(bool(torch.isfinite(tensor).all()) for parts in layers.values() for tensor in parts.values()):
        raise _refuse(path, "holds values that are not numbers.")


def _target(name: str, inputs: int, outputs: int, path: Path) -> tuple[str, TargetLayer]:
    """Family key and `TargetLayer` of a layer of theirs."""
    if ".attn2." in name:
        return "sd15", TargetLayer(name, inputs, outputs)
    for pattern, own, rows, times in _FLUX:
        if re.fullmatch(pattern, name):
            start, count = rows(inputs, times * inputs)
            if count == outputs:
                return "flux", TargetLayer(re.sub(pattern, own, name), inputs, outputs, start, times * inputs)
    raise _refuse(path, f"changes the layer '{name}', which is none of Stable Diffusion 1.x or Flux.1 that we know.")


def _sizes(config: Mapping[str, Any], layers: Layers, path: Path) -> tuple[int, int, int, int, int]:
    """Rank, hidden width, embedding width, octaves and S, the same for all layers."""
    first = next(iter(layers.values()))
    rank = config.get("rank")
    if rank is None and "original.weight" in first:
        rank = first["xL_const_flat"].numel() // first["original.weight"].shape[1]
    if not rank:
        raise _refuse(path, "names no rank, neither in its config nor by the base model's weights.")
    hidden, width = first["left_head.0.weight"].shape
    frequencies = first["time_feat.freqs"]
    trajectory = config.get("hyper_train_steps") or round(2 * math.pi / float(frequencies[0])) - 1
    return int(rank), hidden, width - 2 * frequencies.numel(), frequencies.numel(), int(trajectory)


def _network(config: Mapping[str, Any], layers: Layers, path: Path) -> tuple[str, Hypernet | PublishedHypernet]:
    """The family's key and the network of a file."""
    rank, hidden, width, octaves, trajectory = _sizes(config, layers, path)
    families, targets = [], []
    for name, parts in layers.items():
        inputs, outputs = parts["xL_const_flat"].numel() // rank, parts["right_head.2.bias"].numel() // rank
        if "original.weight" in parts and tuple(parts["original.weight"].shape) != (outputs, inputs):
            raise _refuse(path, f"does not fit together: layer '{name}' doesn't have the rank {rank} of its config.")
        family, target = _target(name, inputs, outputs, path)
        families.append(family)
        targets.append(target)
    own = PublishedConfig(width, tuple(targets), rank, hidden, trajectory, octaves)
    weights = {
        "alpha": torch.stack([parts["alpha"].reshape(()) for parts in layers.values()]),
        "alpha_base": torch.stack([parts["alpha_b"].reshape(()) for parts in layers.values()]),
        "frequencies": next(iter(layers.values()))["time_feat.freqs"],
    }
    for n, parts in enumerate(layers.values()):
        weights[f"L_const_{n}"] = parts["xL_const_flat"].flatten()
        for side in ("left", "right"):
            for number, layer in ((0, "inner"), (2, "outer")):
                for part in ("weight", "bias"):
                    weights[f"{side}.{n}.{layer}_{part}"] = parts[f"{side}_head.{number}.{part}"]
    if len(set(families)) != 1:
        raise _refuse(path, "mixes layers of several models.")
    for name, shape in own.shapes().items():
        if tuple(weights[name].shape) != shape:
            raise _refuse(path, f"does not fit together: '{name}' is {tuple(weights[name].shape)}, expected {shape}.")
    tensors = {name: tensor.float().clone() for name, tensor in weights.items()}
    return families[0], network_of(own, tensors)


def import_weights(path: Path, concepts: Sequence[tuple[str, str]] = ()) -> Eraser:
    """Make a file of the authors' into one of ours beside it, once, and load that.

    path: a .pth file. concepts: pairs (erased concept, mapping concept), which their files don't record;
    without any the file's name stands for them. Returns an `Eraser` without a detector.
    Raises `HypernetFileError` in the user's words, OSError when it can't be written.
    """
    own = path.with_suffix(SUFFIX)
    concepts = tuple(concepts) or ((path.stem, _UNKNOWN),)
    origin = [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    if own.exists():
        try:
            earlier = load(own)
        except ValueError:
            earlier = None
        if not isinstance(earlier, Eraser) or not earlier.record.training.imported_from:
            raise _refuse(path, f"can't be imported: there is another file '{own.name}' beside it. Rename one of them.")
        if earlier.record.training.imported_from == origin and earlier.record.concepts == concepts:
            return earlier
    tensors, config = _read(path)
    layers = _by_layer(tensors, path)
    _check_config(config, layers, path)
    family, network = _network(config, layers, path)
    record = Record(family, concepts, training=TrainingRun(imported_from=origin))
    eraser = Eraser(network, record, own.stem)
    save(eraser, own)
    return eraser

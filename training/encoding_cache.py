"""Encoded prompts on disk, so that a second training of the same text encoder doesn't encode them again.

Files are safetensors, some dozens of prompts each. What was used last stays longest. A damaged file counts as none.
"""

import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..hypernet.embedding import Conditioning
from ..hypernet.files import SUFFIX, written_aside

# Bytes of all files together, and of one.
_LIMIT, _FILE_BYTES = 4_000_000_000, 64_000_000
# Prompts of one file: an interrupted run loses fewer.
_FILE_PROMPTS = 64
_NAME = re.compile(r"[0-9a-f]+\.[\w.]+")

log = logging.getLogger("unhype")


class EncodingCache:
    """The prompts of one text encoder: of each some tensors by name.

    folder: of all encoders' files. encoder: its `encoder_fingerprint.fingerprint`, hexadecimal. A prompt's key is
    hexadecimal as well.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder, self.encoder = folder, encoder
        self._new: dict[str, Tensor] = {}
        self._prompts = self._bytes = 0

    def read(self, wanted: Mapping[str, Iterable[str]]) -> dict[str, dict[str, Tensor]]:
        """What is known of the wanted prompts, key to tensors by name.

        wanted: key to the names of tensors that a prompt needs. A prompt that lacks one of them is left out. Names
        that begin with a wanted name and a dot are read as well.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for path in self._files(f"{self.encoder}-*{SUFFIX}"):
            try:
                for name, tensor in _tensors(path, found, wanted):
                    key, _, part = name.partition(".")
                    found.setdefault(key, {})[part] = tensor
                path.touch()
            except (SafetensorError, OSError, ValueError) as error:
                log.info("UnHype: the encoded prompts in '%s' can't be read (%s); encoding them again.", path, error)
                with suppress(OSError):
                    path.unlink()
        return {key: tensors for key, tensors in found.items() if set(wanted[key]) <= tensors.keys()}

    def add(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a prompt; it is on disk after `flush` at the latest."""
        # Copies: a file takes no two names for the same memory.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self._new |= {f"{key}.{name}": tensor for name, tensor in copies.items()}
        self._prompts += 1
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in copies.values())
        if self._prompts >= _FILE_PROMPTS or self._bytes >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added, and remove the files that were used longest ago while all are too many.

        A disk that is full or a folder that isn't writable costs the prompts, and the log says so.
        """
        if not self._new:
            return
        tensors, self._new, self._prompts, self._bytes = self._new, {}, 0, 0
        path = self.folder / f"{self.encoder}-{uuid.uuid4().hex[:12]}{SUFFIX}"
        try:
            with written_aside(path) as part:
                save_file(tensors, str(part))
            self._make_room()
        except OSError as error:
            log.warning("UnHype: encoded prompts aren't kept: %s", error)

    def _make_room(self) -> None:
        total = 0
        for path in self._files(f"*-*{SUFFIX}"):
            total += path.stat().st_size
            if total > _LIMIT:
                path.unlink(missing_ok=True)

    def _files(self, pattern: str) -> list[Path]:
        """The files that fit, those used last first."""
        return sorted(self.folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def packed(c: Tensor, features: Tensor, conditioning: Conditioning | None) -> dict[str, Tensor] | None:
    """A prompt's tensors by name, to keep; None where its conditioning holds something else.

    c: (width,). features: of its first chunk in each encoder layer, (layers, F). conditioning: of one entry, None
    where it isn't needed.
    """
    tensors = {"c": c, "features": features}
    if conditioning is None:
        return tensors
    ((states, entry),) = conditioning
    for name, value in entry.items():
        if not (value is None or torch.is_tensor(value)):
            return None
        tensors[f"states.{'none' if value is None else 'value'}.{name}"] = torch.empty(0) if value is None else value
    return {**tensors, "states": states}


def unpacked(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Conditioning]:
    """The reverse of `packed`: c, features, and the conditioning, which is empty where it wasn't kept."""
    if "states" not in tensors:
        return tensors["c"], tensors["features"], []
    entry: dict[str, Any] = {}
    for name, value in tensors.items():
        kind, _, key = name.removeprefix("states.").partition(".")
        if key:
            entry[key] = None if kind == "none" else value
    return tensors["c"], tensors["features"], [[tensors["states"], entry]]


def _tensors(
    path: Path, found: Mapping[str, Mapping[str, Tensor]], wanted: Mapping[str, Iterable[str]]
) -> list[tuple[str, Tensor]]:
    """The tensors of a file that are wanted and not found yet; ValueError for names or values of another kind."""
    read = []
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            if not _NAME.fullmatch(name):
                raise ValueError(f"a tensor named {name[:40]!r}")
            key, _, part = name.partition(".")
            if key not in wanted or part in found.get(key, {}):
                continue
            if any(part == own or part.startswith(f"{own}.") for own in wanted[key]):
                tensor = file.get_tensor(name).clone()
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise ValueError("values that are not numbers")
                read.append((name, tensor))
    return read

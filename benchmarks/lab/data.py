"""Emoji of seven vendors as training pictures.

The packages come from the npm registry, are rasterised once, and are never committed.
"""

import io
import json
import logging
import subprocess
import tarfile
import zlib
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample

from .vocabulary import ICONS

log = logging.getLogger(__name__)

# Vendor sets under licences that allow a trained model: Apache-2.0, MIT and CC-BY-4.0.
SETS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "fxemoji": "1.2.2",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
}
# Kept from the judge's training, so that its accuracy is measured on drawings that it never saw.
HELD_OUT = ("fluent-emoji-flat", "emojione")
SIZE = 32
_RASTER = 64
ATTRIBUTION = (
    "Trained on emoji drawings: Noto Emoji and FxEmojis (Apache-2.0), Fluent Emoji (MIT, Microsoft), "
    "Twemoji (CC-BY-4.0, Twitter and contributors), EmojiOne 2 (CC-BY-4.0, EmojiOne). "
    "Text by all-MiniLM-L6-v2 (Apache-2.0)."
)


def fetch(folder):
    """Download the vendor packages into `folder` unless they are there; returns set name to archive path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    archives = {}
    for name, version in SETS.items():
        archives[name] = folder / f"iconify-json-{name}-{version}.tgz"
        if not archives[name].exists():
            subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"], cwd=folder, check=True)
    return archives


def _svg(icons, name):
    alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"].get(alias["parent"] if alias else name)
    if icon is None:
        return None
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{width}" height="{height}">'
    return f"{head}{icon['body']}</svg>"


def _rasterise(svg):
    import resvg_py  # only those who train the lab anew need it

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=_RASTER, height=_RASTER))
    picture = Image.open(io.BytesIO(png)).convert("RGBA").resize((_RASTER, _RASTER))
    return torch.from_numpy(numpy.asarray(picture).copy())


def load(folder):
    """All pictures: (n, 4, 64, 64) fp32 RGBA in [0, 1], concept index (n,) and vendor index (n,)."""
    folder = Path(folder)
    stored = folder / f"pictures-{zlib.crc32(repr(ICONS).encode()):08x}.npz"
    if not stored.exists():
        pictures, concepts, vendors = [], [], []
        for vendor, (name, archive) in enumerate(fetch(folder).items()):
            with tarfile.open(archive) as package:
                icons = json.load(package.extractfile("package/icons.json"))
            for concept, icon in enumerate(ICONS.values()):
                if svg := _svg(icons, icon):
                    pictures.append(_rasterise(svg))
                    concepts.append(concept)
                    vendors.append(vendor)
            log.info("%s: %d pictures", name, vendors.count(vendor))
        numpy.savez(stored, pictures=torch.stack(pictures).numpy(), concepts=concepts, vendors=vendors)
    values = numpy.load(stored)
    rgba = torch.from_numpy(values["pictures"]).permute(0, 3, 1, 2).float() / 255
    return rgba, torch.from_numpy(values["concepts"]), torch.from_numpy(values["vendors"])


def place(rgba, scale, shift, size=SIZE):
    """Cut-outs on nothing: RGBA (n, 4, 64, 64) to RGBA (n, 4, size, size), colours times alpha.

    scale (n,): share of the picture's width that the cut-out takes; shift (n, 2): x and y of its
    centre, where -1 and 1 are the picture's edges.
    """
    rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    theta = torch.zeros(len(rgba), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -shift / scale.unsqueeze(1)
    # Sampled at twice the size and averaged, else thin lines break up.
    large = grid_sample(
        rgba, affine_grid(theta, (len(rgba), 4, 2 * size, 2 * size), align_corners=False), align_corners=False
    )
    return torch.nn.functional.avg_pool2d(large, 2)


def paint(rgba, scale, shift, size=SIZE):
    """Cut-outs on white, RGB (n, 3, size, size) in [0, 1]; see `place`."""
    placed = place(rgba, scale, shift, size)
    return placed[:, :3] + 1 - placed[:, 3:]

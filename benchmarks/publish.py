"""Results into the repository: the figures as JSON, and the README's table made from them."""

import json
import re
from datetime import date

import torch

from .environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def device():
    """What the figures were measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def section(name, readme):
    """The text between the README's marks for `name`."""
    return re.search(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", readme, re.DOTALL)


def markdown(header, rows):
    """A Markdown table; header and rows are tuples of strings."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def publish(name, found, table):
    """Write `found` as results/<name>.json with today's date, and `table` between the README's marks for it."""
    RESULTS.mkdir(exist_ok=True)
    dated = {"date": date.today().isoformat(), **found}
    (RESULTS / f"{name}.json").write_text(json.dumps(dated, indent=1) + "\n", encoding="utf-8")
    path = ROOT / "README.md"
    readme = path.read_text("utf-8")
    place = section(name, readme)
    path.write_text(readme[: place.start()] + table + readme[place.end() :], encoding="utf-8")

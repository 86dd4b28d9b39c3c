"""Results into the repository: the figures as JSON, and the tables made from them in the two READMEs."""

import json
import re
import shutil
from datetime import date

import torch

from .environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"
README, MEASURED = ROOT / "README.md", ROOT / "benchmarks" / "README.md"


def device():
    """What the figures were measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def section(name, words):
    """Where the text between the marks for `name` stands in `words`, as a regex match."""
    return re.search(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", words, re.DOTALL)


def fill_section(path, name, text):
    """Replace what stands between the marks for `name` in the Markdown file `path`."""
    words = path.read_text("utf-8")
    place = section(name, words)
    path.write_text(words[: place.start()] + text + words[place.end() :], encoding="utf-8")


def markdown(header, rows):
    """A Markdown table; header and rows are tuples of strings."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def publish(name, found, table, picture=None, page=README):
    """Write `found` as results/<name>.json with today's date, and `table` between the marks for it on a `page`.

    picture: a file to keep beside the figures under its own name.
    """
    RESULTS.mkdir(exist_ok=True)
    if picture:
        shutil.copy(picture, RESULTS)
    dated = {"date": date.today().isoformat(), **found}
    (RESULTS / f"{name}.json").write_text(json.dumps(dated, indent=1) + "\n", encoding="utf-8")
    fill_section(page, name, table)

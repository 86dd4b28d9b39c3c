"""How easily README and help pages read: `python3 dev.py readability`.

The measure is Flesch's reading ease, by textstat, in an environment of its own; 60 and more is plain English. Standard
library only.
"""

import json
import re
import subprocess
from pathlib import Path

from .environment import ROOT, clean_environment, say, tool_python

LEAST = 60
# All that this version needs, so that nothing is looked up elsewhere; newer ones fetch a dictionary.
TOOLS = ["textstat==0.7.3", "pyphen==0.18.1", "setuptools==75.8.0"]
_MEASURE = (
    "import json, sys, textstat; "
    "print(json.dumps([textstat.flesch_reading_ease(text) for text in json.load(sys.stdin)]))"
)


def pages() -> list[Path]:
    """What users read: the README as far as it isn't about development, and the help of the nodes."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web" / "docs").glob("*.md"))]


def prose(text: str) -> str:
    """Sentences alone: no code, tables, headings, pictures and marks. What ends a line ends a sentence."""
    text = re.sub(r"(?ms)^ *```.*?^ *```|<!--.*?-->", "", text.partition("\n## Development\n")[0])
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"\s*(\||#|!\[|<)", line)]
    plain = (re.sub(r"^\s*(?:[-*]|\d+\.)\s+|[*`_]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line)) for line in lines)
    return "\n".join(line if line.rstrip()[-1] in ".!?:" else f"{line}." for line in map(str.strip, plain))


def main() -> int:
    """Print a line a page; 1 when one of them is below the least."""
    texts = [prose(page.read_text("utf-8")) for page in pages()]
    measured = subprocess.run(
        [str(tool_python("readability", TOOLS)), "-W", "ignore", "-c", _MEASURE],
        input=json.dumps(texts),
        stdout=subprocess.PIPE,
        env=clean_environment(),
        text=True,
        check=True,
    )
    scores = json.loads(measured.stdout)
    for page, text, score in zip(pages(), texts, scores, strict=True):
        say(f"{score:5.1f}  {len(text.split()):5} words  {page.relative_to(ROOT).as_posix()}")
    return int(min(scores) < LEAST)

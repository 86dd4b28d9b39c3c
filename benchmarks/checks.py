"""The checks that others run on node packs, run on what the registry's archive holds.

`python3 dev.py check` prints a line a check and ends with 1 when one of them finds something. comfy-cli packs the
archive and validates the metadata, comfy-test reads sources and scripts, comfy-import-guard binds every call of
`comfy` to the host's own signatures, nodesafe looks for harmful code. Standard library only: the checks live in an
environment of their own. All of it runs offline once that is set up.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .environment import ROOT, Host, clean_environment, pins, say, tool_python

# A command by its name: the scripts that pip wrote don't survive the move of their environment.
_COMMAND = (
    "import sys; from importlib.metadata import entry_points; "
    "sys.argv.pop(0); sys.exit(entry_points(group='console_scripts')[sys.argv[0]].load()())"
)
_PACK = "from comfy_cli.file_utils import zip_files; import sys; zip_files(sys.argv[1])"

# nodesafe looks for words, not for what they do. What it takes amiss here, by category, and why each is harmless;
# tests/project/test_source.py shows that no program is ever made from data. Any other finding fails the check.
EXPECTED = {
    "code_execution": r"\bre\.compile\(|\)\.eval\(\)$",  # a regular expression; a network's evaluation mode
    "obfuscation_chains": r"[Rr]ecord\(",  # the end of the word: it looks for ord()
    "code_obfuscation_high_entropy": r"Preview: .{1,20} ",  # prose of tooltips, errors and docstrings
    "code_obfuscation_suspicious_ident": r"'_?[A-Z]+[0-9]?'",  # names of model families, such as SD3
    "dynamic_attribute_access": r"getattr\((self|self\.reader|config), (f.L_const_|part\b|name\b)",
}


def run(code: str, *arguments, folder: Path) -> tuple[int, str]:
    """Run a line of Python in the checks' environment: its exit code and all that it printed."""
    environ = {**clean_environment(), "NO_COLOR": "1", "COLUMNS": "160", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [str(tool_python("check", pins("checks"))), "-c", code, *map(str, arguments)],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    return done.returncode, done.stdout.strip()


def unpack_archive(target: Path) -> None:
    """What comfy-cli would send to the registry: tracked files less those of .comfyignore."""
    archive = target.parent / "archive.zip"
    code, words = run(_PACK, archive, folder=ROOT)
    if code or "Not in a git repository" in words:
        sys.exit(f"dev.py check needs git and a clone of the repository:\n{words}")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(target)


def complete(pack: Path) -> str:
    """The archive has what its pages show, and no program beside the pack's own."""
    pages = [pack / "README.md", *pack.glob("web/docs/*.md")]
    shown = [
        page.parent / name for page in pages for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8"))
    ]
    missing = [f"missing: {path.relative_to(pack)}" for path in shown if not path.is_file()]
    own = {
        pack / "__init__.py",
        *(
            path
            for room in ("hypernet", "policy", "training", "evaluation", "nodes")
            for path in pack.glob(f"{room}/**/*.py")
        ),
    }
    return "\n".join(missing + [f"not the pack's: {path.relative_to(pack)}" for path in set(pack.rglob("*.py")) - own])


def validate(pack: Path) -> str:
    """comfy-cli: the registry's metadata and its three forbidden patterns."""
    options = ("--skip-prompt", "--no-enable-telemetry")
    code, words = run(_COMMAND, "comfy", *options, "node", "validate", folder=pack)
    return words if code or "passed" not in words else ""


def lint(pack: Path) -> str:
    """comfy-test: its two levels that need no server."""
    code, words = run(_COMMAND, "comfy-test", "lint", "--strict", pack, folder=pack)
    return words if code else ""


def bind(pack: Path, tree: Path) -> str:
    """comfy-import-guard: every name and call of `comfy` against this host. It reads the host out of a git clone."""
    clone = pack.parent.parent / "cache" / "ComfyUI"
    shutil.copytree(
        tree,
        clone,
        ignore=lambda folder, names: [name for name in names if (Path(folder) / name).is_file() and name[-3:] != ".py"],
    )
    for words in ("init -q", "add -A -f", "-c user.name=check -c user.email=check@localhost commit -qm host"):
        subprocess.run(["git", *words.split()], cwd=clone, check=True, env=_plain_git(), capture_output=True)
    options = ("--comfy-dir", pack.parent.parent, "--cache-dir", clone.parent, "--target", "HEAD")
    code, words = run(
        _COMMAND, "comfy-import-guard", "check", *options, "--offline", "--strict", "--quiet", folder=pack
    )
    return words if code else ""


def _plain_git() -> dict[str, str]:
    """Git without the repository that a hook may run this in."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}


def unexpected(findings: list[dict]) -> list[dict]:
    """What nodesafe found beyond the words that it takes amiss."""
    return [
        found
        for found in findings
        if not re.search(EXPECTED.get(found["category"], r"(?!)"), f"{found['snippet']}\n{found['explanation']}", re.M)
    ]


def scan(pack: Path) -> str:
    """nodesafe: harmful code."""
    code, words = run(_COMMAND, "nodesafe", "scan", ".", "--format", "json", "--fail-on", "none", folder=pack)
    if code or not words.startswith("{"):
        return words or f"nodesafe ended with {code}"
    left = unexpected(json.loads(words)["findings"])
    return "\n".join(f"{found['file']}:{found['line']} {found['title']}: {found['snippet']}" for found in left)


def check(host: Host) -> int:
    """Run them all; 1 when one finds something."""
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "custom_nodes" / "unhype"
        pack.mkdir(parents=True)
        unpack_archive(pack)
        found = {
            "the archive itself": complete(pack),
            "comfy node validate": validate(pack),
            "comfy-test lint": lint(pack),
            f"comfy-import-guard, ComfyUI {host.name}": bind(pack, host.tree),
            "nodesafe scan": scan(pack),
        }
    for name, words in found.items():
        say(f"{name}: {'found something' if words else 'no finding'}")
        if words:
            say(words)
    return int(any(found.values()))

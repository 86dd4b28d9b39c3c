"""`python3 dev.py lint`: ruff and ty, as pinned, configured in pyproject.toml. Standard library only."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from .environment import ROOT, clean_environment, pins, python_with, tool_python

# What the checked files import from elsewhere. ComfyUI's own modules are not needed, see pyproject.toml.
TYPED = ("torch", "safetensors", "einops", "tqdm", "PIL")
_SOURCES = ("hypernet", "policy", "training", "evaluation", "nodes", "commands", "benchmarks")
_SOURCES += ("__init__.py", "dev.py", "pyproject.toml")

_NOT_COPIED = shutil.ignore_patterns("__pycache__", "results", "weights")


def _run(tool: str, *arguments: str, folder: Path = ROOT) -> int:
    python = tool_python("lint", [pin for pin in pins("dev") if pin.startswith(("ruff==", "ty=="))])
    return subprocess.run([str(python), "-m", tool, *arguments], cwd=folder, env=clean_environment()).returncode


def check_types() -> int:
    """Run ty on a copy of the sources in a folder named `unhype`.

    The pack is a package with relative imports, and the folder of a clone may have a name that can't be a package's.
    """
    python = python_with(TYPED)
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "unhype"
        pack.mkdir()
        for source in (ROOT / name for name in _SOURCES):
            if source.is_dir():
                shutil.copytree(source, pack / source.name, ignore=_NOT_COPIED)
            elif source.exists():
                shutil.copy(source, pack)
        return _run("ty", "check", "--output-format", "concise", "--python", str(python), folder=pack)


def lint(fix: bool) -> int:
    """Run all three; 1 when one of them finds something."""
    found = [
        _run("ruff", "check", *(["--fix"] if fix else []), "."),
        _run("ruff", "format", *([] if fix else ["--check"]), "."),
        check_types(),
    ]
    return int(any(found))

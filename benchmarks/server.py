"""A ComfyUI with this pack, started, asked over its HTTP API, and stopped again.

Standard library only, except that torch is asked whether there is a GPU. `python -m benchmarks.server`
is what `dev.py serve` runs.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import commandline
from .environment import ROOT, WINDOWS, cache_folder, clean_environment, digest, say
from .interface import interface_folder

# Folder in custom_nodes -> where it lies in this repository.
PACKS = {"unhype": ROOT, "unhype_lab": ROOT / "benchmarks" / "lab" / "loader"}

# A proxy set for the network must not be asked about this machine's own server.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(Exception):
    """ComfyUI did not start, went away or did not answer."""


class PromptError(Exception):
    """ComfyUI refused a prompt or failed while running it; `details` is what it said about that."""

    def __init__(self, message: str, details: dict | None = None):
        super().__init__(message)
        self.details = details or {}


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def host_tree() -> Path:
    """The ComfyUI that dev.py chose."""
    if tree := os.environ.get("COMFYUI_PATH"):
        return Path(tree)
    raise ServerError("COMFYUI_PATH is not set: run this through dev.py, or set it to a ComfyUI folder.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _remove(path: Path) -> None:
    """Remove a link, a Windows junction or a copy, never what a link points to."""
    try:
        path.unlink()
    except OSError:
        try:
            path.rmdir()
        except OSError:
            shutil.rmtree(path)


def place(pack: Path, link: Path) -> None:
    """Make a pack appear in custom_nodes: as a link where the system allows one, else as a copy."""
    if link.is_symlink() or link.exists():
        _remove(link)
    try:
        link.symlink_to(pack, target_is_directory=True)
        return
    except OSError:
        if not WINDOWS:
            raise
    try:  # Windows grants symlinks to developers only, but junctions to everyone
        import _winapi

        _winapi.CreateJunction(str(pack), str(link))
    except (ImportError, AttributeError, OSError):
        shutil.copytree(pack, link, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache"))


def prepare_base(base: Path, packs: dict[str, Path] = PACKS) -> Path:
    """Give ComfyUI a folder for models, pictures and settings, with the packs in its custom_nodes."""
    custom_nodes = base / "custom_nodes"
    for folder in (custom_nodes, base / "models", base / "input", base / "output"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, pack in packs.items():
        if (pack / "__init__.py").is_file():
            place(pack, custom_nodes / name)
    return base


def server_command(tree: Path, base: Path, port: int) -> list[str]:
    command = [sys.executable, str(tree / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--database-url", f"sqlite:///{(base / 'comfyui.db').as_posix()}"]
    command += ["--disable-api-nodes", "--disable-auto-launch"]
    return command if has_cuda() else [*command, "--cpu"]


def interface_arguments(version: str | None) -> list[str]:
    """What makes ComfyUI show this web interface; nothing for its own."""
    return ["--front-end-root", str(interface_folder(version))] if version else []


def server_environment() -> dict[str, str]:
    # No line of a log is held back, and no node asks a model hub for anything.
    return {**clean_environment(), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}


class ComfyServer:
    """`with ComfyServer(base) as server: history = server.run(prompt)`.

    `base` is the folder for models, output and so on; `tree` the ComfyUI, by default the one dev.py chose.
    `environment` is added to what the process gets from here.
    """

    def __init__(self, base, tree=None, packs=PACKS, arguments=(), start_timeout: float = 300, environment=None):
        self.base = Path(base)
        self.tree = Path(tree) if tree else host_tree()
        self.packs, self.arguments, self.start_timeout = packs, list(arguments), start_timeout
        self.environment = {**server_environment(), **(environment or {})}
        self.log = self.base / "server.log"
        self.process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ComfyServer":
        prepare_base(self.base, self.packs)
        self.port = free_port()
        command = [*server_command(self.tree, self.base, self.port), *self.arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.tree, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exception) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_tail(self, lines: int = 30) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _wait_until_up(self) -> None:
        end = time.monotonic() + self.start_timeout
        while time.monotonic() < end:
            self._check_alive("while it started")
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            time.sleep(0.25)
        raise ServerError(f"ComfyUI did not answer within {self.start_timeout:.0f} s. Its log ends:\n{self.log_tail()}")

    def _check_alive(self, when: str) -> None:
        if self.process.poll() is not None:
            raise ServerError(
                f"ComfyUI ended with code {self.process.returncode} {when}. "
                f"Its log, {self.log}, ends:\n{self.log_tail()}"
            )

    def get(self, path: str):
        with _direct.open(f"{self.url}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict | None = None):
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        )
        with _direct.open(request, timeout=60) as answer:
            data = answer.read()
        return json.loads(data) if data else None

    def object_info(self) -> dict:
        """Every node this server has, with its inputs."""
        return self.get("/object_info")

    def queue(self, prompt: dict) -> str:
        """Queue a prompt in API format and return its id. Raises PromptError if ComfyUI refuses any part of it."""
        try:
            answer = self.post("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as refusal:
            text = refusal.read().decode(errors="replace")
            try:
                details = json.loads(text)
            except ValueError:
                raise PromptError(f"ComfyUI answered {refusal.code}: {text[:500]}") from None
            raise PromptError(_refusal(details), details) from None
        if answer.get("node_errors"):  # it leaves out what it refuses, and runs the rest
            self.wait(answer["prompt_id"])
            raise PromptError(_refusal(answer), answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> dict:
        """Wait for a prompt's end and return its history entry; raise PromptError if it failed."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self._check_alive(f"while it ran prompt {prompt_id}")
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status", {}).get("completed") is not None:
                _raise_failure(entry["status"])
                return entry
            time.sleep(0.1)
        raise ServerError(f"Prompt {prompt_id} took longer than {timeout:.0f} s. The log ends:\n{self.log_tail()}")

    def run(self, prompt: dict, timeout: float = 600) -> dict:
        """Queue a prompt, wait for it and return its history entry."""
        return self.wait(self.queue(prompt), timeout)

    def interrupt(self) -> None:
        """Stop the prompt that is running; waiting for it then raises PromptError."""
        self.post("/interrupt")

    def pictures(self, entry: dict, node: str | None = None) -> list[Path]:
        """Where the pictures of a history entry lie, of all nodes or of one."""
        outputs = entry["outputs"]
        chosen = outputs.values() if node is None else [outputs.get(node, {})]
        images = [image for output in chosen for image in output.get("images", ())]
        return [self.base / image["type"] / image["subfolder"] / image["filename"] for image in images]


def _refusal(details: dict) -> str:
    error = details.get("error", {})
    lines = (
        [f"{error.get('message', error)} {error.get('details', '')}".strip()] if isinstance(error, dict) else [error]
    )
    for node, trouble in (details.get("node_errors") or {}).items():
        lines += [f"node {node} ({trouble['class_type']}): {e['message']}: {e['details']}" for e in trouble["errors"]]
    return "\n".join(lines)


def _raise_failure(status: dict) -> None:
    for kind, message in status.get("messages", ()):
        if kind == "execution_error":
            words = f"{message['exception_type']}: {message['exception_message']}".strip()
            raise PromptError(f"node {message['node_id']} ({message['node_type']}): {words}", message)
        if kind == "execution_interrupted":
            raise PromptError("interrupted", message)
    if status.get("status_str") != "success":
        raise PromptError(f"ComfyUI reports {status.get('status_str')}", status)


def serve_folder(host: str) -> Path:
    """A lasting folder for each ComfyUI version and each clone of this repository."""
    return cache_folder() / f"serve-{Path(host).name}-{digest(host, str(ROOT))}"


def main() -> int:
    options, others = commandline.parser("serve").parse_known_args()
    others += interface_arguments(options.interface)
    base = prepare_base(serve_folder(os.environ.get("UNHYPE_HOST", "comfyui")))
    say(f"ComfyUI at http://127.0.0.1:{options.port}, its models and pictures in {base}; Ctrl+C ends it.")
    # A shell starts what it runs in the background with interrupts ignored. Either signal ends ComfyUI as well.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    process = subprocess.Popen(
        [*server_command(host_tree(), base, options.port), *others], cwd=host_tree(), env=server_environment()
    )
    with contextlib.suppress(KeyboardInterrupt):
        return process.wait()
    process.terminate()
    process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

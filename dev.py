"""Run UnHype's demo, tests and benchmarks on a ComfyUI of its own.

    python3 dev.py demo                   train an erasure inside ComfyUI, show pictures before and after
    python3 dev.py test [pytest args]     the tests; --core, --host, --server, --project for some of them
    python3 dev.py serve                  ComfyUI with this pack, for a browser
    python3 dev.py bench speed            what erasure costs, in time
    python3 dev.py bench first            Erase Concept in a running ComfyUI, from Run to the picture
    python3 dev.py bench erasure          how well it erases, beside other methods
    python3 dev.py bench prompts          prompts as people write them, detected and drawn
    python3 dev.py bench attack           attacks on erased models, ours and rivals
    python3 dev.py bench bypass           every way a prompt reaches the sampler
    python3 dev.py bench detector         candidates for the detector, on texts alone
    python3 dev.py bench thousand         one to a thousand concepts, in parts
    python3 dev.py lab ...                train the small model that demo and tests use
    python3 dev.py lint                   ruff and the type checker, as pinned
    python3 dev.py readability            how easily README and help pages read
    python3 dev.py check                  the checks of the registry and of others, on what the registry gets
    python3 dev.py locales                write the English words of locales/ anew, from the nodes
    python3 dev.py screens                screenshots of the interface, in results/screens
    python3 dev.py thumbnails             draw the workflows' cards anew, from benchmarks/results

  --host 0.30.0 | 0.3.75 | 0.3.52 | FOLDER  which ComfyUI; or the variable COMFYUI_PATH; `test` also takes `all`
  -h after a command                      its options

Needs Python 3.10 or newer, nothing else. What it downloads comes from the package index that pip is set up
for and is kept in one folder outside this one (UNHYPE_CACHE chooses it), so only the first run is slow.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# All that the core tests import, so that a Python which has them needs no environment of ours.
CORE = ("torch", "numpy", "safetensors", "einops", "pytest")  # safetensors saves with numpy

if sys.version_info < (3, 10):  # noqa: UP036 - older ones should be told, not shown a traceback
    sys.exit(f"dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]}.")

from benchmarks import checks, environment, readability  # noqa: E402
from benchmarks.commandline import COMMANDS, FIRST_WORDS, GROUPS, TIERS, WITHOUT_HOST, overview, parser  # noqa: E402
from benchmarks.environment import Host, SetupError, say  # noqa: E402
from benchmarks.lint import lint  # noqa: E402


def is_test(word: str) -> bool:
    """Whether a word names a test, or a folder of them; pytest runs in this folder."""
    path = (ROOT / word.partition("::")[0]).resolve()
    return path.exists() and path.is_relative_to(ROOT / "tests")


def take_host(words: list[str]) -> tuple[str | None, list[str]]:
    """Split `--host VALUE` or `--host=VALUE` off; everything else belongs to the command.

    `--host` as the last word, before another option or before a test has no value and stays: it is a tier of the tests.
    """
    rest, value = [], None
    queue = deque(words)
    while queue:
        word = queue.popleft()
        if word == "--host" and queue and not queue[0].startswith("-") and not is_test(queue[0]):
            value = queue.popleft()
        elif word.startswith("--host="):
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


# The tests' models are so small that more threads only wait for each other: 40 times slower on busy cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def run_module(host: Host, *arguments: str) -> int:
    """Run a module of this repository, or pytest, in the environment of a host."""
    environ = {**environment.clean_environment(), "COMFYUI_PATH": str(host.tree), "UNHYPE_HOST": host.name}
    environ["UNHYPE_CACHE"] = str(environment.cache_folder())
    if arguments[0] == "pytest":
        environ = {**ONE_THREAD, **environ}
    return run([str(host.python), "-m", *arguments], environ)


def run_core(arguments: list[str]) -> int:
    """Run pytest without any ComfyUI, and with no way to one that is installed."""
    environ = {**ONE_THREAD, **environment.clean_environment()}
    environ.pop("COMFYUI_PATH", None)
    return run([str(environment.python_with(CORE)), "-m", *arguments], environ)


def take_tiers(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The tiers that are asked for, and pytest's arguments."""
    flags = [f"--{tier}" for tier in TIERS]
    tiers = [flag.removeprefix("--") for flag in flags if flag in arguments]
    return tiers, [word for word in arguments if word not in flags]


def folders_of(tiers: list[str]) -> list[str]:
    """Where the tests of these tiers are, if there are any; without tiers, all tests."""
    if not tiers:
        return ["tests"]
    return [f"tests/{tier}" for tier in tiers if any((ROOT / "tests" / tier).rglob("test_*.py"))]


def test(hosts: list[str], arguments: list[str]) -> int:
    """Run pytest once for each host; once without any if only the core tests are asked for."""
    tiers, arguments = take_tiers(arguments)
    named = any(is_test(word) for word in arguments)
    folders = [] if named else folders_of(tiers)
    if not named and not folders:
        say(f"No tests yet in {', '.join(tiers)}.")
        return 0
    pytest = ["pytest", "-c", "tests/pytest.ini", "--rootdir", "tests", *arguments, *folders]
    if tiers == ["core"]:
        return run_core(pytest)
    return on_hosts(hosts, lambda host: run_module(host, *pytest))


def on_hosts(names: list[str], work: Callable[[Host], int]) -> int:
    """Do some work on each of these ComfyUIs; the last one's trouble is the result, if any."""
    result = 0
    for name in names:
        host = environment.prepare(name)
        say(f"ComfyUI {host.name}")
        result = work(host) or result
    return result


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """A command's name in COMMANDS, of one word or two, and what follows it."""
    first, *rest = words
    if first in COMMANDS:
        return first, rest
    if first not in GROUPS:
        raise SetupError(f"There is no command {first}: it is one of {', '.join(FIRST_WORDS)}.")
    if not rest or f"{first} {rest[0]}" not in COMMANDS:
        raise SetupError(f"{first} takes one of: {', '.join(GROUPS[first])}.")
    return f"{first} {rest[0]}", rest[1:]


def main(words: list[str]) -> int:
    host_choice, words = take_host(words)
    if not words and host_choice:
        raise SetupError(
            f"{host_choice} after --host chooses a ComfyUI, and no command is left. The tests on ComfyUI's own classes "
            "are `dev.py test --host`."
        )
    if not words or words[0] in ("-h", "--help"):
        say(__doc__.strip())
        return 0
    if words[0] in GROUPS and words[1:2] in (["-h"], ["--help"]):
        say(overview(words[0]))
        return 0
    name, arguments = find_command(words)
    command = COMMANDS[name]
    if "--host" in arguments and name != "test":
        raise SetupError("--host needs a value.")
    # Ends here for -h and for a mistake, before anything is downloaded.
    options, others = parser(name).parse_known_args(arguments)
    if others and not command.others:
        parser(name).error(f"unrecognized arguments: {' '.join(others)}")
    if name in WITHOUT_HOST:
        if host_choice:
            raise SetupError(f"{name} runs without a ComfyUI: leave --host out.")
        return lint(options.fix) if name == "lint" else readability.main()
    choice = host_choice or os.environ.get("COMFYUI_PATH") or "0.30.0"
    if choice == "all" and name != "test":
        raise SetupError("--host all is for test only; name one ComfyUI.")
    hosts = list(environment.HOSTS) if choice == "all" else [choice]
    if name == "test":
        return test(hosts, arguments)
    if name == "check":
        return on_hosts(hosts, checks.check)
    return on_hosts(hosts, lambda host: run_module(host, *command.runs, *arguments))


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

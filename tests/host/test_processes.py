"""Training from lists in a shell: in one process, and in two of torchrun's, with and without an interrupt."""

import os
import subprocess
import sys

import pytest
from tiny import TinyClip, tiny_model

from benchmarks.environment import ROOT
from benchmarks.server import host_tree
from unhype.commands import train as command
from unhype.hypernet.files import load, same_eraser, tensors_of
from unhype.hypernet.merging import merge

SCRIPT = ROOT / "tests" / "training_processes.py"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone")


def train(folder, lists, *options, processes=1, stop=None):
    """What the command prints. folder: where everything lies; stop: see the script."""
    paths = []
    for number, lines in enumerate(lists):
        paths.append(folder / f"list_{number}.txt")
        paths[-1].write_text("\n".join(lines), "utf-8")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
    if stop:
        environ["UNHYPE_STOP"] = stop
    words = [*(TORCHRUN if processes > 1 else ()), str(SCRIPT), str(folder), "--name", "ours", "--steps", "3", *options]
    done = subprocess.run(
        [sys.executable, *words, *map(str, paths)], env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert bool(done.returncode) == bool(stop), output
    return output


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """The erasers of two lists, each trained for itself."""
    folders = [tmp_path_factory.mktemp(name) for name in ("cat", "dog")]
    for folder, line in zip(folders, ("cat -> tree", "dog -> house"), strict=True):
        train(folder, [[line]])
        assert names(folder / "training_folder") == ["ours.safetensors"], "one part is written as Train Erasure does"
    return [load(folder / "training_folder" / "ours.safetensors") for folder in folders]


def test_two_processes_make_the_merge_of_two_single_runs_bit_for_bit(singles, tmp_path):
    output = train(tmp_path, [["cat -> tree", "# a comment"], ["dog -> house"]], "--part", "1", processes=2)
    folder = tmp_path / "training_folder"
    assert names(folder) == ["ours.safetensors", "parts/ours 1.safetensors", "parts/ours 2.safetensors"]
    merged = load(folder / "ours.safetensors")
    expected = tensors_of(merge(singles, "ours"))
    assert {name: tensor.tolist() for name, tensor in tensors_of(merged).items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    assert merged.record.concepts == (("cat", "tree"), ("dog", "house"))
    assert "2 concepts in 2 parts: " in output


def test_an_interrupted_process_loses_nothing(singles, tmp_path):
    lists = [["cat -> tree", "dog -> house"]]
    output = train(tmp_path, lists, "--part", "1", processes=2, stop="1 2")
    assert "stopped at step 2" in output
    (kept,) = [path for path in (tmp_path / "checkpoint_folder").glob("*") if path.is_file()][-1:]
    folder = tmp_path / "training_folder"
    assert "ours.safetensors" not in names(folder)
    output = train(tmp_path, lists, "--part", "1")
    assert "going on from the checkpoint at step 2." in output
    assert not kept.exists()
    assert same_eraser(load(folder / "ours.safetensors"), merge(singles, "ours"))


def test_the_script_finds_comfyui_on_the_path(tmp_path):
    (tmp_path / "list.txt").write_text("cat -> tree", "utf-8")
    script = ROOT / "commands" / "train.py"
    words = [str(tmp_path / "list.txt"), "--name", "ours", "--checkpoint", "nowhere.safetensors"]
    environ = {**os.environ, "PYTHONPATH": str(host_tree())}
    done = subprocess.run([sys.executable, script, *words], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("'nowhere.safetensors', neither here nor in ComfyUI's models/checkpoints.\n")


@pytest.mark.parametrize(
    ("lines", "words"),
    [("cat\ncat", "The concept 'cat' is listed twice"), ("cat", r"Give --checkpoint, or --model and --clip\.")],
)
def test_mistakes_are_answered_in_words(lines, words, tmp_path, monkeypatch):
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)
    (tmp_path / "list.txt").write_text(lines, "utf-8")
    load = {} if lines == "cat" else {"load": lambda _: (tiny_model(), TinyClip())}
    with pytest.raises(SystemExit, match=words):
        command.main([str(tmp_path / "list.txt"), "--name", "ours"], **load)

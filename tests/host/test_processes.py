"""Training from lists in a shell: in one process, and in two of torchrun's, with and without an interrupt."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TinyClip, tiny_model

from benchmarks.environment import ROOT
from benchmarks.server import host_tree
from unhype.commands import from_lists
from unhype.commands import train as command
from unhype.hypernet.files import load, same_eraser, tensors_of
from unhype.hypernet.merging import merge
from unhype.training.batch_split import Split
from unhype.training.loop import TrainingError
from unhype.training.plan import Request
from unhype.training.processes import _train_together
from unhype.training.settings import Settings

SCRIPT = ROOT / "tests" / "training_processes.py"
DRAWS = ("--objective", "direct")
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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The eraser of a training that draws pictures, in one process."""
    folder = tmp_path_factory.mktemp("drawn")
    train(folder, [["cat -> tree"]], *DRAWS)
    return load(folder / "training_folder" / "ours.safetensors")


def is_close(found, expected):
    """Whether two erasers are equal to the rounding of steps whose sums were taken in another order."""
    for name, tensor in tensors_of(expected).items():
        torch.testing.assert_close(tensors_of(found)[name], tensor, rtol=2e-3, atol=2e-3, msg=name)
    losses = [eraser.record.training.losses for eraser in (found, expected)]
    return losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_processes_split_the_batch_of_one_part(drawn, tmp_path):
    output = train(tmp_path, [["cat -> tree"]], *DRAWS, processes=2)
    assert names(tmp_path / "training_folder") == ["ours.safetensors"]
    assert output.count("1 concepts: ") == 1
    assert is_close(load(tmp_path / "training_folder" / "ours.safetensors"), drawn)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupted_process_of_a_split_batch_loses_nothing(drawn, tmp_path, rank):
    output = train(tmp_path, [["cat -> tree"]], *DRAWS, processes=2, stop=f"{rank} 2")
    assert "stopped at step 2" in output
    assert not names(tmp_path / "training_folder")
    output = train(tmp_path, [["cat -> tree"]], *DRAWS, processes=2)
    assert output.count("going on from the checkpoint at step 2.") == 2
    assert is_close(load(tmp_path / "training_folder" / "ours.safetensors"), drawn)


def test_more_processes_than_rows_are_refused():
    many = Request("cat", "", Path(), "", Path(), Settings(batch=3))
    with pytest.raises(TrainingError, match=r"^4 processes can't share a batch of 3: start at most 3\.$"):
        _train_together(None, None, [many], None, Split(0, 4))


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


def test_an_unknown_objective_is_answered_with_those_there_are(tmp_path):
    (tmp_path / "list.txt").write_text("cat", "utf-8")
    options = command._parser().parse_args([str(tmp_path / "list.txt"), "--name", "ours", "--objective", "fast"])
    with pytest.raises(SystemExit, match=r"^--objective takes one of attention, direct, paper, released, not fast\.$"):
        from_lists.run(options, None, None)

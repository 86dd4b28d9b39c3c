"""Hostile files: whatever is wrong with one, it is refused by name and in little memory.

A run of the suite damages thirty files; `python3 dev.py test tests/core/test_fuzz.py --files 5000 --seed 7`
damages as many as you like.
"""

import json
import os
import random
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from allocated import Allocated
from core_parts import LAYERS, small_eraser, small_state

from unhype.hypernet.files import check_fits, load, save
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.targets import UnsupportedModelError, family_by_key
from unhype.training.checkpoint import load_checkpoint, save_checkpoint

STRANGE = [None, True, -1, 0, 0.5, 2**31, 2**63, 10**400, "", "x", "\u202e\x00\U0001f408", [], [None], {}, {"a": []}]
TYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "F4", "X9", "", None, 7]


def parts(data):
    """The header and the tensors' bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensors_of(header):
    return [name for name in header if name != "__metadata__"]


def pick(dice, value, depth=0):
    """A random place in a JSON value: its holder and the key or index there."""
    holder, key = None, None
    while isinstance(value, (dict, list)) and value and (holder is None or dice.random() < 0.7):
        holder = value
        key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        value = holder[key]
    return holder, key


def lie_about_a_tensor(dice, header, body):
    entry = header[dice.choice(tensors_of(header))]
    field = dice.choice(["shape", "dtype", "data_offsets"])
    if field == "dtype":
        entry["dtype"] = dice.choice(TYPES)
    elif dice.random() < 0.3:
        entry[field] = dice.choice(STRANGE)
    else:
        values = entry[field]
        values[dice.randrange(len(values))] = dice.choice([-1, 0, 1, 2, 7, 2**31, 2**53, 2**64 - 1, len(body)])
    return header, body


def swap_shape(dice, header, body):
    """Another shape of the same size."""
    entry = header[dice.choice(tensors_of(header))]
    entry["shape"] = dice.choice([entry["shape"][::-1], [1, *entry["shape"]], [*entry["shape"], 1]])
    return header, body


def lose_or_rename_a_tensor(dice, header, body):
    name = dice.choice(tensors_of(header))
    entry = header.pop(name)
    if dice.random() < 0.7:
        header[dice.choice([name.upper(), name + "x", "", "../../" + name, "a" * 2_000_000])] = entry
    return header, body


def claim_many_tensors(dice, header, body):
    for number in range(dice.choice([1, 1000, 5000])):
        header[f"more.{number}"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    return header, body


def change_the_description(dice, header, body):
    key = dice.choice(["unhype.config", "unhype.record"])
    values = json.loads(header["__metadata__"][key])
    for _ in range(dice.choice([1, 1, 3])):
        holder, at = pick(dice, values)
        if dice.random() < 0.2:
            del holder[at]
        else:
            holder[at] = dice.choice(STRANGE)
    header["__metadata__"][key] = json.dumps(values)
    return header, body


def claim_a_huge_network(dice, header, body):
    config = json.loads(header["__metadata__"]["unhype.config"])
    config |= {"rank": dice.choice([2, 256]), "hidden": dice.choice([16, 8192]), "embedding_width": 65_536}
    config["layers"] = [
        {"name": f"l{n}", "inputs": 262_144, "outputs": 262_144 - n} for n in range(dice.choice([1, 300]))
    ]
    header["__metadata__"]["unhype.config"] = json.dumps(config)
    return header, body


def megabytes_of_metadata(dice, header, body):
    much = dice.choice(["x" * 9_000_000, "[" * 300_000, "[" + "[]," * 300_000 + "[]]", '{"a":' * 50_000, "9" * 300_000])
    key = dice.choice(["unhype.config", "unhype.record", "unhype.format", "workflow", "y" * 1_000_000])
    header["__metadata__"][key] = much
    if dice.random() < 0.5:
        record = json.loads(header["__metadata__"]["unhype.record"]) if key != "unhype.record" else {}
        field = dice.choice(["family", "concepts", "text_encoder", "base"])
        header["__metadata__"]["unhype.record"] = json.dumps({**record, field: much})
    return header, body


def strange_metadata(dice, header, body):
    holder = dice.choice([header, header["__metadata__"]])
    key = "__metadata__" if holder is header else dice.choice(list(holder))
    holder[key] = dice.choice([*STRANGE, "{", "null"])
    return header, body


def repeat_a_key(dice, header, body):
    text = json.dumps(header)
    name = json.dumps(dice.choice(list(header)))
    return (text[:-1] + f", {name}: {json.dumps(dice.choice(STRANGE))}}}").encode(), body


def lie_about_the_length(dice, header, body):
    text = json.dumps(header).encode()
    length = dice.choice([0, 1, len(text) - 1, len(text) + 1, 10**8 - 1, 2**31, 2**63, 2**64 - 1])
    return None, length.to_bytes(8, "little") + text + body


def cut_or_lengthen(dice, header, body):
    data = joined(header, body)
    return None, data[: dice.randrange(len(data))] if dice.random() < 0.7 else data + dice.randbytes(
        dice.randrange(1, 99)
    )


def change_bytes(dice, header, body):
    data = bytearray(joined(header, body))
    size = len(data) - len(body) if dice.random() < 0.8 else len(data)
    for _ in range(dice.choice([1, 1, 4, 50])):
        at, kind = dice.randrange(min(size, len(data))), dice.random()
        if kind < 0.7:
            data[at] = dice.choice([dice.randrange(256), *b'0123456789"{}[],:-. '])
        elif kind < 0.85:
            del data[at : at + dice.randrange(1, 20)]
        else:
            data[at:at] = dice.randbytes(dice.randrange(1, 20))
    return None, bytes(data)


def spoil_the_numbers(dice, header, body):
    values = torch.frombuffer(bytearray(body), dtype=torch.float16)
    values[dice.randrange(len(values))] = dice.choice([float("nan"), float("inf"), -float("inf")])
    return header, bytes(values.view(torch.uint8).tolist())


DAMAGES = (
    lie_about_a_tensor,
    swap_shape,
    lose_or_rename_a_tensor,
    claim_many_tensors,
    change_the_description,
    change_the_description,
    claim_a_huge_network,
    megabytes_of_metadata,
    strange_metadata,
    repeat_a_key,
    lie_about_the_length,
    cut_or_lengthen,
    change_bytes,
    spoil_the_numbers,
)


def damaged(data, dice):
    """One to three damages of a file, the last of which may leave no header to damage further; (their names, bytes)."""
    header, body = parts(data)
    names = []
    for _ in range(dice.choice([1, 1, 2, 3])):
        damage = dice.choice(DAMAGES)
        names.append(damage.__name__)
        try:
            header, body = damage(dice, header, body)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            names.pop()  # an earlier damage took what this one works on
        if not isinstance(header, dict):
            break
    return names, body if header is None else joined(header, body)


def cut_or_change(data, dice):
    """A file of any kind with bytes changed, cut off or added."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 4, 50])):
        data[dice.randrange(len(data))] = dice.randrange(256)
    kind = dice.random()
    if kind < 0.4:
        return bytes(data[: dice.randrange(len(data))])
    return bytes(data) if kind < 0.9 else bytes(data) + dice.randbytes(dice.randrange(1, 99))


def outcomes(path, count, seed, damage, attempt):
    """How often each outcome came; fails with the file that gave something else."""
    data, found = path.read_bytes(), Counter()
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        path.write_bytes(damage(data, dice))
        try:
            found[attempt(path)] += 1
        except Exception as error:
            pytest.fail(f"file {number} of seed {seed}: {type(error).__name__}: {str(error)[:300]}")
    return found


@pytest.fixture
def peak():
    """Fails when the process needed half a gigabyte more than ever before."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**29


def test_every_damaged_hypernet_is_refused_by_name(request, capsys, tmp_path, peak):
    count, seed = request.config.getoption("files"), request.config.getoption("seed")
    path = tmp_path / "hostile.safetensors"
    save(small_eraser(rank=1), path)

    def attempt(path):
        try:
            check_fits(load(path), family_by_key("sd15"), LAYERS)
        except (HypernetFileError, UnsupportedModelError) as error:
            assert len(str(error)) < 1000
            return type(error).__name__
        return "harmless"

    found = outcomes(path, count, seed, lambda data, dice: damaged(data, dice)[1], attempt)
    with capsys.disabled():
        print(f"\n{count} damaged files with seed {seed}: {dict(found)}")
    assert found["HypernetFileError"] > count / 2
    assert list(tmp_path.iterdir()) == [path]


def test_every_damaged_checkpoint_is_taken_or_left(request, tmp_path, peak):
    count, seed = request.config.getoption("files"), request.config.getoption("seed")
    path, fresh = tmp_path / "hostile.pt", small_state()
    save_checkpoint(small_state(), path, "recipe")
    found = outcomes(path, count, seed, cut_or_change, lambda path: load_checkpoint(fresh, path, "recipe"))
    assert found[False] > count / 4
    assert set(found) <= {False, True}


@pytest.mark.parametrize("kind", ["hypernet", "published"])
def test_a_claim_of_a_huge_network_costs_no_more_than_the_file(kind, tmp_path):
    path = tmp_path / "huge.safetensors"
    save(small_eraser(rank=1), path)
    header, body = parts(path.read_bytes())
    layers = [{"name": f"l{n}", "inputs": 262_144, "outputs": 262_144} for n in range(1000)]
    config = {"embedding_width": 65_536, "layers": layers, "rank": 256, "hidden": 8192, "trajectory": 300}
    config["octaves"] = 4
    config |= {"basis": 1024} if kind == "hypernet" else {"kind": "published"}
    header["__metadata__"]["unhype.config"] = json.dumps(config)
    path.write_bytes(joined(header, body))
    with Allocated() as allocated, pytest.raises(HypernetFileError, match="do not match its description"):
        load(path)
    assert allocated.bytes <= len(body)


def test_a_whole_file_costs_a_few_times_its_size(tmp_path):
    """So that the test above sees what loading allocates: half precision becomes fp32, once in the meta network too."""
    path = tmp_path / "whole.safetensors"
    save(small_eraser(rank=1), path)
    _, body = parts(path.read_bytes())
    with Allocated() as allocated:
        load(path)
    assert len(body) < allocated.bytes < 20 * len(body)


# Saving


@contextmanager
def no_room(size=5_000):
    """No file may grow beyond that size, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder):
    """A folder that this process may not write to, root or not."""
    if not hasattr(os, "geteuid"):
        pytest.skip("folders have other rights here")
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.fixture
def folder():
    """A folder whose parents everyone may enter."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
@pytest.mark.parametrize("kind", ["hypernet", "checkpoint"])
def test_an_old_file_stays_whole_when_a_new_one_cannot_be_written(folder, kind, trouble):
    path = folder / "kept.safetensors"

    def write(seed):
        if kind == "hypernet":
            save(small_eraser(seed=seed), path)
        else:
            save_checkpoint(small_state(seed), path, "recipe" * 2000)

    write(0)
    before = path.read_bytes()
    with no_room() if trouble == "full" else read_only(folder), pytest.raises(OSError, match=r"kept\.safetensors"):
        write(1)
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]

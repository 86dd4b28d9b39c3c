"""Hypernet files: what is written comes back, and whatever else is offered is refused in plain words."""

import json
import math
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, POOLED, embedding, prompt, seeded, tiny_eraser, tiny_model

from unhype.hypernet import files
from unhype.hypernet.detector import Detector
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.factors import delta_norm
from unhype.hypernet.files import load, save, written_aside
from unhype.hypernet.lora import to_lora
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError, Record
from unhype.hypernet.targets import UnsupportedModelError

CONCEPTS = (("cat", "tree"), ("Caf\u00e9 \u732b", ""))


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def trained(models):
    made = tiny_eraser(models["sd15"], dead_zone=0.25, concepts=CONCEPTS)
    record = Record("sd15", CONCEPTS, 0.25, made.record.base, {"steps": 3, "losses": [1.5, 0.5]})
    return Eraser(made.network, record, "mine")


@pytest.fixture
def path(eraser, tmp_path):
    save(eraser, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def metadata_of(path):
    with safe_open(str(path), framework="pt") as file:
        return file.metadata()


def rewrite(path, config=None, record=None, metadata=None, tensors=None):
    """Change parts of a hypernet file; each argument is a function that edits its part in place."""
    words, weights = metadata_of(path), load_file(path)
    for key, edit in (("unhype.config", config), ("unhype.record", record)):
        if edit is not None:
            values = json.loads(words[key])
            edit(values)
            words[key] = json.dumps(values)
    for part, edit in ((words, metadata), (weights, tensors)):
        if edit is not None:
            edit(part)
    save_file(weights, str(path), metadata=words)


def refusal(path):
    with pytest.raises(HypernetFileError) as error:
        load(path)
    return str(error.value)


# Round trip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_hypernet_comes_back_bit_for_bit(models, family, tmp_path):
    before = tiny_eraser(models[family], dead_zone=0.125, concepts=CONCEPTS)
    save(before, tmp_path / "eraser.safetensors")
    after = load(tmp_path / "eraser.safetensors")
    assert after.record == before.record
    assert after.network.config == before.network.config
    weights = after.network.state_dict()
    assert list(weights) == list(before.network.state_dict())
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.network.state_dict().items())
    c = embedding(prompt(1)).unsqueeze(0)
    for one, other in zip(before.network(c, 200), after.network(c, 200), strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)


def test_weights_are_stored_in_half_precision(models, tmp_path):
    before = tiny_eraser(models["sd15"])
    with torch.no_grad():
        before.network.trunk.weight.add_(1e-5)
    save(before, tmp_path / "eraser.safetensors")
    assert {weight.dtype for weight in load_file(tmp_path / "eraser.safetensors").values()} == {torch.float16}
    own, after = (one.network.trunk.weight for one in (before, load(tmp_path / "eraser.safetensors")))
    assert torch.equal(after, own.half().float())
    assert not torch.equal(after, own)


def test_a_loaded_hypernet_is_ready_for_use(path):
    loaded = load(path)
    assert loaded.name == "mine"
    assert not loaded.network.training
    for tensor in (*loaded.network.parameters(), *loaded.network.buffers()):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad


def test_a_path_may_be_text(path):
    assert load(str(path)).name == "mine"


def test_the_record_says_what_is_erased_in_words(path):
    assert load(path).record.summary() == "cat -> tree\nCaf\u00e9 \u732b -> "


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("sd15", "stable-diffusion-v1-5"), ("sd20", "stable-diffusion-v2-1"), ("sdxl", "stable-diffusion-xl-v1-base")],
)
def test_the_model_library_finds_its_keys(models, family, architecture, tmp_path):
    save(tiny_eraser(models[family], concepts=CONCEPTS), tmp_path / "eraser.safetensors")
    found = metadata_of(tmp_path / "eraser.safetensors")
    assert found["modelspec.architecture"] == f"{architecture}/unhype"
    assert found["modelspec.title"] == "UnHype: cat, Caf\u00e9 \u732b"
    assert "Erases: cat -> tree" in found["modelspec.description"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["modelspec.date"])
    assert found["modelspec.sai_model_spec"]
    assert found["format"] == "pt"


def test_our_own_keys_are_readable_json(path):
    found = metadata_of(path)
    assert found["unhype.format"] == "2"
    assert json.loads(found["unhype.config"])["embedding_width"] == POOLED
    assert json.loads(found["unhype.record"])["training"]["losses"] == [1.5, 0.5]


def test_the_workflow_rides_along(eraser, tmp_path):
    save(eraser, tmp_path / "with.safetensors", {"workflow": "{}", "prompt": '{"1": {}}'})
    found = metadata_of(tmp_path / "with.safetensors")
    assert (found["workflow"], found["prompt"]) == ("{}", '{"1": {}}')
    assert load(tmp_path / "with.safetensors").record == eraser.record


def test_a_hundred_concepts_make_no_endless_title(models, tmp_path):
    concepts = tuple((f"a rather long name of concept {number}", "tree") for number in range(500))
    save(tiny_eraser(models["sd15"], concepts=concepts), tmp_path / "many.safetensors")
    assert len(metadata_of(tmp_path / "many.safetensors")["modelspec.title"]) <= 200
    assert load(tmp_path / "many.safetensors").record.concepts == concepts


# Files that are no hypernet


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_to_its_header(path):
    path.write_bytes(path.read_bytes()[:500])


def empty(path):
    path.write_bytes(b"")


def fill_with_text(path):
    path.write_text("<html>404 Not Found</html>" * 40)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"more")


def claim_a_huge_header(path):
    path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:])


def make_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [cut, cut_to_its_header, empty, fill_with_text, lengthen, claim_a_huge_header, make_a_folder]
)
def test_a_damaged_file_is_refused(path, damage):
    damage(path)
    message = refusal(path)
    assert "'mine.safetensors' is damaged, cut short or no safetensors file" in message
    assert message.endswith("Download or train it again.")


def test_a_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "gone.safetensors") == f"There is no file '{tmp_path / 'gone.safetensors'}'."


def test_a_lora_is_told_from_a_hypernet(eraser, tmp_path):
    save_file(to_lora(eraser, embedding(prompt(1)), "a cat"), tmp_path / "lora.safetensors", {"ss_tag": "x"})
    message = refusal(tmp_path / "lora.safetensors")
    assert "'lora.safetensors' is a safetensors file but no UnHype hypernet (a LoRA or a checkpoint perhaps)" in message
    assert message.endswith("Pick a file that Train Erasure wrote.")


def test_a_file_without_metadata_is_refused_alike(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "bare.safetensors")
    assert "but no UnHype hypernet" in refusal(tmp_path / "bare.safetensors")


def test_a_newer_format_asks_for_an_update(path):
    rewrite(path, metadata=lambda words: words.update({"unhype.format": "3"}))
    message = refusal(path)
    assert "has UnHype format 3, this version reads 2" in message
    assert message.endswith("Update the UnHype node pack.")


def test_a_family_of_a_newer_version_is_named(path):
    rewrite(path, record=lambda record: record.update(family="sd99"))
    with pytest.raises(UnsupportedModelError, match="Model family 'sd99' is not one that this version"):
        load(path)


# Files that lie


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (10**9, "rank is 1000000000"),
        (257, "rank is 257"),
        (0, "rank is 0"),
        (-3, "rank is -3"),
        (2.0, "rank is 2.0"),
        ("2", "rank is '2'"),
        (None, "rank is None"),
        (True, "rank is True"),
    ],
)
def test_an_impossible_rank_is_refused_before_anything_is_built(path, value, shown):
    rewrite(path, config=lambda config: config.update(rank=value))
    assert f"The description inside 'mine.safetensors' is damaged ({shown})" in refusal(path)


@pytest.mark.parametrize("name", ["basis", "hidden", "trajectory", "octaves", "embedding_width"])
@pytest.mark.parametrize("value", [0, -1, 10**12, "x"], ids=str)
def test_every_size_has_its_limits(path, name, value):
    rewrite(path, config=lambda config: config.update({name: value}))
    assert f"is damaged ({name} is {value!r})" in refusal(path)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda config: config.update(layers=[]), "0 layers"),
        (lambda config: config.update(layers=config["layers"] * 400), "5600 layers"),
        (lambda config: config["layers"][0].update(inputs=-1), "inputs"),
        (lambda config: config["layers"][0].update(outputs=10**9), "outputs"),
        (lambda config: config["layers"][0].pop("name"), "'name'"),
        (lambda config: config.pop("layers"), "'layers'"),
        (lambda config: config.pop("embedding_width"), "embedding_width"),
        (lambda config: config.update(surprise=1), "surprise"),
        (lambda config: config.update(alpha=1.0), "alpha"),
        (lambda config: config["layers"][0].update(name=["a"]), "name"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(path, change, shown):
    rewrite(path, config=change)
    message = refusal(path)
    assert message.startswith("The description inside 'mine.safetensors' is damaged (")
    assert shown in message


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda record: record.update(dead_zone=-0.1), "dead zone -0.1"),
        (lambda record: record.update(dead_zone=math.inf), "dead zone inf"),
        (lambda record: record.update(dead_zone=math.nan), "dead zone nan"),
        (lambda record: record.update(dead_zone=10**400), "too large"),
        (lambda record: record.update(dead_zone="wide"), "wide"),
        (lambda record: record.pop("family"), "'family'"),
        (lambda record: record.pop("concepts"), "'concepts'"),
        (lambda record: record.update(concepts=[["cat"]]), "unpack"),
        (lambda record: record.update(concepts=7), "iterable"),
        (lambda record: record.update(base="SD"), "dictionary"),
        (lambda record: record.update(training=None), "iterable"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(path, change, shown):
    rewrite(path, record=change)
    message = refusal(path)
    assert message.startswith("The description inside 'mine.safetensors' is damaged (")
    assert shown in message


@pytest.mark.parametrize("key", ["unhype.config", "unhype.record"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "[" * 100_000], ids=lambda text: text[:8])
def test_a_description_that_is_no_description_is_refused(path, key, text):
    rewrite(path, metadata=lambda words: words.update({key: text}))
    assert refusal(path).startswith("The description inside 'mine.safetensors' is damaged (")


def test_a_missing_record_is_refused(path):
    rewrite(path, metadata=lambda words: words.pop("unhype.record"))
    assert "is damaged ('unhype.record')" in refusal(path)


def test_a_missing_tensor_is_named(path):
    rewrite(path, tensors=lambda weights: weights.pop("trunk.bias"))
    message = refusal(path)
    assert "do not match its description: 1 tensors are missing or unknown, 'trunk.bias' among them" in message


def test_an_unknown_tensor_is_named(path):
    rewrite(path, tensors=lambda weights: weights.update(extra=torch.zeros(1)))
    assert "'extra' among them" in refusal(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32], ids=str)
def test_a_tensor_of_another_type_is_named(path, dtype):
    rewrite(path, tensors=lambda weights: weights.update({"trunk.bias": weights["trunk.bias"].to(dtype)}))
    expected = r"Tensor 'trunk\.bias' in 'mine\.safetensors' is \w+ \(16,\), expected F16 \(16,\)"
    assert re.search(expected, refusal(path))


def test_a_tensor_of_another_shape_is_named(path):
    rewrite(path, tensors=lambda weights: weights.update({"trunk.bias": torch.zeros(15).half()}))
    assert "Tensor 'trunk.bias' in 'mine.safetensors' is F16 (15,), expected F16 (16,)" in refusal(path)


def test_another_rank_than_the_weights_have_is_refused(path):
    rewrite(path, config=lambda config: config.update(rank=3))
    assert "Download or train it again." in refusal(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(path, value):
    def spoil(weights):
        weights["left.weight"][3, 1] = value

    rewrite(path, tensors=spoil)
    assert "Tensor 'left.weight' in 'mine.safetensors' holds values that are not numbers" in refusal(path)


# The switch of the dead zone


@pytest.fixture
def switched(eraser):
    """A hypernet with a switch of two concepts."""
    switch = Detector(torch.randn(2, POOLED, generator=seeded(7)), torch.tensor([-0.5, 0.25])).half().float()
    return replace(eraser, switch=switch)


def test_a_switch_comes_back_bit_for_bit(switched, tmp_path):
    save(switched, tmp_path / "mine.safetensors")
    loaded = load(tmp_path / "mine.safetensors")
    assert torch.equal(loaded.switch.weight, switched.switch.weight)
    assert torch.equal(loaded.switch.bias, switched.switch.bias)
    c = torch.randn(5, POOLED, generator=seeded(8))
    assert torch.equal(loaded.presence(c, loaded.network(c, 300)), switched.switch(c))


def test_without_a_switch_the_size_of_the_delta_counts(path):
    loaded = load(path)
    assert loaded.switch is None
    c = torch.randn(5, POOLED, generator=seeded(8))
    layers = loaded.network(c, 300)
    assert torch.equal(loaded.presence(c, layers), delta_norm(layers))


@pytest.mark.parametrize("kept", [0, 1])
def test_half_a_switch_is_refused(switched, tmp_path, kept):
    path = tmp_path / "mine.safetensors"
    save(switched, path)
    gone = ("switch.bias", "switch.weight")[kept]
    rewrite(path, tensors=lambda weights: weights.pop(gone))
    assert "do not match its description: 1 tensors are missing or unknown" in refusal(path)


def test_a_switch_for_another_number_of_concepts_is_refused(switched, tmp_path):
    path = tmp_path / "mine.safetensors"
    save(switched, path)
    rewrite(path, record=lambda record: record["concepts"].append(["dog", ""]))
    assert "'switch." in refusal(path)


STRANGE = [None, True, -1, 0, 1.5, 10**400, math.nan, math.inf, "", "x", [], [None], {}, {"a": 1}, [[1, 2]]]


def attempt(path, model):
    """Load a file and put it on a model, within reason; returns the words of a refusal, if any."""
    started = time.monotonic()
    try:
        apply_erasure(model, load(path))
    except (HypernetFileError, UnsupportedModelError) as error:
        return str(error)
    finally:
        assert time.monotonic() - started < 10


def places(value, at=()):
    """Every place in a JSON value: the paths of keys and indices that lead to it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        if not at or at[-1] != "layers" or key < 2:
            yield from places(value[key], (*at, key))


@pytest.mark.parametrize("part", ["config", "record"])
def test_strange_values_anywhere_in_the_description_raise_nothing_else(path, models, part):
    words, weights = metadata_of(path), load_file(path)
    original = json.loads(words[f"unhype.{part}"])
    outcomes = []
    for place in list(places(original)):
        for strange in STRANGE:
            values = json.loads(words[f"unhype.{part}"])
            holder = values
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = strange
            save_file(weights, str(path), metadata={**words, f"unhype.{part}": json.dumps(values)})
            outcomes.append(attempt(path, models["sd15"]))
    assert len(outcomes) > 100
    assert sum(outcome is not None for outcome in outcomes) > len(outcomes) / 4


def test_random_damage_raises_nothing_else(models, tmp_path):
    """Bytes changed, removed and added, most of them in the header, where they can do something."""
    small = tiny_eraser(models["sd15"], concepts=CONCEPTS, rank=1)
    path = tmp_path / "small.safetensors"
    save(small, path)
    whole, dice = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    outcomes = []
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 1, 2, 8])):
            at = dice.randrange(header if dice.random() < 0.8 else len(data))
            kind = dice.random()
            if kind < 0.7:
                data[at] = dice.choice([dice.randrange(256), *b'0123456789"{}[],:-. '])
            elif kind < 0.85:
                del data[at : at + dice.randrange(1, 20)]
            else:
                data[at:at] = dice.randbytes(dice.randrange(1, 20))
        path.write_bytes(data)
        outcomes.append(attempt(path, models["sd15"]))
    assert sum(outcome is not None for outcome in outcomes) > 200


# Writing


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "kept.safetensors"
    path.write_bytes(b"the file from before")
    return path


def partly_written(error):
    def write(tensors, name, metadata):
        Path(name).write_bytes(b"half of it")
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("Error while serializing: I/O error: os error 28")],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_leaves_the_old_file_and_no_litter(eraser, old_file, monkeypatch, error):
    monkeypatch.setattr(files, "save_file", partly_written(error))
    with pytest.raises(OSError, match=r"No space left|Could not write .*kept\.safetensors: .*os error 28"):
        save(eraser, old_file)
    assert old_file.read_bytes() == b"the file from before"
    assert list(old_file.parent.iterdir()) == [old_file]


def test_a_file_that_cannot_be_replaced_stays(eraser, old_file, monkeypatch):
    """As on Windows while another program has it open."""

    def refuse(self, target):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        save(eraser, old_file)
    assert old_file.read_bytes() == b"the file from before"
    assert list(old_file.parent.iterdir()) == [old_file]


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_litter(eraser, old_file, monkeypatch):
    monkeypatch.setattr(files, "save_file", partly_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save(eraser, old_file)
    assert list(old_file.parent.iterdir()) == [old_file]


def test_a_folder_in_the_way_is_an_os_error(eraser, tmp_path):
    (tmp_path / "folder.safetensors" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        save(eraser, tmp_path / "folder.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.safetensors"]


def test_saving_replaces_and_makes_its_folder(eraser, tmp_path):
    path = tmp_path / "new" / "folder" / "eraser.safetensors"
    save(eraser, path)
    save(eraser, path)
    assert load(path).record == eraser.record
    assert list(path.parent.iterdir()) == [path]


def test_tensors_of_any_layout_are_written(tmp_path):
    transposed = torch.arange(6.0).view(2, 3).T.requires_grad_()
    written_aside({"t": transposed}, tmp_path / "t.safetensors", {})
    assert torch.equal(load_file(tmp_path / "t.safetensors")["t"], transposed.detach())

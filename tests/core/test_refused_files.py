"""Files that are no whole hypernet are refused in plain words."""

import json
import math
import random
import re

import pytest
import torch
from core_parts import CONCEPTS as PAIRS
from core_parts import LAYERS, POOLED, full_eraser, normal, random_detector, small_eraser
from eraser_files import metadata_of, refusal, rewrite
from safetensors.torch import load_file, save_file

from unhype.hypernet.files import check_fits, load, save
from unhype.hypernet.lora import to_lora
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.targets import UnsupportedModelError, family_by_key


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


def test_a_lora_is_no_hypernet(eraser, tmp_path):
    save_file(to_lora(eraser, normal(POOLED), "a cat"), tmp_path / "lora.safetensors", {"ss_tag": "x"})
    message = refusal(tmp_path / "lora.safetensors")
    assert "'lora.safetensors' is a safetensors file but no UnHype hypernet (a LoRA or a checkpoint perhaps)" in message
    assert message.endswith("Pick a file that Train Erasure wrote.")


def test_a_file_without_metadata_is_refused_alike(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "bare.safetensors")
    assert "but no UnHype hypernet" in refusal(tmp_path / "bare.safetensors")


def test_a_newer_format_asks_for_an_update(path):
    rewrite(path, metadata=lambda words: words.update({"unhype.format": "9"}))
    message = refusal(path)
    assert "has UnHype format 9, this version reads 2 to 7" in message
    assert message.endswith("Update the UnHype node pack, or train the file again if it is an old one.")


def test_a_family_of_a_newer_version_is_named(path):
    rewrite(path, record=lambda record: record.update(family="sd99"))
    with pytest.raises(UnsupportedModelError, match="Model family 'sd99' is not one that this version"):
        load(path)


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
        (lambda config: config.update(layers=config["layers"] * 1400), "4200 layers"),
        (lambda config: config["layers"][0].update(inputs=-1), "inputs"),
        (lambda config: config["layers"][0].update(outputs=10**9), "outputs"),
        (lambda config: config["layers"][0].pop("name"), "'name'"),
        (lambda config: config.pop("layers"), "'layers'"),
        (lambda config: config.pop("embedding_width"), "embedding_width"),
        (lambda config: config.update(surprise=1), "surprise"),
        (lambda config: config.update(alpha=1.0), "alpha"),
        (lambda config: config.update(bounded="no"), "bounded is 'no'"),
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
        (lambda record: record.pop("family"), "'family'"),
        (lambda record: record.pop("concepts"), "'concepts'"),
        (lambda record: record.update(concepts=[["cat"]]), "unpack"),
        (lambda record: record.update(concepts=7), "iterable"),
        (lambda record: record.update(base="SD"), "must be a dict"),
        (lambda record: record.update(training=None), "must be a dict"),
        (lambda record: record.update(text_encoder=[1]), "must be a dict"),
        (lambda record: record.update(embedding="mean"), "embedding is 'mean'"),
        (lambda record: record["base"].update(weight_std=[0.1, "x"]), "not numbers"),
        (lambda record: record["base"].update(weight_std=[math.inf]), "not numbers"),
        (lambda record: record["training"].update(losses="many"), "losses is 'many'"),
        (lambda record: record["training"].update(steps=1.5), "steps is 1.5"),
        (lambda record: record.update(text_encoder={"chunk": 0, "widths": [8], "layers": 1, "rank": 1}), "0 tokens"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [-1], "layers": 1, "rank": 1}), "[-1]"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": "32", "layers": 1, "rank": 1}), "'32'"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [32], "layers": 0, "rank": 1}), "0 layers"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [32], "layers": 1e9, "rank": 1}), "layers"),
        (lambda record: record.update(text_encoder={"chunk": 8, "widths": [32], "layers": 1, "rank": 0}), "rank 0"),
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


@pytest.mark.parametrize("gone", ["detector.bias", "detector.weight", "regressor.key", "concept_embeddings"])
def test_half_of_what_lies_beside_the_network_is_refused(tmp_path, gone):
    path = tmp_path / "mine.safetensors"
    save(full_eraser(), path)
    rewrite(path, tensors=lambda weights: weights.pop(gone))
    assert "do not match its description: 1 tensors are missing or unknown" in refusal(path)


def test_a_detector_for_another_number_of_concepts_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    save(small_eraser(detector=random_detector()), path)
    rewrite(path, record=lambda record: record["concepts"].append(["dog", ""]))
    assert "'detector." in refusal(path)
    assert len(PAIRS) == 2


STRANGE = [None, True, -1, 0, 1.5, 10**400, math.nan, math.inf, "", "x", [], [None], {}, {"a": 1}, [[1, 2]]]


def attempt(path):
    """Load a file and hold it against a model's layers; returns the message of a refusal, if any."""
    try:
        check_fits(load(path), family_by_key("sd15"), LAYERS)
    except (HypernetFileError, UnsupportedModelError) as error:
        return str(error)
    return None


def places(value, at=()):
    """Every place in a JSON value: the paths of keys and indices that lead to it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        if not at or at[-1] != "layers" or key < 2:
            yield from places(value[key], (*at, key))


@pytest.mark.parametrize("part", ["config", "record"])
def test_strange_values_anywhere_in_the_description_raise_nothing_else(tmp_path, part):
    path = tmp_path / "mine.safetensors"
    save(full_eraser(), path)
    words, weights = metadata_of(path), load_file(path)
    original = json.loads(words[f"unhype.{part}"])
    outcomes = []
    dice = random.Random(0)
    for place in list(places(original)):
        for strange in dice.sample(STRANGE, 3):
            values = json.loads(words[f"unhype.{part}"])
            holder = values
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = strange
            save_file(weights, str(path), metadata={**words, f"unhype.{part}": json.dumps(values)})
            outcomes.append(attempt(path))
    assert len(outcomes) >= 60
    assert sum(outcome is not None for outcome in outcomes) > len(outcomes) / 4

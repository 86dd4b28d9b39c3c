"""The policy file: what it may say, and that anything else is refused."""

import json
from pathlib import Path

import pytest

from unhype.policy.file import EraserEntry, Policy, PolicyError, parsed, read_policy

FOLDER = Path(Path.cwd().anchor) / "policies"
ONE = {"erasers": [{"file": "school.safetensors"}]}


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "policy.json"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_name_is_enough(tmp_path):
    path = written(tmp_path, json.dumps(ONE))
    assert read_policy(path) == Policy((EraserEntry(tmp_path / "school.safetensors", 1.0, "strict"),), "refuse", False)


def test_everything_can_be_said():
    whole = FOLDER.parent / "elsewhere" / "flux.safetensors"
    content = {
        "erasers": [
            {"file": "school.safetensors", "strength": 2, "unknown_prompts": "base"},
            {"file": str(whole)},
        ],
        "other_models": "allow",
        "log_prompts": True,
    }
    entries = (EraserEntry(FOLDER / "school.safetensors", 2.0, "base"), EraserEntry(whole))
    assert parsed(content, FOLDER) == Policy(entries, "allow", True)


def test_the_mark_that_editors_put_in_front_is_no_error(tmp_path):
    assert read_policy(written(tmp_path, json.dumps(ONE), "utf-8-sig")).other_models == "refuse"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "the policy must be an object"),
        ({}, "'erasers' must be a list"),
        ({"erasers": []}, "at least one"),
        ({"erasers": {}}, "'erasers' must be a list"),
        ({"erasers": ["school.safetensors"]}, "eraser 1 must be an object"),
        ({"erasers": [{}]}, "eraser 1: 'file' must be the name"),
        ({"erasers": [{"file": " "}]}, "eraser 1: 'file' must be the name"),
        ({"erasers": [{"file": 3}]}, "eraser 1: 'file' must be the name"),
        ({"erasers": [{"file": "a", "strenght": 1}]}, "eraser 1: 'strenght' is unknown"),
        ({"erasers": [{"file": "a", "strength": 0}]}, "'strength' must be a number above 0"),
        ({"erasers": [{"file": "a", "strength": -1}]}, "'strength' must be a number above 0"),
        ({"erasers": [{"file": "a", "strength": 3.1}]}, "up to 3"),
        ({"erasers": [{"file": "a", "strength": float("nan")}]}, "'strength' must be a number"),
        ({"erasers": [{"file": "a", "strength": True}]}, "'strength' must be a number"),
        ({"erasers": [{"file": "a", "strength": "1"}]}, "'strength' must be a number"),
        ({"erasers": [{"file": "a", "unknown_prompts": "none"}]}, "must be base or strict, not 'none'"),
        ({"erasers": [{"file": "a", "unknown_prompts": []}]}, "must be base or strict"),
        ({"erasers": [{"file": "a"}, {"file": "a"}]}, "'a' is listed twice"),
        (ONE | {"other_model": "allow"}, "the policy: 'other_model' is unknown"),
        (ONE | {"other_models": "Allow"}, "must be refuse or allow, not 'Allow'"),
        (ONE | {"other_models": None}, "must be refuse or allow"),
        (ONE | {"log_prompts": "no"}, "'log_prompts' must be true or false"),
    ],
)
def test_what_it_may_not_say_is_named(content, words):
    with pytest.raises(PolicyError, match=words):
        parsed(content, FOLDER)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"erasers": [{"file": "a"}], "other_models": "refuse", "other_models": "allow"}', "'other_models' is there"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path, text, words):
    with pytest.raises(PolicyError, match=words):
        read_policy(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(PolicyError, match=r"there is no file policy\.json"):
        read_policy(tmp_path / "policy.json")
    with pytest.raises(PolicyError, match=r"policy\.json can't be read"):
        read_policy(written(tmp_path, json.dumps(ONE), "utf-16"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(PolicyError, match=r"folder\.json can't be read"):
        read_policy(tmp_path / "folder.json")

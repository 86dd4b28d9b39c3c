"""Hypernet files whose parts are changed by a test."""

import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unhype.hypernet.files import load
from unhype.hypernet.record import HypernetFileError

CONCEPTS = (("cat", "tree"), ("Caf\u00e9 \u732b", ""))


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

"""An eraser file of before gives the pictures of before."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import WordClip, sample, tiny_model

from unhype.hypernet.files import load, save
from unhype.hypernet.patch import apply_erasure

DATA = Path(__file__).parents[1] / "data"
TEXTS = {"cat": "a photo of a cat", "dog": "a dog and a house", "lemons": "a bowl of lemons"}

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The eraser of format 2, and the same one saved by this version."""
    former, path = load(DATA / "format2.safetensors"), tmp_path_factory.mktemp("files") / "anew.safetensors"
    save(former, path)
    return former, load(path)


def encode(text):
    return WordClip().encode_from_tokens_scheduled(WordClip().tokenize(text))


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("name", TEXTS)
def test_the_latents_are_those_of_the_version_that_wrote_the_file(model, files, name, strength):
    positive, negative = encode(TEXTS[name]), encode("")
    found, anew = (sample(apply_erasure(model, eraser, strength), positive, negative) for eraser in files)
    assert torch.equal(found, anew)
    # Made on another machine, whose processor may round otherwise: by 1.4e-6. Strength 0.5005 for 0.5 gives 4.4e-5.
    expected = load_file(DATA / "format2_latents.safetensors")[f"{name}.{strength}"]
    assert (found - expected).norm() < 1e-5 * expected.norm()
    base = sample(model, positive, negative)
    assert torch.equal(found, base) == (name == "lemons")

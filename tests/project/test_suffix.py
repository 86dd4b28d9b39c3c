"""The search for suffixes: what it optimises is what the encoder makes of the text."""

import pytest
import torch

from benchmarks import suffix
from benchmarks.lab.measure import encode
from benchmarks.lab.text import load_clip
from benchmarks.suffix import Attacked, states_of, token_embeddings, words_of

PROMPT = "a photo of the cat"


@pytest.fixture(scope="module")
def clip():
    return load_clip()


def test_states_are_the_encoders_own(clip):
    text = f"{PROMPT} windsor yellow"
    states = states_of(clip, token_embeddings(clip, text).unsqueeze(0))
    torch.testing.assert_close(states, encode(clip, text)[0][0], atol=1e-4, rtol=1e-4)


def test_words_are_of_one_token_and_none_is_a_name(clip):
    words = words_of(clip, ["cat", "kitty"])
    assert len(words.texts) > 1000
    assert not [word for word in words.texts if "cat" in word or "kitty" in word]
    some = slice(0, 2000, 400)
    ids = [token for token, _ in clip.tokenize(" ".join(words.texts[some]))["minilm"][0] if token]
    assert ids[1:-1] == words.ids[some].tolist()


def test_the_search_lowers_the_error(clip, monkeypatch):
    """Against a stand-in for the model: the error is the distance of the last word's state from a wanted one."""
    wanted = states_of(clip, token_embeddings(clip, f"{PROMPT} yellow").unsqueeze(0))[0, 6]
    monkeypatch.setattr(suffix, "errors", lambda _, states: (states[:, 6] - wanted).square().mean(1))
    monkeypatch.setattr(suffix, "Target", lambda *parts: parts)
    target = type("Samples", (), {"z": None, "sigma": None, "e_p": None})()
    words, found = words_of(clip, ["cat"]), []
    for steps in (0, 6):
        monkeypatch.setattr(suffix, "STEPS", steps)
        generator = torch.Generator().manual_seed(0)
        found.append(suffix.suffix(clip, Attacked(None), target, PROMPT, words, 1, generator))
    assert found[1][1] < 0.8 * found[0][1]
    assert found[1][0].startswith(f"{PROMPT} ")

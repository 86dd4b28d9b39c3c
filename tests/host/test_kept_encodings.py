"""Encoded prompts last: what one run has encoded, the next one reads, as long as the encoder is the same."""

import pytest
import torch
from encoders import WIDTH, encoder
from runs import go, request_in, same_weights
from safetensors.torch import save_file
from tiny import seeded, tiny_model

from unhype.hypernet.targets import family_by_key
from unhype.training import run as training_run
from unhype.training.encode import encode_prompts, one_by_one
from unhype.training.encode_batch import in_batches

SD = family_by_key("sd15")
DRAWN = ["", "a cat", "a (cat:1.3) in the street"]
TRAIN = [f"number {n}" for n in range(40)]
HELD_OUT = [f"letter {n}" for n in range(8)]
SCORED = {TRAIN[0]: "", HELD_OUT[0]: "", "a cat": "cat"}


@pytest.fixture(autouse=True)
def no_gradients():
    """As training encodes."""
    with torch.no_grad():
        yield


class Noting:
    """Encodes, and notes the texts."""

    def __init__(self, encoding=one_by_one):
        self.encoding, self.texts = encoding, []

    def __call__(self, versions, texts, source, on_progress):
        self.texts += texts
        return self.encoding(versions, texts, source, on_progress)


def run(clip, folder, encoding=None, drawn=DRAWN, train=TRAIN, on_progress=lambda done, total: None, scored=SCORED):
    """Encode the prompts of a run; returns them and the texts that had to be encoded."""
    noting = Noting(encoding or one_by_one)
    prompts = encode_prompts(clip, drawn, train, HELD_OUT, scored, SD, on_progress, noting, folder)
    return prompts, noting.texts


def same(one, other):
    assert list(one.encoded) == list(other.encoded)
    for text, prompt in one.encoded.items():
        assert torch.equal(prompt.c, other.encoded[text].c)
        assert len(prompt.conditioning) == len(other.encoded[text].conditioning) == (text in DRAWN)
        for (states, entry), (theirs, values) in zip(
            prompt.conditioning, other.encoded[text].conditioning, strict=True
        ):
            assert torch.equal(states, theirs)
            assert entry.keys() == values.keys()
            assert torch.equal(entry["pooled_output"], values["pooled_output"])
    for mine, theirs in zip(one.features, other.features, strict=True):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[text], theirs[text]) for text in mine)
    assert list(one.scored) == list(other.scored) == list(SCORED)
    assert all(torch.equal(states, other.scored[text]) for text, states in one.scored.items())


@pytest.mark.parametrize("encoding", [one_by_one, in_batches])
def test_the_second_run_encodes_nothing(tmp_path, encoding):
    first, encoded = run(encoder("sd15"), tmp_path, encoding)
    assert len(encoded) == len({*DRAWN, *TRAIN, *HELD_OUT})
    second, nothing = run(encoder("sd15"), tmp_path, encoding)
    assert nothing == []
    same(first, second)


def test_what_is_new_in_a_list_is_encoded(tmp_path):
    run(encoder("sd15"), tmp_path)
    found, encoded = run(encoder("sd15"), tmp_path, train=[*TRAIN, "one more"])
    assert encoded == ["one more"]
    same(found, run(encoder("sd15"), None, train=[*TRAIN, "one more"])[0])
    # A prompt of the retained ones whose token states are asked for now.
    assert run(encoder("sd15"), tmp_path, drawn=[*DRAWN, TRAIN[0]])[1] == [TRAIN[0]]
    assert run(encoder("sd15"), tmp_path, drawn=[*DRAWN, TRAIN[0]])[1] == []


def test_another_name_in_the_same_prompt_is_encoded_anew(tmp_path):
    run(encoder("sd15"), tmp_path)
    found, encoded = run(encoder("sd15"), tmp_path, scored={"a cat": "a"})
    assert encoded == ["a cat"]
    assert not torch.equal(found.scored["a cat"], run(encoder("sd15"), tmp_path)[0].scored["a cat"])
    assert run(encoder("sd15"), tmp_path, scored={"a cat": "a"})[1] == []


def test_an_interrupted_run_goes_on(tmp_path):
    totals = []

    def interrupt(done, total):
        totals.append(total)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(encoder("sd15"), tmp_path, on_progress=interrupt)
    calls = []
    found, encoded = run(encoder("sd15"), tmp_path, on_progress=lambda *done: calls.append(done))
    total = len({*DRAWN, *TRAIN, *HELD_OUT})
    assert len(encoded) < total - 20
    # The bar is about what is left: encodings that are kept take no time.
    _, (first, size), *others = calls
    assert first == 0
    assert all(0 < done <= size == whole for done, whole in others)
    assert size / totals[-1] == pytest.approx(len(encoded) / total, rel=0.1)
    same(found, run(encoder("sd15"), None)[0])


def test_another_encoder_layer_or_lora_encodes_anew(tmp_path):
    total = len(run(encoder("sd15"), tmp_path)[1])
    changed = encoder("sd15")
    changed.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight[40000] += 1
    assert len(run(changed, tmp_path)[1]) == total
    skipping = encoder("sd15")
    skipping.clip_layer(-2)
    assert len(run(skipping, tmp_path)[1]) == total
    with_lora = encoder("sd15").clone()
    name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    with_lora.add_patches({name: (torch.ones(2 * WIDTH, WIDTH),)}, 0.5)
    assert len(run(with_lora, tmp_path)[1]) == total
    assert len(run(encoder("sd15"), tmp_path)[1]) == 0


def test_a_changed_textual_inversion_is_encoded_anew(tmp_path):
    def write(seed):
        (tmp_path / "embeddings").mkdir(exist_ok=True)
        vectors = torch.randn(2, WIDTH, generator=seeded(seed))
        save_file({"emb_params": vectors}, tmp_path / "embeddings" / "mine.safetensors")

    own = "a picture of embedding:mine"
    for seed, expected in ((1, True), (1, False), (2, True)):
        write(seed)
        clip = encoder("sd15", str(tmp_path / "embeddings"))
        assert (own in run(clip, tmp_path / "kept", train=[*TRAIN, own])[1]) == expected


def test_a_damaged_file_is_replaced(tmp_path):
    first, encoded = run(encoder("sd15"), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    second, again = run(encoder("sd15"), tmp_path)
    assert again == encoded
    same(first, second)
    assert not path.exists()
    assert run(encoder("sd15"), tmp_path)[1] == []


def test_no_tensor_of_a_gradient_or_of_inference_mode_is_kept(tmp_path):
    run(encoder("sd15"), tmp_path)
    prompts, _ = run(encoder("sd15"), tmp_path)
    tensors = [prompts.encoded["a cat"].c, prompts.encoded["a cat"].conditioning[0][0]]
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors)


def test_a_second_training_reads_what_the_first_has_encoded(tmp_path, monkeypatch):
    outcomes, encoded = [], []
    for name, concepts in (("first", "cat -> tree"), ("again", "cat -> tree"), ("other", "dog -> tree")):
        noting = Noting(in_batches)
        monkeypatch.setattr(training_run, "in_batches", noting)
        request = request_in(tmp_path / name, concepts, encodings=tmp_path / "kept")
        outcomes.append(go(tiny_model(), request, clip=encoder("sd15")))
        encoded.append(len(noting.texts))
    first, again, other = encoded
    assert again == 0
    assert 0 < other < first / 2
    assert same_weights(outcomes[0].eraser, outcomes[1].eraser)

"""The lab's CLIP behaves as CLIP-L does in ComfyUI, because it is ComfyUI's."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import seeded

from benchmarks.lab import clip, clip_measure, flux_text, storage, train_clip
from benchmarks.lab.teacher import Teacher
from benchmarks.lab.vocabulary import NAMES


@pytest.fixture(scope="module")
def stored(encoder, tmp_path_factory):
    """The file of its weights."""
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    storage.save(network(encoder).state_dict(), path, {})
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """With random weights, as a distillation starts; textual inversions lie in `encoder.embeddings`."""
    folder = tmp_path_factory.mktemp("embeddings")
    made = clip.build(str(folder))
    torch.manual_seed(0)
    train_clip.initialise(network(made), torch.randn(clip.VOCABULARY, clip.RANK, generator=seeded(0)))
    made.embeddings = folder
    return made


def network(made):
    return made.cond_stage_model.clip_l.transformer


def encode(made, text):
    """States (1, tokens, 256) and pooled vector (1, 256), as CLIPTextEncode makes them."""
    ((states, values),) = made.encode_from_tokens_scheduled(made.tokenize(text))
    return states, values["pooled_output"]


def test_it_has_about_ten_million_numbers(encoder):
    assert sum(parameter.numel() for parameter in network(encoder).parameters()) < 10e6


def test_a_prompt_has_chunks_of_77_tokens(encoder):
    short, first = encode(encoder, "a cat")
    long, pooled = encode(encoder, "a cat, " + ", ".join(["very detailed"] * 40))
    assert short.shape == (1, 77, 256) and first.shape == (1, 256)
    assert long.shape == (1, 154, 256)
    # The pooled vector is the first chunk's.
    assert torch.equal(pooled, encode(encoder, "a cat, " + ", ".join(["very detailed"] * 60))[1])


def test_no_token_sees_a_later_one(encoder):
    cat, dog = (encode(encoder, f"a small picture of a {name}")[0] for name in ("cat", "dog"))
    assert torch.equal(cat[:, :6], dog[:, :6])
    assert not torch.allclose(cat[:, 6:], dog[:, 6:])


def test_the_pooled_vector_is_the_state_at_the_first_end_token(encoder):
    states, pooled = encode(encoder, "a cat")
    torch.testing.assert_close(states[:, 3], pooled)


def test_clip_skip_and_weights_leave_the_pooled_vector(encoder):
    states, pooled = encode(encoder, "a cat")
    skipping = encoder.clone()
    skipping.clip_layer(-2)
    skipped, same = encode(skipping, "a cat")
    weighted, equal = encode(encoder, "a (cat:1.4)")
    assert torch.equal(pooled, same) and torch.equal(pooled, equal)
    assert not torch.allclose(states, skipped) and not torch.allclose(states, weighted)


def test_a_textual_inversion_takes_a_place_among_the_tokens(encoder):
    save_file({"emb_params": torch.randn(2, clip.WIDTH, generator=seeded(1))}, encoder.embeddings / "mine.safetensors")
    tokens = encoder.tokenize("a picture of embedding:mine")["l"][0]
    assert sum(torch.is_tensor(token) for token, _ in tokens) == 2
    assert not torch.allclose(encode(encoder, "a picture of embedding:mine")[1], encode(encoder, "a picture of")[1])


@pytest.mark.parametrize("text", ["", "Zdzis\u0142aw", "\u732b", "qzxv" * 40, "<|endoftext|> cat"])
def test_any_text_can_be_encoded(encoder, text):
    states, pooled = encode(encoder, text)
    assert states.isfinite().all() and pooled.isfinite().all()


def test_training_reads_what_the_host_reads(encoder):
    texts = ["a cat", "a (photo:1.3) of an automobile beside a tree", "a street, " * 60]
    tokens, seen = train_clip.tokens_of(encoder.tokenizer, texts)
    assert seen[1] == "a photo of an automobile beside a tree"
    assert seen[2].split().count("street") == 25
    with torch.no_grad():
        ours = train_clip.pooled_states(network(encoder), *tokens)
    theirs = torch.cat([encode(encoder, text)[1] for text in texts])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_it_learns(encoder):
    made = clip.build()
    model = network(made).requires_grad_(True)
    model.load_state_dict(network(encoder).state_dict())
    tokens, _ = train_clip.tokens_of(made.tokenizer, ["cat", "car", "dog", "red", "blue", "sea"])
    names, _ = train_clip.tokens_of(made.tokenizer, list(NAMES))
    taught = torch.nn.functional.normalize(torch.randn(len(names.ids) + 6, 384, generator=seeded(2)), dim=1)
    basis = torch.linalg.qr(torch.randn(384, clip.WIDTH, generator=seeded(3)))[0]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = train_clip.loss_of(model, tokens, taught[:6], names, taught[6:], basis)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_weights_come_back_from_their_file(encoder, stored):
    assert stored.stat().st_size < 20e6
    loaded = encode(clip.load_clip(stored), "a cat")[1]
    assert torch.cosine_similarity(loaded, encode(encoder, "a cat")[1]).item() > 0.999


def test_a_distillation_goes_on_where_it_ended(monkeypatch, tmp_path):
    rows = torch.randn(clip.VOCABULARY, clip.RANK, generator=seeded(0))
    monkeypatch.setattr(train_clip, "first_rows", lambda *_: rows)
    for name, value in {"POOL": 16, "BATCH": 8, "PASSES": 1, "SAMPLE": 300}.items():
        monkeypatch.setattr(train_clip, name, value)
    weights = tmp_path / "weights" / "clip.safetensors"
    train_clip.train(tmp_path, minutes=1e-4, seed=0, weights=weights)
    first = train_clip.Run(tmp_path, seed=0)
    train_clip.train(tmp_path, minutes=1e-4, seed=0, weights=weights)
    second = train_clip.Run(tmp_path, seed=0)
    assert (first.steps, second.steps) == (2, 4)
    assert [step for step, _, _ in second.curve] == [2, 4]
    assert torch.equal(first.basis, second.basis)
    assert not torch.equal(first.generator.get_state(), second.generator.get_state())
    assert storage.steps(weights) == 4


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("a cat", 24, 24), ("a long street with trees, " * 20, 100, 150), ("cat " * 400, 256, 256)],
)
def test_flux_gets_a_vector_from_one_encoder_and_a_sequence_from_the_other(encoder, stored, text, least, most):
    states, pooled = encode(flux_text.load_clip(stored), text)
    assert states.shape[2] == 384 and least <= states.shape[1] <= most
    assert pooled.shape == (1, clip.WIDTH)
    assert torch.cosine_similarity(pooled, encode(encoder, text)[1]).item() > 0.999


def test_without_weights_it_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"isn't trained yet, .*: python3 dev\.py lab clip"):
        clip.load_clip(tmp_path / "clip.safetensors")


def test_nearest_names_are_those_that_minilm_finds():
    if not clip.PATH.exists():
        pytest.skip("the lab's CLIP is not in this checkout")
    names = list(NAMES)
    ours = torch.nn.functional.normalize(clip_measure.pooled(clip.load_clip(), names), dim=1)
    theirs = Teacher(torch.float32).embed(names)
    found = clip_measure.compare(clip_measure.Group(names, None), ours @ ours.T, theirs @ theirs.T)
    assert found["agreement"] >= 0.9

"""The reader of tokens: fitted on what training encodes anyway, and what training makes of it."""

import pytest
import torch
from runs import DIFFUSION, TINY, Reports, go
from tiny import CONTEXT, POOLED, TinyClip, seeded, tiny_model

from unhype.hypernet.detector import is_silent
from unhype.hypernet.files import load
from unhype.hypernet.regressor import PooledRegressor, chunk_features
from unhype.training.encode import encode, encode_prompts, skipping_last_layer
from unhype.training.loop import Material
from unhype.training.plan import Request
from unhype.training.prompts import TEMPLATES, fill, retain_split, sentences
from unhype.training.regressor_fit import RANK, compressed, fit_layer, full_rank_maps, ridge
from unhype.training.run import train_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


class SpeakingClip(TinyClip):
    """A CLIP without an encoder whose pooled vector is a function of its tokens, as in real ones, and which has
    a last layer but one."""

    def __init__(self, layer=-1):
        self.layer = layer

    def clone(self):
        return SpeakingClip(self.layer)

    def clip_layer(self, layer):
        self.layer = layer

    def encode_from_tokens_scheduled(self, tokens):
        ((cross, _),) = super().encode_from_tokens_scheduled(tokens)
        map_ = torch.randn(POOLED, CONTEXT, generator=seeded(2)) / CONTEXT**0.5
        pooled = torch.nn.functional.normalize(cross[0].mean(0), dim=0) @ map_.T * CONTEXT**0.5
        if self.layer == -2:
            cross = cross @ torch.linalg.qr(torch.randn(CONTEXT, CONTEXT, generator=seeded(3)))[0] + 0.5
        return [[cross, {"pooled_output": pooled.unsqueeze(0)}]]


def drawn(count, features=12, width=5, seed=0):
    generator = seeded(seed)
    f = torch.randn(count, features, generator=generator)
    return f, f @ torch.randn(features, width, generator=seeded(9)) + 2


@pytest.mark.parametrize("count", [8, 40], ids=["fewer rows than features", "more"])
def test_ridge_is_the_minimum_of_its_loss(count):
    features, c = drawn(count)
    c = c + torch.randn(c.shape, generator=seeded(4))
    X = features - features.mean(0)
    weight = 0.1 * X.square().sum() / X.shape[1]

    def loss(W, b):
        return ((features @ W.T + b - c).square().sum() + weight * W.square().sum()).item()

    W, b = ridge(features, c, 0.1)
    for seed in range(10):
        generator = seeded(seed)
        nearby = (
            W + 0.01 * torch.randn(W.shape, generator=generator),
            b + 0.01 * torch.randn(b.shape, generator=generator),
        )
        assert loss(*nearby) > loss(W, b)


def test_a_linear_relation_is_found_and_noise_is_not():
    (features, c), (unseen, meant) = drawn(60), drawn(20, seed=1)
    weight, bias, share = fit_layer(features, unseen, c, meant, (6,))
    assert share > 0.99
    torch.testing.assert_close(unseen @ weight.T + bias[0], meant, rtol=0, atol=0.2)
    assert fit_layer(features, unseen, torch.randn(c.shape, generator=seeded(6)), meant, (6,))[-1] < 0.5


def test_each_encoder_is_read_for_itself():
    (f, c), (unseen, meant) = drawn(60), drawn(20, seed=1)
    weight, bias, share = fit_layer(torch.cat([f, f * 3], 1), torch.cat([unseen, unseen * 3], 1), c, meant, (6, 6))
    assert share > 0.99
    reader = PooledRegressor((6, 6), *full_rank_maps(weight.unsqueeze(0), 2), bias.unsqueeze(0), torch.zeros(1, 25))
    one, other = reader(torch.cat([unseen, torch.zeros_like(unseen)], 1))
    assert explained(one, meant) > 0.99
    assert explained(other, meant) < 0.01


def test_a_smaller_reader_keeps_what_c_is_read_for():
    """What the given rows make of c survives a rank that c itself would not."""
    features, weight = torch.randn(200, 24, generator=seeded(1)), torch.randn(1, 8, 24, generator=seeded(2))
    whole = PooledRegressor(
        (6, 6), *full_rank_maps(weight, 2), torch.randn(1, 2, 8, generator=seeded(3)), torch.zeros(1, 25)
    )
    rows = torch.randn(2, 8, generator=seeded(4))
    small = compressed(whole, [features], rows, rank=2)
    assert small.up.shape == (1, 2, 8, 2)
    assert small.down.shape == (1, 2, 24)
    c, found = whole(features), small(features)
    torch.testing.assert_close(found @ rows.T, c @ rows.T, rtol=0, atol=0.05 * (c @ rows.T).std().item())
    assert explained(found.flatten(0, 1), c.flatten(0, 1)) < 0.9


def test_the_other_layer_is_found_only_where_there_is_one():
    assert skipping_last_layer(TinyClip()) is None
    clip = SpeakingClip()
    skipping = skipping_last_layer(clip)
    assert (clip.layer, skipping.layer) == (-1, -2)


def test_both_layers_are_read_as_the_same_pooled_vector():
    texts = [f"text {n}" for n in range(400)]
    prompts = encode_prompts(SpeakingClip(), [""], texts[:300], texts[300:], (), lambda *_: None)
    assert prompts.explained > 0.5
    assert len(prompts.features) == 2
    rows, views = prompts.views_of(texts[300:])
    assert rows == texts[300:] * 3
    pooled, usual, skipped = views.split(100)
    assert torch.equal(pooled, torch.stack([encode(SpeakingClip(), text).c for text in texts[300:]]))
    assert explained(usual, pooled) > 0.5
    assert explained(skipped, pooled) > 0.5
    tokens = encode(SpeakingClip(-2), texts[300]).conditioning[0][0][0]
    assert torch.equal(prompts.features[1][texts[300]], chunk_features(tokens, (CONTEXT,)))


@pytest.fixture
def train(tmp_path):
    """Trains with a CLIP; returns the outcome and the material that the loop was given."""

    def noting(clip, monkeypatch, settings=TINY):
        seen = []
        from unhype.training import material as module

        def note(*parts):
            seen.append(Material(*parts))
            return seen[-1]

        monkeypatch.setattr(module, "Material", note)
        request = Request("cat -> tree", "", tmp_path, "eraser", tmp_path / "ck", settings, preview_every=0)
        return train_erasure(tiny_model(), clip, request, Reports()), seen[0]

    return noting


def test_training_sees_and_calibrates_on_pooled_vectors_and_on_what_is_read(train, monkeypatch):
    outcome, material = train(SpeakingClip(), monkeypatch, DIFFUSION)
    eraser = outcome.trained
    train, held_out = eraser.record.training["retain_prompts"]
    views = 3
    assert len(material.retain_c) == views * train
    assert len(material.held_out_c) == views * held_out
    assert len(material.phrase_c) == len(material.phrase_conds) == views * len(TEMPLATES["object"])
    assert {int(phrase) // len(TEMPLATES["object"]) for phrase in material.cache.phrase} > {0}
    assert eraser.record.training["reader_explains"] > 0.5
    loudest = eraser.detector(material.held_out_c).view(views, held_out).amax(0)
    silent = is_silent(loudest, eraser.record.dead_zone).float().mean().item()
    assert eraser.record.training["held_out_silent"] == pytest.approx(silent, abs=1e-3)


def test_the_file_holds_the_reader_and_the_mean_wording_of_each_concept(train, monkeypatch):
    outcome, _ = train(SpeakingClip(), monkeypatch)
    loaded = load(outcome.path)
    wordings = [encode(SpeakingClip(), fill(template, "cat")).c for template in TEMPLATES["object"]]
    torch.testing.assert_close(
        loaded.concept_embeddings, torch.stack(wordings).mean(0, keepdim=True), rtol=1e-3, atol=1e-3
    )
    assert loaded.record.reading == {"tokens": 8, "widths": [CONTEXT], "layers": 2, "rank": min(RANK, POOLED)}
    tokens = encode(SpeakingClip(), "a photo of a cat").conditioning[0][0][0]
    (read,) = loaded.reader.views(tokens)
    (same,) = outcome.eraser.regressor.views(tokens)
    assert torch.equal(read, same)


def test_where_tokens_do_not_tell_the_pooled_vector_there_is_no_reader(train, monkeypatch):
    outcome, material = train(TinyClip(), monkeypatch)
    loaded = load(outcome.path)
    assert loaded.reader is None
    assert loaded.record.reading == {"tokens": 8, "widths": [], "layers": 0, "rank": 0}
    assert len(material.phrase_c) == len(TEMPLATES["object"])


# Which texts are read


class NotingClip(TinyClip):
    def __init__(self):
        self.texts = []

    def encode_from_tokens_scheduled(self, tokens):
        self.texts.append(tokens)
        return super().encode_from_tokens_scheduled(tokens)


def test_retained_prompts_that_name_what_is_erased_are_left_out(model, ask):
    clip = NotingClip()
    go(model, ask("elephant -> tree", steps=1), clip=clip)
    wordings = {template.replace("{a}", "an elephant").replace("{}", "elephant") for template in TEMPLATES["object"]}
    erased = (("elephant", "tree"),)
    named = sentences(erased, "object", retain_split("", erased).partners, TINY.sentences)
    expected = wordings | {phrase.prompt for phrase in named}
    assert {text for text in clip.texts if "elephant" in text.lower()} == expected
    assert len(clip.texts) > 500


def test_every_text_is_encoded_once(model, ask):
    clip = NotingClip()
    go(model, ask("cat -> tree\ndog -> tree", steps=1), clip=clip)
    clip.texts.remove("")  # the empty one also shows how long a chunk is, and that there is no other layer to read
    clip.texts.remove("")
    clip.texts.remove("")
    assert len(set(clip.texts)) == len(clip.texts)

"""The attention objective: which token becomes which, what the layers have to change, and that H learns it."""

import random
from dataclasses import replace
from types import SimpleNamespace

import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import pytest
import torch
from runs import TINY, Reports
from tiny import TinyClip, WordClip, seeded, tiny_model

from unhype.hypernet.factors import Factors, delta_norm, lowrank_delta
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.targets import TargetLayer
from unhype.training.encode import encode
from unhype.training.plan import Request
from unhype.training.prompts import TEMPLATES, fill, retain_split
from unhype.training.run import train_erasure
from unhype.training.settings import Settings
from unhype.training.tasks.attention import (
    AttentionTask,
    TokenPairs,
    align,
    attention_loss,
    changes_of,
    jittered,
    token_ids,
    token_pairs,
)

# Which token becomes which. 1 begins a prompt and 2 ends it; CLIP-L repeats the end, CLIP-G and others go on with 0.


@pytest.mark.parametrize(
    ("erased", "mapping", "expected"),
    [
        ([1, 10, 11, 2, 2, 2], [1, 10, 11, 2, 2, 2], [0, 1, 2, 3, 4, 5]),
        ([1, 10, 20, 11, 2, 2], [1, 10, 30, 11, 2, 2], [0, 1, 2, 3, 4, 5]),
        ([1, 10, 20, 2, 2, 2], [1, 10, 30, 31, 2, 2], [0, 1, 2, 4, 5, 5]),
        ([1, 10, 20, 21, 2, 2], [1, 10, 30, 2, 2, 2], [0, 1, 2, 2, 3, 4]),
        ([1, 20, 12, 13, 2, 2, 2], [1, 30, 31, 12, 13, 2, 2], [0, 1, 3, 4, 5, 6, 6]),
        ([1, 10, 20, 2, 2, 2], [1, 2, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]),
        ([1, 10, 20, 2, 0, 0, 0], [1, 10, 30, 31, 2, 0, 0], [0, 1, 2, 4, 5, 6, 6]),
        ([1, 10, 20, 2, 0, 0], [1, 2, 0, 0, 0, 0], [0, 0, 0, 1, 2, 3]),
        ([1, 20, 21, 22, 23, 2], [1, 30, 31, 2, 2, 2], [0, 1, 1, 2, 2, 3]),
        ([1, 20, 2, 2], [1, 30, 2, 2, 2, 2, 2, 2], [0, 1, 2, 3]),
        ([1, 20, 2, 2, 2, 2, 2, 2], [1, 30, 2, 2], [0, 1, 2, 3, 3, 3, 3, 3]),
        ([], [], []),
    ],
    ids=[
        "identical prompts",
        "a word for a word",
        "a longer mapping",
        "a longer name",
        "a shifted end",
        "an empty mapping",
        "zero padding",
        "an empty mapping and zero padding",
        "no padding",
        "a longer chunk",
        "a shorter chunk",
        "nothing",
    ],
)
def test_tokens_are_paired(erased, mapping, expected):
    assert align(erased, mapping) == expected


@pytest.mark.parametrize("padding", [0, 2])
def test_whatever_the_words_the_ends_stay_paired(padding):
    dice = random.Random(0)
    for _ in range(200):
        prefix, suffix, name, other = (
            [dice.randrange(first, first + 4) for _ in range(dice.randrange(4))] for first in (10, 10, 20, 30)
        )
        prompts = [1, *prefix, *name, *suffix, 2], [1, *prefix, *other, *suffix, 2]
        erased, mapping = (prompt + [padding] * (20 - len(prompt)) for prompt in prompts)
        pairs = align(erased, mapping)
        assert len(pairs) == 20
        assert all(0 <= index < 20 for index in pairs)
        kept = [*range(1 + len(prefix)), *range(len(prompts[0]) - 1 - len(suffix), 20)]
        assert [mapping[pairs[n]] for n in kept] == [erased[n] for n in kept]


@pytest.mark.parametrize("tokenizer", [comfy.sd1_clip.SD1Tokenizer, comfy.sdxl_clip.SDXLTokenizer], ids=["SD1", "SDXL"])
def test_the_hosts_own_tokenizers_are_read(tokenizer):
    clip = SimpleNamespace(tokenize=tokenizer().tokenize_with_weights)
    erased, mapping, longer = (
        token_ids(clip, text)
        for text in ("a photo of a cat on a sofa", "a photo of a tree on a sofa", "a photo of a fire engine on a sofa")
    )
    assert len(erased) == len(mapping) == 77
    assert align(erased, mapping) == list(range(77))
    changed = [n for n in range(77) if erased[n] != mapping[n]]
    assert changed == [5]
    assert align(erased, longer) == [0, 1, 2, 3, 4, 5, *range(7, 77), 76]
    assert len(token_ids(clip, "word " * 100)) == 154


def test_a_textual_inversion_is_an_id_of_its_own():
    vector = torch.ones(3)
    clip = SimpleNamespace(tokenize=lambda text: {"l": [[(1, 1.0), (vector, 1.0)], [(2, 0.5), (vector, 1.0)]]})
    first, own, second, again = token_ids(clip, "any")
    assert (first, second) == (1, 2)
    assert own == again


# Token states, laid side by side


STATES = {
    "erased": torch.arange(6.0).view(3, 2),
    "mapping": torch.arange(10.0, 14.0).view(2, 2),
    "long": torch.arange(20.0, 30.0).view(5, 2),
}


def test_without_ids_the_tokens_are_paired_in_their_order():
    pairs = token_pairs(TinyClip(), [("erased", "mapping"), ("long", "erased")], STATES)
    assert len(pairs) == 2
    assert pairs.erased.shape == pairs.mapping.shape == (2, 5, 2)
    assert torch.equal(pairs.erased[0], torch.cat([STATES["erased"], torch.zeros(2, 2)]))
    assert torch.equal(pairs.erased[1], STATES["long"])
    assert pairs.mapping[0].tolist() == [[10, 11], [12, 13], [12, 13], [0, 0], [0, 0]]
    assert pairs.mapping[1].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]


def test_ids_of_another_length_than_the_states_are_not_trusted():
    clip = SimpleNamespace(tokenize=lambda text: {"l": [[(1, 1.0), (2, 1.0)]]})
    without, distrusted = (token_pairs(one, [("erased", "mapping")], STATES) for one in (TinyClip(), clip))
    assert torch.equal(distrusted.mapping, without.mapping)


def test_with_ids_the_states_follow_the_alignment():
    clip = WordClip()
    texts = "a cat in the house", "a fire engine in the house"
    states = {text: encode(clip, text).conditioning[0][0][0] for text in texts}
    pairs = token_pairs(clip, [texts], states)
    assert torch.equal(pairs.erased[0], states[texts[0]])
    own = align(*(token_ids(clip, text) for text in texts))
    assert own[:6] == [0, 1, 2, 4, 5, 6]
    assert torch.equal(pairs.mapping[0], states[texts[1]][own])


# What the layers have to change, and the loss


def linear(inputs, outputs, bias=False, dtype=torch.float32):
    layer = comfy.ops.manual_cast.Linear(inputs, outputs, bias=bias, dtype=dtype)
    with torch.no_grad():
        for number, weight in enumerate(layer.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=seeded(number)))
    return layer.requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_changes_are_read_through_the_layers_whatever_their_type_and_bias(dtype, bias):
    layers = [linear(6, size, bias, dtype) for size in (4, 9)]
    X_p, X_m = (torch.randn(2, 5, 6, generator=seeded(seed)) for seed in (7, 8))
    found = changes_of(layers, X_p, X_m)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02 if dtype == torch.float16 else 0.15
    for layer, change in zip(layers, found, strict=True):
        assert change.dtype == torch.float32
        assert not change.requires_grad
        torch.testing.assert_close(change, (X_m - X_p) @ layer.weight.float().T, rtol=0, atol=tolerance)


def test_the_loss_by_hand():
    X_p = torch.eye(2).unsqueeze(0)
    changes = [torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])] * 2
    double = Factors(torch.eye(2).unsqueeze(0), 2 * torch.eye(2).unsqueeze(0))
    nothing = Factors(torch.eye(2).unsqueeze(0), torch.zeros(1, 2, 2))
    # First layer: [[2, 0], [0, 2]] - 0.5 [[1, 2], [3, 4]] = [[1.5, -1], [-1.5, 0]], squares 5.5 over a scale of 2.
    # Second layer: nothing but [[0.5, 1], [1.5, 2]], squares 7.5 over 1.
    found = attention_loss([double, nothing], X_p, changes, torch.tensor([0.5]), [2.0, 1.0])
    assert found.tolist() == [(5.5 / 2 + 7.5) / 2]


def test_the_loss_is_zero_where_the_delta_is_what_has_to_change_and_nowhere_else():
    X_p, g = torch.randn(3, 5, 6, generator=seeded(0)), torch.tensor([1.0, 0.5, 0.25])
    factors = Factors(torch.randn(3, 2, 6, generator=seeded(1)), torch.randn(3, 4, 2, generator=seeded(2)))
    changes = [lowrank_delta(X_p, factors) / g.view(3, 1, 1)]
    assert attention_loss([factors], X_p, changes, g, [1.0]).max() < 1e-9
    for A, B, place in ((1.01, 1.0, g), (1.0, 0.99, g), (1.0, 1.0, g * 1.01)):
        moved = [Factors(factors.A * A, factors.B * B)]
        assert attention_loss(moved, X_p, changes, place, [1.0]).min() > 1e-5


def test_jitter_is_a_share_of_the_spread():
    c = torch.randn(50, 400, generator=seeded(0)) * 3
    noise = jittered(c, 0.1, seeded(1)) - c
    assert noise.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(jittered(c, 0.1, seeded(1)) - c, noise)
    assert torch.equal(jittered(c, 0.0, seeded(1)), c)


MANY = Settings(attention_batch=4000)


def task(unchanged=0, c_views=1):
    """One wording, and sentences in which nothing has to change, for one layer."""
    layer = linear(6, 4)
    X_p, X_m = (torch.randn(1, 5, 6, generator=seeded(seed)) for seed in (1, 2))
    same = torch.randn(unchanged, 5, 6, generator=seeded(3))
    pairs = TokenPairs(torch.cat([X_p, same]), torch.cat([X_m, same]))
    return AttentionTask([layer], pairs, 1, torch.randn(c_views * len(pairs), 3, generator=seeded(4)))


def new_hypernet():
    return Hypernet(HypernetConfig(3, (TargetLayer("only", 6, 4),), rank=1, hidden=2), seeded(0))


def test_a_network_that_changes_nothing_has_the_loss_of_its_place_on_the_trajectory():
    """g^2 on average: half of the samples at 1, the others all along the way, where it is a third."""
    assert task().loss(new_hypernet(), MANY, seeded(0)).item() == pytest.approx(0.5 + 0.5 / 3, abs=0.02)


def test_half_of_the_samples_are_plain_wordings():
    assert task(unchanged=7).loss(new_hypernet(), MANY, seeded(0)).item() == pytest.approx(0.25 + 0.25 / 3, abs=0.02)


def test_every_view_of_a_wording_is_drawn(monkeypatch):
    several, seen = task(unchanged=2, c_views=3), []
    network = new_hypernet()
    monkeypatch.setattr(network, "forward", lambda c, step: seen.append(c) or Hypernet.forward(network, c, step))
    several.loss(network, replace(MANY, attention_batch=200, jitter=0.0), seeded(0))
    assert len({tuple(row) for row in seen[0].tolist()}) == 9


def test_the_generator_decides_the_loss():
    first, again, other = (task(3, 2).loss(new_hypernet(), Settings(), seeded(seed)).item() for seed in (0, 0, 1))
    assert first == again != other


# What H learns


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A tiny SD model and a hypernet eraser on it."""
    model, folder = tiny_model(), tmp_path_factory.mktemp("attention")
    settings = replace(TINY, steps=300, basis=16, hidden=32, attention_batch=32, sentences=60, learning_rate=8e-3)
    request = Request("cat -> tree", "", folder, "eraser", folder, settings, preview_every=0, checkpoint_every=0)
    with torch.inference_mode():
        return model, train_erasure(model, WordClip(), request, Reports()).trained


@pytest.mark.parametrize("template", TEMPLATES["object"][:6])
def test_keys_and_values_of_an_erased_prompt_become_those_of_its_mapping(erased, template):
    model, eraser = erased
    texts = fill(template, "cat"), fill(template, "tree")
    given = [encode(WordClip(), text) for text in texts]
    pairs = token_pairs(WordClip(), [texts], {prompt.text: prompt.conditioning[0][0][0] for prompt in given})
    layers = eraser.hypernet(given[0].c.unsqueeze(0), 300)
    for layer, factors in zip(eraser.hypernet.config.layers, layers, strict=True):
        module = model.model.diffusion_model.get_submodule(layer.name)
        before, wanted = module(pairs.erased), module(pairs.mapping)
        after = before + lowrank_delta(pairs.erased, factors)
        assert (after - wanted).norm() < 0.25 * (before - wanted).norm()


def test_other_prompts_keep_theirs(erased):
    _, eraser = erased
    held_out = retain_split("", (("cat", "tree"),)).held_out
    cats, others = (
        delta_norm(eraser.hypernet(torch.stack([encode(WordClip(), text).c for text in texts]), 300)).median()
        for texts in ([fill(template, "cat") for template in TEMPLATES["object"]], held_out)
    )
    assert others < 0.4 * cats

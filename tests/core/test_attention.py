"""The attention task: which token becomes which, what the layers have to change, and that H learns it."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from core_parts import LAYERS, TinyClip, WordClip, network_of, normal, seeded

from unhype.hypernet.factors import Factors, delta_norm, lowrank_delta
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.targets import TargetLayer, family_by_key
from unhype.training.draws import jittered
from unhype.training.encode import encode, encode_prompts
from unhype.training.loop import new_state, train
from unhype.training.name_tokens import ids_of_states
from unhype.training.prompts import TEMPLATES, Phrase, fill, phrasings, retain_split
from unhype.training.retention import Retention
from unhype.training.settings import Settings
from unhype.training.tasks.attention import (
    AttentionTask,
    PairedLayer,
    TokenPairs,
    align,
    attention_loss,
    changes_of,
    token_pairs,
    vector_pairs,
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


def test_a_textual_inversion_is_an_id_of_its_own():
    vector = torch.ones(3)
    clip = SimpleNamespace(tokenize=lambda text: {"l": [[(1, 1.0), (vector, 1.0)], [(2, 0.5), (vector, 1.0)]]})
    ((first, own, second, again),) = ids_of_states(clip, "any", 4)
    assert (first, second) == (1, 2)
    assert own == again


# Token states, laid side by side


STATES = {
    "erased": torch.arange(6.0).view(3, 2),
    "mapping": torch.arange(10.0, 14.0).view(2, 2),
    "long": torch.arange(20.0, 30.0).view(5, 2),
}


def test_without_ids_the_tokens_are_paired_in_their_order():
    pairs = token_pairs(TinyClip(), [Phrase(0, "erased", "mapping"), Phrase(0, "long", "erased")], STATES)
    assert len(pairs) == 2
    assert pairs.erased.shape == pairs.mapping.shape == (2, 5, 2)
    assert torch.equal(pairs.erased[0], torch.cat([STATES["erased"], torch.zeros(2, 2)]))
    assert torch.equal(pairs.erased[1], STATES["long"])
    assert pairs.mapping[0].tolist() == [[10, 11], [12, 13], [12, 13], [0, 0], [0, 0]]
    assert pairs.mapping[1].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]


def test_ids_of_another_length_than_the_states_are_not_trusted():
    clip = SimpleNamespace(tokenize=lambda text: {"l": [[(1, 1.0), (2, 1.0)]]})
    without, distrusted = (token_pairs(one, [Phrase(0, "erased", "mapping")], STATES) for one in (TinyClip(), clip))
    assert torch.equal(distrusted.mapping, without.mapping)


def test_with_ids_the_states_follow_the_alignment():
    clip = WordClip()
    texts = "a cat in the house", "a fire engine in the house"
    states = {text: encode(clip, text).conditioning[0][0][0] for text in texts}
    pairs = token_pairs(clip, [Phrase(0, *texts)], states)
    assert torch.equal(pairs.erased[0], states[texts[0]])
    own = align(*(ids_of_states(clip, text, len(states[text]))[0] for text in texts))
    assert own[:6] == [0, 1, 2, 4, 5, 6]
    assert torch.equal(pairs.mapping[0], states[texts[1]][own])


def two_tokenizers(first):
    """A CLIP whose two tokenizers give a word an id each; the first's states are `first` tokens, padded with 0."""

    def tokenize(text):
        words = [(len(word), 1.0) for word in text.split()]
        return {"l": [[*words, *[(0, 1.0)] * (first - len(words))]], "t5xxl": [words]}

    return SimpleNamespace(tokenize=tokenize)


def test_of_two_tokenizers_the_one_of_the_states_counts():
    """Flux.1: the pooled embedding is CLIP-L's and the states are T5's."""
    states = {
        text: normal(len(text.split()), 2, seed=n) for n, text in enumerate(("a cat in b", "a tree at home in b"))
    }
    pairs = token_pairs(two_tokenizers(7), [Phrase(0, *states)], states)
    assert torch.equal(pairs.mapping[0], states["a tree at home in b"][[0, 1, 4, 5]])


def test_states_of_two_encoders_behind_each_other_are_paired_each_for_itself():
    """Stable Diffusion 3: the states of the CLIPs, and behind them T5's."""
    states = {text: normal(7 + len(text.split()), 2, seed=n) for n, text in enumerate(("a cat b", "a tree at home b"))}
    pairs = token_pairs(two_tokenizers(7), [Phrase(0, *states)], states)
    assert torch.equal(pairs.mapping[0], states["a tree at home b"][[0, 1, 4, 5, 6, 6, 6, 7, 8, 11]])


def test_pooled_embeddings_are_pairs_of_one_token():
    vectors = {"a": torch.ones(3), "b": torch.zeros(3)}
    pairs = vector_pairs([Phrase(0, "a", "b"), Phrase(0, "a", "a")], vectors)
    assert pairs.erased.tolist() == [[[1.0] * 3]] * 2
    assert pairs.mapping.tolist() == [[[0.0] * 3], [[1.0] * 3]]


# What the layers have to change, and the loss


class Casting(torch.nn.Linear):
    """A layer that casts its weight to its input's type, as quantised ones of the host do."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_changes_are_those_of_the_layers_whatever_their_dtype(dtype):
    layers = [network_of([layer]).get_submodule(layer.name).to(dtype) for layer in LAYERS]
    X_p, X_m = normal(2, 5, 6, seed=7), normal(2, 5, 6, seed=8)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02 if dtype == torch.float16 else 0.15
    for layer, change in zip(layers, changes_of(layers, X_p, X_m), strict=True):
        assert change.dtype == torch.float32
        assert not change.requires_grad
        torch.testing.assert_close(change, (X_m - X_p) @ layer.weight.float().T, rtol=0, atol=tolerance)


def test_a_weight_of_eight_bits_is_left_to_its_layer():
    layer = network_of(LAYERS[:1], Casting).get_submodule(LAYERS[0].name).to(torch.float8_e4m3fn)
    X_p, X_m = normal(2, 5, 6, seed=7), normal(2, 5, 6, seed=8)
    (change,) = changes_of([layer], X_p, X_m)
    torch.testing.assert_close(change, (X_m - X_p) @ layer.weight.float().T, rtol=1e-4, atol=1e-4)


def test_the_loss_by_hand():
    X_p = torch.eye(2).unsqueeze(0)
    changes = [torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])] * 2
    double = Factors(torch.eye(2).unsqueeze(0), 2 * torch.eye(2).unsqueeze(0))
    nothing = Factors(torch.eye(2).unsqueeze(0), torch.zeros(1, 2, 2))
    # First layer: [[2, 0], [0, 2]] - 0.5 [[1, 2], [3, 4]] = [[1.5, -1], [-1.5, 0]], squares 5.5 over a scale of 2.
    # Second layer: no delta, which leaves [[0.5, 1], [1.5, 2]], squares 7.5 over 1.
    found = attention_loss([double, nothing], [X_p] * 2, changes, torch.tensor([0.5]), [2.0, 1.0])
    assert found.tolist() == [(5.5 / 2 + 7.5) / 2]


def test_the_loss_is_zero_where_the_delta_is_what_has_to_change_and_nowhere_else():
    X_p, g = normal(3, 5, 6), torch.tensor([1.0, 0.5, 0.25])
    factors = Factors(normal(3, 2, 6, seed=1), normal(3, 4, 2, seed=2))
    changes = [lowrank_delta(X_p, factors) / g.view(3, 1, 1)]
    assert attention_loss([factors], [X_p], changes, g, [1.0]).max() < 1e-9
    for A, B, place in ((1.01, 1.0, g), (1.0, 0.99, g), (1.0, 1.0, g * 1.01)):
        moved = [Factors(factors.A * A, factors.B * B)]
        assert attention_loss(moved, [X_p], changes, place, [1.0]).min() > 1e-5


def test_jitter_is_a_share_of_the_spread():
    c = normal(50, 400) * 3
    noise = jittered(c, 0.1, seeded(1)) - c
    assert noise.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(jittered(c, 0.1, seeded(1)) - c, noise)
    assert torch.equal(jittered(c, 0.0, seeded(1)), c)


MANY = Settings(attention_batch=4000)


def task(unchanged=0, candidates=1, settings=MANY):
    """One wording, and sentences in which nothing has to change, for one layer."""
    layer = TargetLayer("only", 6, 4)
    same = normal(unchanged, 5, 6, seed=3)
    pairs = TokenPairs(*(torch.cat([normal(1, 5, 6, seed=seed), same]) for seed in (1, 2)))
    c = normal(candidates, len(pairs), 3, seed=4)
    return AttentionTask([PairedLayer(network_of([layer]).only, pairs, pairs.erased[0])], 1, c, settings)


def new_hypernet():
    return Hypernet(HypernetConfig(3, (TargetLayer("only", 6, 4),), rank=1, hidden=2), seeded(0))


def test_a_network_that_changes_nothing_has_the_loss_of_its_place_on_the_trajectory():
    """g^2 on average: half of the samples at 1, the others all along the way, where it is a third."""
    assert task().loss(new_hypernet(), seeded(0)).item() == pytest.approx(0.5 + 0.5 / 3, abs=0.02)


def test_half_of_the_samples_are_plain_wordings():
    assert task(unchanged=7).loss(new_hypernet(), seeded(0)).item() == pytest.approx(0.25 + 0.25 / 3, abs=0.02)


def test_every_candidate_of_a_wording_is_drawn(monkeypatch):
    several = task(unchanged=2, candidates=3, settings=replace(MANY, attention_batch=200, jitter=0.0))
    network, drawn = new_hypernet(), []
    monkeypatch.setattr(network, "forward", lambda c, step: drawn.append(c) or Hypernet.forward(network, c, step))
    several.loss(network, seeded(0))
    assert {tuple(row) for row in drawn[0].tolist()} == {tuple(row) for row in several.c.flatten(0, 1).tolist()}


def test_padding_of_zeros_costs_nothing(monkeypatch):
    plain = task(unchanged=2)
    (layer,) = plain.layers
    sides = layer.pairs.erased, layer.pairs.mapping
    padded = replace(layer, pairs=TokenPairs(*(torch.cat([side, torch.zeros(3, 9, 6)], 1) for side in sides)))
    tokens = []
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda layer, x: tokens.append(x.shape[1]) or x @ layer.weight.T)
    losses = [own.loss(new_hypernet(), seeded(0)) for own in (plain, replace(plain, layers=[padded]))]
    torch.testing.assert_close(losses[0], losses[1])  # sums over another number of rows may round differently
    assert set(tokens) == {5}


def test_each_layer_learns_from_its_own_input():
    """The pooled embedding for one, the states behind a norm for the other."""
    layers, norm = [TargetLayer("tokens", 6, 4), TargetLayer("vector", 3, 4)], torch.nn.LayerNorm(6)
    network = network_of(layers)
    pairs, vectors = (TokenPairs(normal(2, *shape, seed=5), normal(2, *shape, seed=6)) for shape in ((5, 6), (1, 3)))
    paired = [
        PairedLayer(network.tokens, pairs, pairs.erased[0], (norm,)),
        PairedLayer(network.vector, vectors, vectors.erased[0]),
    ]
    X, changes = AttentionTask(paired, 2, normal(1, 2, 3), Settings()).batch(torch.tensor([1]))
    torch.testing.assert_close(X[0], norm(pairs.erased[1:]))
    torch.testing.assert_close(changes[0], (norm(pairs.mapping[1:]) - norm(pairs.erased[1:])) @ network.tokens.weight.T)
    assert torch.equal(X[1], vectors.erased[1:])
    torch.testing.assert_close(changes[1], (vectors.mapping - vectors.erased)[1:] @ network.vector.weight.T)


def test_the_generator_decides_the_loss():
    first, again, other = (task(3, 2, Settings()).loss(new_hypernet(), seeded(seed)).item() for seed in (0, 0, 1))
    assert first == again != other


# What H learns

CAT = (("cat", "tree"),)


@pytest.fixture(scope="module")
def learnt():
    """The layers of a network, and a hypernet that was trained on them."""
    layers = tuple(TargetLayer(f"{n}.to_{kind}", 32, 8) for n in range(2) for kind in "kv")
    network, retain, phrases = network_of(layers), retain_split("", CAT), phrasings(CAT, "object")
    texts = ["", *(text for phrase in phrases for text in (phrase.prompt, phrase.mapping))]
    train_on, held_out = retain.train[::8], retain.held_out[::4]
    settings = Settings(steps=100, hidden=32, attention_batch=16, retain_batch=16, learning_rate=8e-3, watch_every=50)
    prompts = encode_prompts(WordClip(), texts, train_on, held_out, {}, family_by_key("sd15"), lambda *_: None)
    states = {text: prompts.encoded[text].conditioning[0][0][0] for text in texts}
    modules = [network.get_submodule(layer.name) for layer in layers]
    wordings = [phrase.prompt for phrase in phrases]
    pairs = token_pairs(WordClip(), phrases, states)
    attention = AttentionTask(
        [PairedLayer(module, pairs, pairs.erased[0]) for module in modules],
        len(phrases),
        prompts.candidates(wordings),
        settings,
    )
    retention = Retention(*(prompts.candidates(part).flatten(0, 1) for part in (train_on, held_out, wordings)))
    hypernet = Hypernet(HypernetConfig(WordClip.WIDTH, layers, hidden=32), seeded(0))
    state = new_state(hypernet, settings, seeded(1))
    assert train(state, attention, retention, settings, []) == "finished"
    return modules, state, held_out


@pytest.mark.parametrize("template", TEMPLATES["object"][:6])
def test_keys_and_values_of_an_erased_prompt_become_those_of_its_mapping(learnt, template):
    modules, state, _ = learnt
    phrase = Phrase(0, fill(template, "cat"), fill(template, "tree"))
    given = {text: encode(WordClip(), text) for text in (phrase.prompt, phrase.mapping)}
    pairs = token_pairs(WordClip(), [phrase], {text: own.conditioning[0][0][0] for text, own in given.items()})
    layers = state.hypernet(given[phrase.prompt].c.unsqueeze(0), 300)
    for module, factors in zip(modules, layers, strict=True):
        before, wanted = module(pairs.erased), module(pairs.mapping)
        after = before + lowrank_delta(pairs.erased, factors)
        assert (after - wanted).norm() < 0.35 * (before - wanted).norm()


def test_other_prompts_keep_theirs(learnt):
    _, state, held_out = learnt
    cats, others = (
        delta_norm(state.hypernet(torch.stack([encode(WordClip(), text).c for text in texts]), 300)).median()
        for texts in ([fill(template, "cat") for template in TEMPLATES["object"]], held_out)
    )
    assert others < 0.4 * cats


def test_the_loss_falls_and_the_retention_error_is_noted(learnt):
    _, state, _ = learnt
    assert len(state.losses) == 100
    assert sum(state.losses[-20:]) < 0.5 * sum(state.losses[:20])
    assert [step for step, _ in state.retention] == [50, 100]

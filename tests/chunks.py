"""Prompts of several chunks for the tests: an eraser of two concepts, and texts that it detects or doesn't."""

from dataclasses import replace
from typing import NamedTuple

import comfy.samplers
import torch
from tiny import CONTEXT, POOLED, TOKENS, detector_scoring, noted_calls, replay, sample, seeded, tiny_eraser
from torch.nn.functional import linear

import nodes
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import TextEncoder
from unhype.hypernet.regressor import PooledRegressor
from unhype.training.regressor_fit import full_rank_maps


def random_regressor(widths=(CONTEXT,), seed=11):
    """A regressor that gives every text another embedding, with weights as a file holds them."""
    generator = seeded(seed)
    features = 2 * sum(widths)
    weight = (torch.randn(1, POOLED, features, generator=generator) / CONTEXT**0.5).half().float()
    bias = (torch.randn(1, len(widths), POOLED, generator=generator) * 0.1).half().float()
    return PooledRegressor(tuple(widths), *full_rank_maps(weight, len(widths)), bias, torch.zeros(1, features + 1))


REGRESSOR = random_regressor()


def text(seed, tokens=TOKENS):
    """The CONDITIONING of a made-up text whose pooled embedding is the regressor's estimate."""
    cross = torch.randn(1, tokens, CONTEXT, generator=seeded(seed))
    return [[cross, {"pooled_output": estimate(cross[0]).unsqueeze(0)}]]


def tokens_of(conditioning):
    return conditioning[0][0][0]


def estimate(tokens):
    """The regressor's embedding of tokens (n, in), (POOLED,)."""
    return REGRESSOR.candidates(tokens)[0]


def embedding_of(conditioning):
    return estimate(tokens_of(conditioning))


class Texts(NamedTuple):
    """An eraser of two concepts, a text that names each, and two that name none."""

    eraser: Eraser
    cat: list
    dog: list
    boat: list
    lamp: list


def texts_for(model):
    cat, dog, boat, lamp = (text(seed) for seed in (20, 21, 22, 23))
    c = torch.stack([embedding_of(conditioning) for conditioning in (cat, dog, boat, lamp)])
    detector = detector_scoring(c, torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0], [-1.0, 0.5]])).half().float()
    base = tiny_eraser(model, concepts=(("cat", "tree"), ("dog", "car")), detector=detector)
    encoder = TextEncoder(TOKENS, [CONTEXT], 1, POOLED)
    record = replace(base.record, text_encoder=encoder)
    return Texts(
        replace(base, record=record, regressor=REGRESSOR, concept_embeddings=c[:2].half().float()), cat, dog, boat, lamp
    )


def without_regressor(eraser):
    """The eraser as where the regressor could not be fitted."""
    record = replace(eraser.record, text_encoder=TextEncoder(TOKENS))
    return replace(eraser, regressor=None, record=record)


NEGATIVE = text(3)


def concat(*conditionings):
    together, *others = conditionings
    for other in others:
        (together,) = nodes.ConditioningConcat().concat(together, other)
    return together


def with_another_prompt(model, conditioning):
    """A clone that encodes another prompt in every step of the sampling, as core's legacy Perp-Neg does."""

    def more_guidance(args):
        entry = {"cross_attn": conditioning[0][0], "model_conds": {}, "uuid": 0, **conditioning[0][1]}
        x = args["input"]
        encoded = comfy.samplers.encode_model_conds(args["model"].extra_conds, [entry], x, x.device, "positive")
        (other,) = comfy.samplers.calc_cond_batch(args["model"], [encoded], x, args["timestep"], args["model_options"])
        return args["cond"] + other

    clone = model.clone()
    clone.set_model_sampler_cfg_function(more_guidance)
    return clone


def on_tokens(model, eraser, call, deltas):
    """The base model's output if, in the rows of each prompt, given tokens get the delta of given c.

    deltas: (conditioning, [(start, stop, c)]) pairs. The deltas are added by hooks, one token at a time.
    """
    base = model.model.diffusion_model
    handles = []
    for number, layer in enumerate(eraser.hypernet.config.layers):

        def add(_, inputs, y, number=number):
            (x,) = inputs
            y = y.clone()
            for conditioning, spans in deltas:
                length = tokens_of(conditioning).shape[0]
                for start, stop, c in spans:
                    own = eraser.factors(c.unsqueeze(0))[number]
                    delta = linear(linear(x, own.A[0]), own.B[0])
                    for token in range(x.shape[1]):
                        if start <= token % length < stop:
                            rows = call.reads(conditioning)
                            y[rows, token] = y[rows, token] + delta[rows, token]
            return y

        handles.append(base.get_submodule(layer.name).register_forward_hook(add))
    try:
        return replay(model, call)
    finally:
        for handle in handles:
            handle.remove()


def check(model, eraser, calls, *deltas):
    """Every call gives each prompt the deltas of its chunks, and all other rows the base model, bit for bit."""
    assert calls
    effect = 0.0
    for call in calls:
        base, expected = replay(model, call), on_tokens(model, eraser, call, deltas)
        steered = torch.zeros(len(base), dtype=torch.bool)
        for conditioning, _ in deltas:
            steered |= call.reads(conditioning)
        change = (expected - base).abs().max().item()
        effect = max(effect, change)
        assert torch.allclose(call.output[steered], expected[steered], rtol=0, atol=1e-4 * change + 1e-5)
        assert torch.equal(call.output[~steered], base[~steered])
    assert effect > 1e-3 or not deltas


def run(model, eraser, positive, negative=NEGATIVE, unknown="base", **options):
    """The calls of the network while `positive` is sampled with the eraser on."""
    with noted_calls(apply_erasure(model, eraser, unknown=unknown)) as (clone, calls):
        sample(clone, positive, negative, steps=2, **options)
    return calls


def whole(conditioning):
    """The delta of a one-chunk prompt on all of its tokens, for `check`."""
    return conditioning, [(0, tokens_of(conditioning).shape[0], embedding_of(conditioning))]


def is_base(model, eraser, positive, **options):
    found = sample(apply_erasure(model, eraser, **options), positive, NEGATIVE)
    return torch.equal(found, sample(model, positive, NEGATIVE))

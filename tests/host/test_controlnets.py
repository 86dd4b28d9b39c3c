"""A ControlNet reads no erased text, in its own layers, which get no deltas."""

import pytest
import torch
from chunks import NEGATIVE, concat
from prompt_parts import control_net, controlled
from text_ways import calls_function
from tiny import TOKENS, sample

from unhype.hypernet.patch import apply_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture
def read(monkeypatch):
    """The text that a ControlNet reads in the last sampling, by call: (rows, tokens, in)."""
    contexts = []
    network = type(control_net().control_model)
    forward = network.forward

    def noting(self, x, hint, timesteps, context, *args, **kwargs):
        contexts.append(context)
        return forward(self, x, hint, timesteps, context, *args, **kwargs)

    monkeypatch.setattr(network, "forward", noting)
    return contexts


def test_erased_tokens_are_zeros_for_the_control_net(model, texts, read):
    positive, negative = controlled(concat(texts.boat, texts.cat), concat(NEGATIVE, NEGATIVE))
    sample(apply_erasure(model, texts.eraser), positive, negative, pictures=1, steps=1)
    (context,) = read  # one batch, as without an eraser
    assert torch.equal(context[0], negative[0][0][0])
    assert torch.equal(context[1, :TOKENS], texts.boat[0][0][0])
    assert not context[1, TOKENS:].any()


def test_text_for_the_control_net_alone_is_looked_at_too(model, texts, read):
    positive, negative = controlled(texts.boat, NEGATIVE)
    for text, erased in ((texts.cat, True), (texts.lamp, False)):
        read.clear()
        own = {"cross_attn_controlnet": text[0][0], "pooled_output_controlnet": text[0][1]["pooled_output"]}
        entries = [[tokens, {**values, **own}] for tokens, values in positive]
        sample(apply_erasure(model, texts.eraser), entries, negative, pictures=1, steps=1)
        seen = [row for context in read for row in context]
        assert any(torch.equal(row, text[0][0][0]) for row in seen) != erased


def test_harmless_prompts_with_a_control_net_stay_as_they_are(model, texts, read):
    positive, negative = controlled(texts.boat, NEGATIVE)
    found = sample(apply_erasure(model, texts.eraser), positive, negative)
    assert torch.equal(found, sample(model, positive, negative))


def test_a_conditioning_encoded_while_sampling_is_covered(model, texts, read):
    positive, negative = controlled(texts.boat, NEGATIVE)
    sample(calls_function(apply_erasure(model, texts.eraser), texts.cat), positive, negative, steps=1)
    seen = [row for context in read for row in context]
    assert not any(torch.equal(row, texts.cat[0][0][0]) for row in seen)

"""Encoding the prompts of a run: what is kept of them, and the candidate embeddings that come of it."""

from types import SimpleNamespace

import pytest
import torch
from core_parts import CONTEXT, POOLED, TOKENS, NotingClip, PoolingClip, TinyClip, normal

from unhype.hypernet.embedding import mean_of_tokens
from unhype.hypernet.families import TOKENS as FROM_TOKENS
from unhype.hypernet.record import TextEncoder
from unhype.hypernet.regressor import chunk_features
from unhype.hypernet.targets import family_by_key
from unhype.training.encode import MissingEmbeddingError, encode, encode_prompts, skipping_last_layer
from unhype.training.regressor_fit import RANK, r_squared

SD, WAN = family_by_key("sd15"), family_by_key("wan")


def nothing(done, total):
    """Progress that nobody wants to know."""


def test_an_encoded_prompt_is_a_copy_that_gradients_may_go_through():
    with torch.inference_mode():
        given = TinyClip().encode_from_tokens_scheduled("a cat")
    clip = SimpleNamespace(tokenize=str, encode_from_tokens_scheduled=lambda _: given)
    prompt = encode(clip, "a cat")
    ((states, entry),) = prompt.conditioning
    assert prompt.text == "a cat"
    assert torch.equal(prompt.c, given[0][1]["pooled_output"][0])
    assert torch.equal(states, given[0][0])
    assert not any(tensor.is_inference() for tensor in (prompt.c, states, entry["pooled_output"]))


@pytest.mark.parametrize("entry", [{}, {"pooled_output": None}, {"pooled_output": torch.zeros(1, 3)}], ids=str)
def test_an_encoder_without_a_pooled_embedding_is_refused(entry):
    clip = SimpleNamespace(tokenize=str, encode_from_tokens_scheduled=lambda _: [[normal(1, 4, 3), entry]])
    with pytest.raises(MissingEmbeddingError, match="gives no pooled prompt embedding"):
        encode(clip, "a cat")


def test_where_there_is_none_the_mean_of_the_tokens_is_c():
    prompt = encode(TinyClip(), "a cat", FROM_TOKENS)
    assert torch.equal(prompt.c, mean_of_tokens(prompt.conditioning[0][0])[0])


def test_clip_skip_is_encoded_only_where_it_gives_other_states():
    assert skipping_last_layer(TinyClip()) is None
    clip = PoolingClip()
    skipping = skipping_last_layer(clip)
    assert (clip.layer, skipping.layer) == (-1, -2)


TEXTS = [f"text {n}" for n in range(400)]


@pytest.fixture(scope="module")
def prompts():
    with torch.no_grad():
        return encode_prompts(PoolingClip(), ["", "drawn"], TEXTS[:300], TEXTS[300:], {}, SD, nothing)


def test_both_layers_give_candidates_of_the_same_pooled_embedding(prompts):
    assert prompts.r2 > 0.5
    assert len(prompts.features) == 2
    pooled, usual, skipped = prompts.candidates(TEXTS[300:])
    assert torch.equal(pooled, torch.stack([encode(PoolingClip(), text).c for text in TEXTS[300:]]))
    assert r_squared(usual, pooled) > 0.5
    assert r_squared(skipped, pooled) > 0.5
    assert prompts.usual_candidates == 2
    tokens = encode(PoolingClip(-2), TEXTS[300]).conditioning[0][0][0]
    assert torch.equal(prompts.features[1][TEXTS[300]], chunk_features(tokens, (CONTEXT,)))


def test_token_states_are_kept_for_drawn_prompts_alone(prompts):
    assert prompts.encoded["drawn"].conditioning[0][0].shape == (1, TOKENS, CONTEXT)
    assert prompts.encoded[TEXTS[0]].conditioning == []


def test_the_record_describes_the_regressor(prompts):
    assert prompts.text_encoder == TextEncoder(TOKENS, [CONTEXT], 2, POOLED)
    small = prompts.compressed(normal(3, POOLED))
    assert small.text_encoder.rank == min(RANK, POOLED)
    assert small.encoded is prompts.encoded


def test_without_a_usable_regressor_the_pooled_embedding_is_the_only_candidate():
    found = encode_prompts(TinyClip(), [""], TEXTS[:60], TEXTS[60:90], {}, SD, nothing)
    assert found.regressor is None
    assert found.r2 < 0.5
    assert found.candidates(TEXTS[:3]).shape == (1, 3, POOLED)
    assert found.usual_candidates == 1
    assert found.text_encoder == TextEncoder(TOKENS)
    assert found.compressed(normal(3, POOLED)) is found


def test_families_whose_c_comes_from_the_tokens_get_no_regressor():
    found = encode_prompts(PoolingClip(), [""], TEXTS[:4], TEXTS[4:6], {}, WAN, nothing)
    assert found.regressor is None
    assert found.candidates(TEXTS[:3]).shape == (1, 3, CONTEXT)
    assert found.chunk > 10_000, "a prompt of any length is one chunk"


def test_two_encoders_side_by_side_get_a_map_each():
    class TwoEncoders(PoolingClip):
        def encode_from_tokens_scheduled(self, tokens):
            ((cross, entry),) = super().encode_from_tokens_scheduled(tokens)
            return [[torch.cat([cross, 2 * cross], -1), entry]]

    family = SimpleNamespace(embedding="pooled", encoders=(CONTEXT, CONTEXT))
    found = encode_prompts(TwoEncoders(), [""], TEXTS[:300], TEXTS[300:], {}, family, nothing)
    assert found.regressor.widths == (CONTEXT, CONTEXT)
    assert found.usual_candidates == 3


def test_every_text_is_encoded_once():
    clip = NotingClip()
    encode_prompts(clip, ["", "cat", "dog"], ["dog", "owl"], ["owl", "fox"], {}, SD, nothing)
    for _ in range(3):  # an empty prompt also shows the length of a chunk, and that there is no other layer
        clip.texts.remove("")
    assert clip.texts == ["", "cat", "dog", "owl", "fox"]


def test_an_interrupt_comes_between_texts():
    calls = []

    def report(done, total):
        calls.append((done, total))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_prompts(PoolingClip(), [""], TEXTS[:40], TEXTS[40:50], {}, SD, report)
    begun, (none, total), (done, same) = calls
    assert begun == (0, 1)
    assert none == 0 < done < total == same
    texts = {"", *TEXTS[:50]}
    each, rest = divmod(total - sum(map(len, texts)), len(texts))
    assert each > 0 == rest, "longer texts take longer"

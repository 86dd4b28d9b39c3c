"""Many prompts at once through the host's own text encoders: the same as one by one, or one by one."""

import itertools
import logging
import re

import comfy.hooks
import pytest
import torch
from encoders import NAMES, POOLING, WIDTH, encoder
from safetensors.torch import save_file
from tiny import seeded

from unhype.hypernet.families import POOLED, TOKENS
from unhype.training import encode_batch
from unhype.training.encode import one_by_one, skipping_last_layer
from unhype.training.encode_batch import in_batches
from unhype.training.row_memory import RowMemory
from unhype.training.token_rows import row_key

TEXTS = [f"a photo of {thing} and {other}" for thing, other in itertools.permutations(("a cat", "two dogs", "it"), 2)]
TEXTS += [f"number {n}, " + "very " * (n % 6) + "small" for n in range(20)]
TEXTS += ["", "cat", "a (cat:1.3) in [the] (((street)))", "(dog:0.5)", "a cat BREAK a tree", "cat " * 150]
TEXTS += ["a picture of embedding:mine", "a (embedding:mine:1.2) in the street", "embedding:absent"]
# The largest share of a token's state by which it may differ; with many kinds of encoders nothing differs at all.
TOLERANCE = 5e-6


@pytest.fixture(autouse=True)
def no_gradients():
    """As training encodes."""
    with torch.no_grad():
        yield


@pytest.fixture
def embeddings(tmp_path):
    """A folder with a textual inversion of two vectors."""
    save_file({"emb_params": torch.randn(2, WIDTH, generator=seeded(1))}, tmp_path / "mine.safetensors")
    return str(tmp_path)


@pytest.fixture
def durations(monkeypatch):
    """Sets how long the three ways of a trial seem to take: one by one, a row at a time, in batches."""

    def seem(*seconds):
        times = [time for took in seconds for time in (0.0, took)]
        monkeypatch.setattr(encode_batch, "_clock", iter(times).__next__)

    seem(3, 2, 1)
    return seem


def versions_of(clip, source=POOLED):
    skipping = skipping_last_layer(clip) if source == POOLED else None
    return [clip] if skipping is None else [clip, skipping]


def source_of(name):
    return POOLED if name in POOLING else TOKENS


def nothing(done, total):
    """Progress that nobody wants to know."""


def batched(versions, source=POOLED, texts=TEXTS, on_progress=nothing):
    return list(in_batches(versions, texts, source, on_progress))


def singly(versions, source=POOLED, texts=TEXTS):
    return list(one_by_one(versions, texts, source, nothing))


def tensors(prompts):
    """The tensors of prompts in each version, and what else their conditionings hold."""
    for versions in prompts:
        for prompt in versions:
            ((states, entry),) = prompt.conditioning
            yield from (prompt.c, states, *(value for value in entry.values() if torch.is_tensor(value)))


def described(prompts):
    """Texts, and names and shapes of what their conditionings hold."""
    return [
        (prompt.text, [(name, value if value is None else value.shape) for name, value in entry.items()])
        for versions in prompts
        for prompt in versions
        for _, entry in prompt.conditioning
    ]


def check(found, expected):
    assert described(found) == described(expected)
    for own, theirs in zip(tensors(found), tensors(expected), strict=True):
        error = (own.double() - theirs.double()).norm(dim=-1)
        assert bool((error <= TOLERANCE * theirs.double().norm(dim=-1)).all())


def left_over(clip):
    """Names of what stands on the encoders' modules instead of their own forward."""
    return [name for name, module in clip.cond_stage_model.named_modules() if "forward" in module.__dict__]


def passes_of(clip):
    """The rows of each pass through the networks of the inner encoders, from now on."""
    rows = []
    for name, module in clip.cond_stage_model.named_modules():
        if re.search(r"(?<!\d\.)(layers?|block)\.0$", name):
            module.register_forward_pre_hook(
                lambda _, args, given: rows.append(len((*args, *given.values())[0])), with_kwargs=True
            )
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_prompts_come_out_as_one_by_one(name, embeddings, durations, caplog):
    clip, source = encoder(name, embeddings), source_of(name)
    versions = versions_of(clip, source)
    expected = singly(versions, source)
    passes = passes_of(clip)
    with caplog.at_level(logging.INFO, "unhype"):
        found = batched(versions, source)
    check(found, expected)
    assert max(passes) > 2
    assert "UnHype" not in caplog.text
    assert left_over(clip) == []


def test_a_prompt_of_any_length_and_every_kind_of_token_is_among_them(embeddings):
    clip = encoder("sd15", embeddings)
    tokens = [clip.tokenize(text)["l"] for text in TEXTS]
    assert max(len(chunks) for chunks in tokens) > 1
    flat = [token for chunks in tokens for chunk in chunks for token in chunk]
    assert any(torch.is_tensor(token) for token, _ in flat)
    assert {weight for _, weight in flat} > {1.0, 1.3, 0.5}


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_two_layers_come_from_one_pass(name, durations):
    clip = encoder(name)
    versions, passes = versions_of(clip), passes_of(clip)
    assert len(versions) == 2
    run = []
    for some in (versions[:1], versions[1:], versions):
        rows = RowMemory(encode_batch._inner_encoders(clip), 64, encode_batch._room())
        rows.learn(encode_batch._first_of(encode_batch._calls(some, TEXTS, POOLED)), lambda _: None)
        run.append((rows.count, sum(passes), len(rows.known)))
        passes.clear()
    (count, ran, known), other, both = run
    assert count == ran > 30
    assert other == (count, ran, known)
    assert both == (count, ran, 2 * known)


def test_two_layers_come_from_one_pass_when_the_trial_has_the_first_prompt(durations):
    clip = encoder("sd15")
    versions, passes = versions_of(clip), passes_of(clip)
    texts = [min(TEXTS, key=len), *TEXTS]
    batched(versions, texts=texts)
    assert len(passes) < len(texts)


def test_rows_may_wait_for_one_layer_alone():
    last, early = versions_of(encoder("sd15"))
    rows = RowMemory(encode_batch._inner_encoders(last), 64, encode_batch._room())
    asked = [(last, "a cat"), (last, "a dog"), (early, "a dog"), (early, "a tree")]
    rows.learn([encode_batch._calls([version], [text], POOLED)[0][0] for version, text in asked], lambda _: None)
    with rows.answering():
        found = [singly([version], texts=[text])[0] for version, text in asked]
    check(found, [singly([version], texts=[text])[0] for version, text in asked])
    assert rows.count == 3


def test_equal_vectors_of_textual_inversions_are_one_row():
    one, same, other = (torch.randn(WIDTH, generator=seeded(seed)) for seed in (1, 1, 2))
    assert row_key([5, one]) == row_key([5, same]) != row_key([5, other])
    assert row_key([5, one]) != row_key([5, 6])


# What isn't batched


def fallen_back(versions, caplog, source=POOLED):
    """What the log says when prompts are encoded one by one."""
    expected = singly(versions, source)
    with caplog.at_level(logging.INFO, "unhype"):
        found = batched(versions, source)
    assert all(torch.equal(own, theirs) for own, theirs in zip(tensors(found), tensors(expected), strict=True))
    return [record.message for record in caplog.records if record.name == "unhype"]


def test_a_few_prompts_are_encoded_one_by_one(durations):
    versions = [encoder("sd15")]
    passes = passes_of(versions[0])
    assert len(batched(versions, texts=TEXTS[:8])) == 8
    assert set(passes) == {1}


def test_batches_that_are_slower_are_left(durations, caplog):
    durations(1, 2, 3)
    assert fallen_back([encoder("sd15")], caplog) == ["UnHype: encoding prompts one by one, which is fastest here."]


def test_rows_one_at_a_time_may_be_fastest(durations, caplog):
    durations(2, 1, 3)
    clip = encoder("minilm")
    passes = passes_of(clip)
    versions = versions_of(clip)
    found = batched(versions)
    many = passes.index(max(passes)) + 1
    assert set(passes[many + 1 :]) == {1}
    check(found, singly(versions))


def test_values_that_depend_on_the_batch_are_noticed(durations, caplog, monkeypatch):
    clip = encoder("sd15")
    network = clip.cond_stage_model.clip_l.transformer
    network.register_forward_hook(lambda _, __, outputs: (outputs[0] + 0.01 * outputs[0].mean(0), *outputs[1:]))
    durations(1, 2, 0)
    messages = fallen_back([clip], caplog)
    assert any("other values for 64 rows at once" in message for message in messages)


def test_an_encoder_that_works_without_its_inner_encoder_is_noticed(durations, caplog, monkeypatch):
    clip = encoder("sd15")

    def encode_token_weights(pairs):
        ids = torch.tensor([[token for token, _ in pairs["l"][0]]])
        embeds = clip.cond_stage_model.clip_l.transformer.get_input_embeddings()(ids)
        return embeds, embeds[:, 0]

    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", encode_token_weights)
    (message,) = fallen_back([clip], caplog)
    assert "does without the inner encoders" in message


def with_picture(clip, texts, monkeypatch):
    """Puts a picture among the tokens of these texts."""
    tokenize, network = clip.tokenize, clip.cond_stage_model.clip_l.transformer

    def changed(text):
        tokens = tokenize(text)
        if text in texts:
            tokens["l"][0][-1] = ({"type": "image", "data": torch.zeros(1, 8, 8, 3)}, 1.0)
        return tokens

    monkeypatch.setattr(clip, "tokenize", changed)
    monkeypatch.setattr(network, "preprocess_embed", lambda *_, **__: (torch.ones(1, WIDTH), None), raising=False)


def test_tokens_that_are_no_text_are_noticed(durations, caplog, monkeypatch):
    clip = encoder("sd15")
    with_picture(clip, TEXTS, monkeypatch)
    (message,) = fallen_back([clip], caplog)
    assert "tokens of the type dict" in message


def test_tokens_that_turn_up_late_end_the_batches(durations, caplog, monkeypatch):
    clip = encoder("sd15")
    with_picture(clip, [TEXTS[20]], monkeypatch)
    monkeypatch.setattr(encode_batch, "_WINDOW", 16)
    monkeypatch.setattr(encode_batch, "_some", lambda texts: (list(texts[:6]), list(texts[6:8])))
    expected, calls = singly([clip]), []
    with caplog.at_level(logging.INFO, "unhype"):
        found = batched([clip], on_progress=lambda *done: calls.append(done))
    check(found, expected)
    assert "tokens of the type dict" in caplog.text
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {len(TEXTS)}


@pytest.mark.parametrize("hooked", ["hooks", "schedule"])
def test_hooks_and_schedules_are_left_to_the_host(hooked, durations, caplog):
    clip = encoder("sd15").clone()
    if hooked == "hooks":
        clip.patcher.forced_hooks = comfy.hooks.HookGroup()
    else:
        clip.use_clip_schedule = True
    (message,) = fallen_back([clip], caplog)
    assert "one by one" in message


# Memory and interrupts


def test_a_batch_that_takes_too_much_memory_is_halved(durations):
    versions = versions_of(encoder("sd15"))
    expected, passes = singly(versions), []

    def small(_, args, given):
        passes.append(len(given["embeds"]))
        if len(given["embeds"]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    versions[0].cond_stage_model.clip_l.transformer.register_forward_pre_hook(small, with_kwargs=True)
    check(batched(versions), expected)
    assert max(passes) > 5
    assert 2 <= max(passes[-3:]) <= 5


def test_a_row_that_takes_too_much_memory_by_itself_is_an_error(durations):
    clip = encoder("sd15")
    expected = options_of(clip)

    def small(_, args, given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    durations(*[1] * 9)
    list(itertools.islice(in_batches([clip], TEXTS, POOLED, nothing), 1))
    clip.cond_stage_model.clip_l.transformer.register_forward_pre_hook(small, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        batched([clip])
    assert left_over(clip) == []
    assert options_of(clip) == expected


def options_of(clip):
    """What decides which layer the inner encoders give."""
    return [(module.layer, module.layer_idx) for module in encode_batch._inner_encoders(clip)]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("at", [0, 4, 10, "a batch"])
def test_an_interrupt_between_batches_leaves_nothing(name, at, durations, monkeypatch):
    monkeypatch.setattr(encode_batch, "_MOST_ROWS", 8)
    clip = encoder(name)
    versions, calls = versions_of(clip), []
    before = tuple(tensors(singly(versions, texts=TEXTS[:2])))

    def report(done, total):
        calls.append(done)
        assert 0 <= done <= total == len(TEXTS)
        if done > 0 if at == "a batch" else len(calls) > at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batched(versions, on_progress=report)
    assert calls == sorted(calls)
    assert left_over(clip) == []
    after = tensors(singly(versions, texts=TEXTS[:2]))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_nothing_stands_in_for_the_encoders_while_the_iterator_waits(durations):
    clip = encoder("sdxl")
    waiting = in_batches([clip], TEXTS, POOLED, nothing)
    for _ in range(3):
        next(waiting)
        assert left_over(clip) == []
    assert torch.equal(singly([clip], texts=["cat"])[0][0].c, singly([clip.clone()], texts=["cat"])[0][0].c)


def test_an_override_of_another_node_is_used_and_stays(durations):
    clip = encoder("sd15")
    inner = clip.cond_stage_model.clip_l
    forward, seen = inner.forward, []

    def noting(tokens):
        seen.append(len(tokens))
        return forward(tokens)

    inner.forward = noting
    batched([clip])
    assert inner.forward is noting
    assert max(seen) > 4


def test_few_rows_are_held_where_memory_is_small(durations, monkeypatch):
    clip = encoder("sd15")
    expected = singly([clip])
    monkeypatch.setattr(encode_batch, "_WINDOW_BYTES", 1.0)
    held = []
    forget = encode_batch.RowMemory.forget

    def noting(rows):
        held.append(len(rows.known))
        forget(rows)

    monkeypatch.setattr(encode_batch.RowMemory, "forget", noting)
    check(batched([clip]), expected)
    assert len(held) == 1 + -(-len(TEXTS) // encode_batch._TRIED)  # those of the trial, and of each window

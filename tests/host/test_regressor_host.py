"""The regressor in a whole run: the task and the detector get its candidates, and the file holds it."""

from dataclasses import replace

import pytest
import torch
from core_parts import CONTEXT, POOLED, TOKENS, NotingClip, PoolingClip, TinyClip
from runs import TINY, go, request_in
from tiny import tiny_model

from unhype.hypernet.files import load
from unhype.hypernet.record import TextEncoder
from unhype.training import run
from unhype.training.encode import encode
from unhype.training.prompts import TEMPLATES, fill, retain_split, sentences
from unhype.training.regressor_fit import RANK
from unhype.training.written import make_written

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

WORDINGS = [fill(template, "cat") for template in TEMPLATES["object"]]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains with a CLIP; returns the outcome, and the task and the retention that the loop was given."""

    def noting(clip, settings=TINY):
        given, loop = [], run.train

        def note(state, task, retention, *others):
            given.extend([task, retention])
            return loop(state, task, retention, *others)

        monkeypatch.setattr(run, "train", note)
        return go(tiny_model(), request_in(tmp_path, settings=settings), clip=clip), *given

    return noting


def test_every_candidate_of_a_prompt_is_trained_on_and_counts_for_the_detector(train):
    outcome, task, retention = train(PoolingClip(), replace(TINY, objective="direct"))
    training = outcome.eraser.record.training
    trained_on, held_out = training.retain_prompts
    candidates = 3  # the pooled embedding, and one from the tokens of either layer
    assert len(retention.train) == candidates * trained_on
    assert len(retention.held_out) == candidates * held_out
    assert len(task.samples.c) == len(task.samples.conds) == candidates * len(WORDINGS)
    assert {int(phrase) // len(WORDINGS) for phrase in task.samples.phrase} > {0}
    assert training.regressor_r2 > 0.5
    highest = outcome.eraser.detector(retention.held_out).view(candidates, held_out).amax(0)
    assert training.held_out_unchanged == pytest.approx((highest < 1).float().mean().item(), abs=0.01)


def test_the_attention_task_has_every_candidate_too(train):
    _, task, _ = train(PoolingClip())
    assert task.c.shape[::2] == (3, POOLED)
    assert task.c.shape[1] > task.wordings == len(WORDINGS)
    assert {len(layer.pairs) for layer in task.layers} == {task.c.shape[1]}


def test_the_file_holds_the_regressor_and_the_mean_wording_of_each_concept(train):
    outcome, *_ = train(PoolingClip())
    loaded = load(outcome.path)
    c = torch.stack([encode(PoolingClip(), text).c for text in WORDINGS])
    torch.testing.assert_close(loaded.concept_embeddings, c.mean(0, keepdim=True), rtol=1e-3, atol=1e-3)
    encoder = replace(loaded.record.text_encoder, neighbours=0)
    assert encoder == TextEncoder(TOKENS, [CONTEXT], 2, min(RANK, POOLED))
    assert loaded.record.text_encoder.neighbours == len(loaded.detector.neighbours.embeddings) > 0
    tokens = encode(PoolingClip(), "a photo of a cat").conditioning[0][0][0]
    (found,), (same,) = (eraser.regressor.candidates(tokens) for eraser in (loaded, outcome.eraser))
    assert torch.equal(found, same)


def test_where_tokens_do_not_give_the_pooled_embedding_there_is_no_regressor(train):
    outcome, task, _ = train(TinyClip())
    loaded = load(outcome.path)
    assert loaded.regressor is None
    assert replace(loaded.record.text_encoder, neighbours=0) == TextEncoder(TOKENS)
    assert len(task.c) == 1


def test_retained_prompts_that_name_an_erased_concept_are_not_encoded(model, ask):
    clip, erased = NotingClip(), (("elephant", "tree"),)
    go(model, ask("elephant -> tree", steps=1), clip=clip)
    wordings = {fill(template, "elephant") for template in TEMPLATES["object"]}
    retain = retain_split("", erased)
    named = sentences(erased, "object", retain.distractors, TINY.sentences)
    written = make_written(erased, "object", retain)
    expected = wordings | {phrase.prompt for phrase in named} | {*written.named[0]}
    expected |= {text for text in written.nouns if "elephant" in text}  # of a word that means something else
    assert {text for text in clip.texts if "elephant" in text.lower()} == expected
    assert len(clip.texts) > 500

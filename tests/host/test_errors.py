"""Errors of a training run: each is said in words, and costs as little as it can."""

import pytest
import torch
from runs import Reports, go, out_of_memory, request_in, same_weights
from tiny import CONTEXT, TOKENS, TinyClip, tiny_model

from unhype.training import checkpoint, run
from unhype.training.encode import MissingEmbeddingError
from unhype.training.frozen import FrozenModel
from unhype.training.loop import TrainingError
from unhype.training.prompts import PromptError
from unhype.training.tasks import attention

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of a run without an error."""
    return go(tiny_model(), request_in(tmp_path_factory.mktemp("whole")))


def full(*_):
    """Stands for a call that writes to a full disk."""
    raise OSError(28, "No space left on device")


def test_a_loss_that_is_not_finite_names_the_learning_rate(model, ask):
    with pytest.raises(
        TrainingError, match=r"no longer a number at step \d+\. Lower the learning rate \(it is 1e\+30\)"
    ):
        go(model, ask(learning_rate=1e30))


@pytest.mark.parametrize("when", ["preparing", "training"])
def test_out_of_memory_in_the_network_names_what_to_lower(model, ask, monkeypatch, when):
    predict = FrozenModel.predict

    def predict_or_fail(self, z, sigma, conds, factors=None):
        if when == "preparing" or factors is not None:
            out_of_memory()
        return predict(self, z, sigma, conds, factors)

    monkeypatch.setattr(FrozenModel, "predict", predict_or_fail)
    with pytest.raises(TrainingError, match=r"ran out of memory\. Lower 'batch'.*'checkpointing'"):
        go(model, ask(objective="direct"))


def test_out_of_memory_of_the_attention_objective_names_its_own_settings(model, ask, monkeypatch):
    monkeypatch.setattr(attention, "changes_of", out_of_memory)
    with pytest.raises(TrainingError, match=r"ran out of memory\. Set 'preview_every' to 0"):
        go(model, ask())


def test_a_full_disk_costs_the_checkpoint_not_the_run(model, ask, whole, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "written_aside", full)
    outcome = go(model, ask(checkpoint_every=2))
    assert outcome.reason == "finished"
    assert same_weights(outcome.eraser, whole.eraser)
    assert "could not write the checkpoint" in caplog.text
    assert "No space left on device" in caplog.text


def test_when_the_file_cannot_be_written_the_next_try_does_not_train_again(model, ask, whole, monkeypatch):
    monkeypatch.setattr(run, "save", full)
    with pytest.raises(OSError, match="No space left"):
        go(model, ask(checkpoint_every=3))
    monkeypatch.undo()
    report = Reports()
    outcome = go(model, ask(checkpoint_every=3), report)
    assert outcome.path.is_file()
    assert report.steps == []
    assert same_weights(outcome.eraser, whole.eraser)


def test_a_missing_clip_is_named(model, ask):
    with pytest.raises(TrainingError, match="no CLIP is connected"):
        run.train_erasure(model, None, ask(), Reports())


def test_a_clip_without_a_pooled_embedding_is_named(model, ask):
    class Clip(TinyClip):
        def encode_from_tokens_scheduled(self, tokens):
            return [[torch.ones(1, TOKENS, CONTEXT), {"pooled_output": None}]]

    with pytest.raises(MissingEmbeddingError, match="gives no pooled prompt embedding"):
        go(model, ask(), clip=Clip())


@pytest.mark.parametrize(("concepts", "preserve"), [("", ""), ("cat -> cat", ""), ("cat", "cat")])
def test_lists_that_cannot_be_used_are_refused_before_anything_is_encoded(model, ask, concepts, preserve):
    with pytest.raises(PromptError):
        go(model, ask(concepts, preserve), clip=object())

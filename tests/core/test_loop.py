"""The training loop: its steps, its learning rate, its callbacks, and when it stops early."""

import logging
from dataclasses import replace

import pytest
import torch
from core_parts import TINY, seeded, small_state

from unhype.training import callbacks
from unhype.training.callbacks import Checkpoints, Reporter
from unhype.training.checkpoint import load_checkpoint
from unhype.training.loop import TrainingError, learning_rate, stops_early, train, train_step
from unhype.training.settings import Settings


class Constant:
    """A task whose loss is a factor times the mean of a bias; it notes what it draws."""

    def __init__(self, factor=1.0):
        self.factor, self.drawn = factor, []

    def loss(self, hypernet, generator):
        self.drawn.append(torch.rand(1, generator=generator).item())
        return self.factor * hypernet.left.bias.mean()


class NoRetention:
    """A retention without a loss; its errors are given."""

    def __init__(self, errors=()):
        self.errors = iter(errors)

    def loss(self, hypernet, settings, generator):
        return torch.tensor(0.0)

    def error(self, hypernet):
        return next(self.errors, 0.0)


def fresh():
    state = small_state()
    state.step, state.losses, state.retention = 0, [], []
    return state


# A step


@pytest.mark.parametrize(("step", "share"), [(0, 1 / 20), (9, 1 / 2), (19, 1), (59, 1), (239, 1 / 2), (5999, 1 / 10)])
def test_the_learning_rate_warms_up_and_falls_the_same_however_long_a_run_is(step, share):
    for steps in (1, 200, 10_000):
        settings = Settings(learning_rate=0.5, steps=steps)
        assert learning_rate(settings, step) == pytest.approx(0.5 * share)


def test_each_step_is_made_at_its_own_learning_rate():
    state = small_state()
    state.step = 4
    train_step(state, Constant(), NoRetention(), TINY)
    assert {group["lr"] for group in state.optimiser.param_groups} == {learning_rate(TINY, 4)}
    assert state.step == 5


def test_small_steps_take_their_share_of_it_and_an_error_names_the_whole():
    state = small_state()
    assert train(state, Constant(), NoRetention(), replace(TINY, steps=2), [], 0.25) == "finished"
    assert {group["lr"] for group in state.optimiser.param_groups} == {0.25 * learning_rate(TINY, 1)}
    with pytest.raises(TrainingError, match=rf"\(it is {TINY.learning_rate:g}\)"):
        train_step(state, Constant(float("nan")), NoRetention(), TINY, 0.25)


def test_the_loss_is_removal_and_weighted_retention():
    state = fresh()
    with torch.no_grad():
        state.hypernet.left.bias.fill_(0.75)

    class Quarter(NoRetention):
        def loss(self, hypernet, settings, generator):
            return hypernet.left.bias.mean() / 3

    found = train_step(state, Constant(2.0), Quarter(), replace(TINY, retain_weight=4.0))
    assert found == state.losses[0] == pytest.approx(2 * 0.75 + 4 * 0.25)


def test_large_gradients_are_clipped():
    state = fresh()
    train_step(state, Constant(1e6), NoRetention(), TINY)
    gradients = [weight.grad for weight in state.hypernet.parameters() if weight.grad is not None]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_leaves_the_weights_of_the_step_before(factor):
    state = fresh()
    with torch.no_grad():
        state.hypernet.left.bias.fill_(1.0)
    before = {name: tensor.clone() for name, tensor in state.hypernet.state_dict().items()}
    with pytest.raises(TrainingError, match=r"no longer a number at step 1\. Lower the learning rate"):
        train_step(state, Constant(factor), NoRetention(), TINY)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.hypernet.state_dict().items())
    assert (state.step, state.losses) == (0, [])


# The loop


def test_the_loop_draws_the_same_numbers_whatever_the_task_makes_of_them():
    """Only the generator of the run decides, so a resumed run sees what the first one would have seen."""
    tasks = Constant(), Constant(3.0)
    for task in tasks:
        assert train(fresh(), task, NoRetention(), replace(TINY, steps=3), []) == "finished"
    assert tasks[0].drawn == tasks[1].drawn == torch.rand(3, generator=seeded(0)).tolist()


def test_the_retention_error_is_noted_now_and_then_and_at_the_end():
    state = fresh()
    train(state, Constant(), NoRetention([0.5, 0.4, 0.3]), replace(TINY, steps=7, watch_every=3), [])
    assert state.retention == [(3, 0.5), (6, 0.4), (7, 0.3)]
    assert len(state.losses) == 7


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], False),
        ([0.5, 0.9, 0.9], False),
        ([0.2, 0.4, 0.4, 0.4], True),
        ([0.2, 0.4, 0.25, 0.4], False),
        ([0.4, 0.2, 0.4, 0.4, 0.4], True),
        ([0.01, 0.09, 0.09, 0.09], False),
        ([0.4, 0.4, 0.4, 0.4, 0.4], False),
    ],
)
def test_early_stopping_waits_for_a_lasting_rise_of_the_retention_error(values, expected):
    assert stops_early(list(enumerate(values))) is expected


def test_a_lasting_rise_ends_the_loop():
    state = fresh()
    errors = NoRetention([0.2, 0.5, 0.5, 0.5, 0.5])
    assert train(state, Constant(), errors, replace(TINY, steps=9, watch_every=1), []) == "early"
    assert state.step == 4


def test_an_interrupt_in_a_callback_ends_the_loop_after_a_whole_step():
    state, steps = fresh(), []

    def interrupt(state):
        steps.append(state.step)
        if state.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(state, Constant(), NoRetention(), TINY, [interrupt])
    assert steps == [1, 2]
    assert torch.equal(state.random, state.generator.get_state())


def test_an_interrupt_in_a_step_leaves_the_random_state_from_before_it():
    class Interrupting(Constant):
        def loss(self, hypernet, generator):
            if len(self.drawn) == 1:
                torch.rand(4, generator=generator)
                raise KeyboardInterrupt
            return super().loss(hypernet, generator)

    state, after_one = fresh(), seeded(0)
    torch.rand(1, generator=after_one)
    with pytest.raises(KeyboardInterrupt):
        train(state, Interrupting(), NoRetention(), TINY, [])
    assert torch.equal(state.random, after_one.get_state())


# Callbacks


def test_a_checkpoint_is_kept_every_so_many_steps(tmp_path):
    kept = []
    checkpoints = Checkpoints(tmp_path / "c.pt", "recipe", every=2)
    checkpoints.save = lambda state: kept.append(state.step)
    train(fresh(), Constant(), NoRetention(), replace(TINY, steps=5), [checkpoints])
    assert kept == [2, 4]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_or_an_error_leaves_a_checkpoint_if_there_was_a_step(tmp_path, error):
    state, checkpoints = fresh(), Checkpoints(tmp_path / "c.pt", "recipe", every=0)
    with pytest.raises(error), checkpoints.kept(state):
        raise error
    assert not checkpoints.path.exists()
    with pytest.raises(error), checkpoints.kept(state):
        train_step(state, Constant(), NoRetention(), TINY)
        state.random = state.generator.get_state()
        raise error
    after = fresh()
    assert load_checkpoint(after, checkpoints.path, "recipe")
    assert after.step == 1


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callbacks, "save_checkpoint", full)
    checkpoints = Checkpoints(tmp_path / "c.pt", "recipe", every=1)
    with caplog.at_level(logging.WARNING, "unhype"):
        assert train(fresh(), Constant(), NoRetention(), replace(TINY, steps=2), [checkpoints]) == "finished"
    assert caplog.text.count("No space left") == 2


def test_every_step_is_reported_with_the_curves_and_some_with_a_picture():
    class Previewer:
        def picture(self, hypernet):
            return "a picture"

    calls = []
    reporter = Reporter(lambda *given: calls.append(given), 5, Previewer(), every=2)
    state = fresh()
    train(state, Constant(), NoRetention(), replace(TINY, steps=5), [reporter])
    assert [call[:3] for call in calls] == [("training", step, 5) for step in range(1, 6)]
    assert [call[3] for call in calls] == [None, "a picture", None, "a picture", None]
    assert calls[-1][4] == (state.losses, state.retention)
    Reporter(lambda *given: calls.append(given), 5, None, every=1)(state)
    assert calls[-1][3] is None

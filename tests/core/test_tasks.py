"""The tasks that train through a diffusion model, on a toy whose "model" adds the delta to the latent."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from core_parts import TINY, normal, seeded

from unhype.hypernet.factors import Factors, lowrank_delta
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.targets import TargetLayer
from unhype.training.batch_split import WHOLE
from unhype.training.draws import dial_steps, whole_steps
from unhype.training.encode import EncodedPrompt
from unhype.training.losses import flatten
from unhype.training.prompts import Phrase
from unhype.training.settings import OBJECTIVES, Settings
from unhype.training.tasks.direct import DirectTask
from unhype.training.tasks.matching import PaperTask, ReleasedTask
from unhype.training.tasks.samples import DiffusionSamples, diffusion_samples

TASKS = {"direct": DirectTask, "paper": PaperTask, "released": ReleasedTask}
SETTINGS = Settings(batch=3, gamma=1.0, eta=0.7)
LAYERS = (TargetLayer("only", 4, 4),)


class ToyModel:
    """Stands for `training.frozen.FrozenModel`. The prompt of a row is a number that is added to the latent."""

    device = torch.device("cpu")

    def __init__(self):
        self.rollouts = []

    def predict(self, z, sigma, conds, layers=None):
        base = z + torch.tensor([cond["number"] for cond in conds]).view(-1, 1, 1, 1)
        return base if layers is None else base + lowrank_delta(z.flatten(1, 2), layers[0]).view_as(z)

    def noise(self, count, height, width, generator):
        return torch.randn(count, 1, 1, 4, generator=generator)

    def model_conds(self, prompt, noise, guidance):
        return {"number": float(len(prompt.text)), "guidance": guidance}

    def rollout(self, prompt, empty, noise, steps, guidance, keep):
        self.rollouts.append((prompt.text, empty.text, steps, guidance, keep))
        return [(noise + step, float(steps - step)) for step in sorted(keep)]


def toy(moved=True):
    """A hypernet and five samples of two wordings."""
    hypernet = Hypernet(HypernetConfig(3, LAYERS, rank=2, hidden=5, trajectory=10), seeded(0))
    if moved:
        with torch.no_grad():
            for weight in hypernet.right.parameters():
                weight.copy_(normal(*weight.shape, seed=1) * 0.3)
    z, e_p, e_m = (normal(5, 1, 1, 4, seed=seed) for seed in (2, 3, 4))
    conds = [{"number": 0.0}, {"number": 0.5}]
    phrase = torch.tensor([0, 1, 1, 0, 1])
    return hypernet, DiffusionSamples(
        ToyModel(), phrase, z, torch.ones(5), e_p, e_m, normal(2, 3, seed=5), conds, WHOLE
    )


def drawn(samples, draw, seed=0):
    """The batch and the steps that a task draws with a generator of this seed."""
    generator = seeded(seed)
    return samples.batch(3, generator), draw(3, 10, generator)


def gradients(hypernet, loss):
    # Some weights take no part in a loss: those have no gradient.
    return torch.autograd.grad(loss, list(hypernet.parameters()), allow_unused=True)


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def factor_gradient(hypernet, batch, step):
    """What plain autograd gives on the factors for the task loss of each sample, one sample at a time."""
    rows = []
    for row in range(3):
        with torch.no_grad():
            (factors,) = hypernet(batch.c[row : row + 1], step[row].item())
        leaf = Factors(*(tensor.clone().requires_grad_() for tensor in factors))
        z, e_p, e_m = (part[row : row + 1] for part in (batch.z, batch.e_p, batch.e_m))
        loss = (ToyModel().predict(z, None, batch.conds[row : row + 1], [leaf]) - (2 * e_m - e_p)).square().mean()
        rows.append(torch.cat([part.flatten(1) for part in torch.autograd.grad(loss, list(leaf))], dim=1))
    return torch.cat(rows)


def test_a_batch_holds_the_rows_of_its_samples():
    _, samples = toy()
    batch = samples.batch(40, seeded(0))
    index = [samples.z.flatten(1).tolist().index(row) for row in batch.z.flatten(1).tolist()]
    assert set(index) == set(range(5))
    for name in ("sigma", "e_p", "e_m"):
        assert torch.equal(getattr(batch, name), getattr(samples, name)[index])
    assert torch.equal(batch.c, samples.c[samples.phrase[index]])
    assert batch.conds == [samples.conds[int(samples.phrase[n])] for n in index]


def test_the_target_of_a_batch_is_pushed_away_from_the_erased_prediction():
    batch = toy()[1].batch(3, seeded(0))
    torch.testing.assert_close(batch.target(0.5), 1.5 * batch.e_m - 0.5 * batch.e_p)


def test_the_paper_matches_a_step_of_plain_gradient_descent_and_trains_the_following_step_only():
    hypernet, samples = toy()
    batch, steps = drawn(samples, whole_steps)
    gradient = factor_gradient(hypernet, batch, steps)
    assert gradient.abs().max() > 0.01
    theta = flatten(hypernet(batch.c, steps)).detach()
    by_hand = (flatten(hypernet(batch.c, steps + 1)) - (theta - SETTINGS.eta * gradient)).square().sum(1).mean()
    found = PaperTask(samples, SETTINGS).loss(hypernet, seeded(0))
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-5)
    close(gradients(hypernet, found), gradients(hypernet, by_hand))


def test_the_released_objective_is_the_task_loss_plus_matching():
    hypernet, samples = toy()
    batch, steps = drawn(samples, whole_steps)
    prediction = ToyModel().predict(batch.z, batch.sigma, batch.conds, hypernet(batch.c, steps))
    task = (prediction - (2 * batch.e_m - batch.e_p)).square().mean()
    matching = PaperTask(samples, SETTINGS).loss(hypernet, seeded(0))
    found = ReleasedTask(samples, SETTINGS).loss(hypernet, seeded(0))
    assert found.item() == pytest.approx((task + matching).item(), rel=1e-5)
    close(gradients(hypernet, found), gradients(hypernet, task + matching))


def test_the_direct_objective_is_the_task_loss_along_the_trajectory():
    hypernet, samples = toy()
    batch, steps = drawn(samples, dial_steps)
    target = batch.e_p + (steps / 10).view(3, 1, 1, 1) * (2 * batch.e_m - batch.e_p - batch.e_p)
    prediction = ToyModel().predict(batch.z, batch.sigma, batch.conds, hypernet(batch.c, steps))
    expected = (prediction - target).square().mean()
    found = DirectTask(samples, SETTINGS).loss(hypernet, seeded(0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    close(gradients(hypernet, found), gradients(hypernet, expected))


@pytest.mark.parametrize("objective", TASKS)
def test_every_task_can_move_a_new_hypernet_and_only_the_hypernet(objective):
    hypernet, samples = toy(moved=False)
    TASKS[objective](samples, replace(SETTINGS, batch=8)).loss(hypernet, seeded(0)).backward()
    assert hypernet.right.weight.grad.abs().max() > 0
    assert not any(tensor.requires_grad for tensor in (samples.z, samples.c, samples.e_p))


@pytest.mark.parametrize("objective", TASKS)
def test_the_generator_decides_the_loss(objective):
    hypernet, samples = toy()
    first, again, other = (
        TASKS[objective](samples, SETTINGS).loss(hypernet, seeded(seed)).item() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("objective", TASKS)
def test_the_loss_falls(objective):
    hypernet, samples = toy()
    task = TASKS[objective](samples, replace(SETTINGS, batch=8, gamma=0.0))
    optimiser = torch.optim.Adam(hypernet.parameters(), lr=1e-2)
    losses, generator = [], seeded(0)
    for _ in range(60):
        loss = task.loss(hypernet, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_every_objective_that_is_offered_exists():
    """Attention, which runs no diffusion steps, is tested by itself."""
    assert ("attention", *TASKS) == OBJECTIVES


# The draws of a step


def test_half_of_the_steps_are_at_the_end_and_the_rest_along_the_way():
    steps = dial_steps(4000, 300, seeded(0))
    assert (steps == 300).float().mean().item() == pytest.approx(0.5, abs=0.03)
    along = steps[steps < 300]
    assert along.min() < 5
    assert along.max() > 290
    assert along.mean().item() == pytest.approx(150, abs=8)


def test_matching_draws_whole_steps_with_one_to_follow():
    steps = whole_steps(4000, 300, seeded(0))
    assert torch.equal(steps, steps.round())
    assert steps.min() == 0
    assert steps.max() == 299


@pytest.mark.parametrize("draw", [dial_steps, whole_steps])
def test_the_generator_decides_the_steps(draw):
    first, again, other = (draw(50, 300, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# The samples


PHRASES = [Phrase(0, "cat", "tree"), Phrase(0, "a cat", "a tree"), Phrase(1, "dog", "")]


def made(settings, seed=0):
    """Samples of two concepts, the toy model that made them and the progress that was reported."""
    model, progress = ToyModel(), []
    texts = {"", *(text for phrase in PHRASES for text in (phrase.prompt, phrase.mapping))}
    encoded = {text: EncodedPrompt(text, torch.zeros(3), []) for text in texts}
    c = normal(len(PHRASES), 3)
    samples = diffusion_samples(
        model, PHRASES, c, encoded, settings, seeded(seed), lambda *given: progress.append(given)
    )
    return SimpleNamespace(samples=samples, model=model, progress=progress)


def test_every_sampler_run_gives_its_latents_for_the_wordings_of_its_concept():
    settings = replace(TINY, rollouts=6, pictures=2, sampler_steps=5, kept_steps=3)
    found = made(settings)
    samples = found.samples
    assert found.progress == [(run, 6) for run in range(1, 7)]
    assert samples.z.shape == samples.e_p.shape == samples.e_m.shape == (6 * 2 * 3, 1, 1, 4)
    assert [text in ("cat", "a cat") for text, *_ in found.model.rollouts] == [True, False] * 3
    for _, empty, steps, guidance, keep in found.model.rollouts:
        assert (empty, steps, guidance, len(keep)) == ("", 5, settings.guidance, 3)
    concepts = torch.tensor([phrase.concept for phrase in PHRASES])[samples.phrase]
    assert concepts.tolist() == ([0] * 6 + [1] * 6) * 3
    assert set(samples.phrase.tolist()) == {0, 1, 2}


def test_predictions_are_those_of_the_erased_and_of_the_mapping_prompt():
    samples = made(TINY).samples
    erased, mapping = (
        torch.tensor([float(len(getattr(PHRASES[int(n)], side))) for n in samples.phrase]).view(-1, 1, 1, 1)
        for side in ("prompt", "mapping")
    )
    torch.testing.assert_close(samples.e_p, samples.z + erased)
    torch.testing.assert_close(samples.e_m, samples.z + mapping)
    assert [cond["number"] for cond in samples.conds] == [3, 5, 3]


def test_every_concept_gets_two_runs_at_least():
    assert [text == "dog" for text, *_ in made(replace(TINY, rollouts=1)).model.rollouts] == [False, True] * 2


def test_the_generator_decides_the_samples():
    first, again, other = (made(TINY, seed).samples for seed in (0, 0, 1))
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.phrase, again.phrase)
    assert not torch.equal(first.z, other.z)

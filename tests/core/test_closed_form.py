"""The closed form: its regressions, bases and units by themselves, and the hypernet that they make."""

from types import SimpleNamespace

import pytest
import torch
from core_parts import network_of, normal, seeded

from unhype.hypernet.factors import delta_norm, lowrank_delta
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.targets import TargetLayer
from unhype.training import closed_form
from unhype.training.closed_form import Change, Embeddings, Moments, common_bases, common_part, regression, strongest
from unhype.training.settings import Settings
from unhype.training.tasks.attention import AttentionTask, PairedLayer, TokenPairs

WIDTH, IN = 12, 10


def test_the_strongest_directions_are_the_leading_eigenvectors():
    X = normal(40, 6).double() * torch.tensor([5.0, 4.0, 3.0, 0.5, 0.2, 0.1])
    gram = X.T @ X
    found = strongest(gram, 3, seeded(0))
    vectors = torch.linalg.eigh(gram)[1][:, -3:]
    torch.testing.assert_close(found @ found.T, vectors @ vectors.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64))


def moments_of(X, change):
    return Moments((X.T @ X).double(), (change.T @ X).double())


def test_a_change_of_low_rank_is_found_again():
    M = normal(IN, 2, seed=1) @ normal(2, IN, seed=2)
    X = normal(200, IN)
    U, V = regression(moments_of(X, X @ M.T), torch.zeros(IN, IN), 2, seeded(0))
    torch.testing.assert_close(U @ V, M.double(), rtol=0.05, atol=0.05)


def test_states_that_shall_stay_are_changed_less():
    M, X, others = normal(IN, IN, seed=1), normal(30, IN), normal(30, IN, seed=5)
    without, with_others = (
        regression(moments_of(X, X @ M.T), weight * (others.T @ others).double(), 4, seeded(0)) for weight in (0, 3)
    )
    sizes = [(others.double() @ (U @ V).T).norm() for U, V in (without, with_others)]
    assert sizes[1] < 0.7 * sizes[0]


def test_bases_with_room_for_all_hold_every_change():
    changes = [
        Change(torch.linalg.qr(normal(IN, 2, seed=n).double())[0], normal(2, IN, seed=9 + n).double()) for n in range(3)
    ]
    X = normal(50, IN)
    out, down, P, Q = common_bases(changes, (X.T @ X).double(), 6, seeded(0))
    for change, own_P, own_Q in zip(changes, P, Q, strict=True):
        torch.testing.assert_close(out @ own_Q @ own_P @ down, change.U @ change.V, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(down.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_equal_changes_turn_into_the_same():
    P = normal(2, 5).double()
    turns = [torch.linalg.qr(normal(2, 2, seed=n).double())[0] for n in range(3)]
    turned = common_part(torch.stack([turn @ P for turn in turns])) @ torch.stack([turn @ P for turn in turns])
    torch.testing.assert_close(turned, turned[:1].expand(3, -1, -1))


def embeddings(concepts=3):
    """Concepts around points far apart, sentences half-way to them, retained prompts around zero."""
    points = 6 * torch.eye(concepts, WIDTH)
    wordings = [point + 0.3 * normal(20, WIDTH, seed=n) for n, point in enumerate(points)]
    sentences = [0.7 * point + 0.3 * normal(20, WIDTH, seed=10 + n) for n, point in enumerate(points)]
    return Embeddings(wordings, sentences, normal(200, WIDTH, seed=30))


def test_a_unit_answers_to_its_concept_alone():
    given = embeddings()
    w, b = given.units()
    for k, own in enumerate(given.wordings):
        answers = torch.relu(own @ w.T + b).mean(0)
        assert answers[k] == pytest.approx(1, abs=0.3)
        assert answers.sum() - answers[k] < 0.1
    assert torch.relu(given.retained @ w.T + b).mean() < 0.05


@pytest.fixture(scope="module", params=[(1, None), (3, None), (3, 8)], ids=["one", "three", "many directions"])
def started(request):
    """A hypernet at the closed form, for two layers, its task and the embeddings."""
    concepts, widest = request.param
    with pytest.MonkeyPatch.context() as patch:
        if widest is not None:
            patch.setattr(closed_form, "_WIDEST", widest)
        given = embeddings(concepts)
        names = [normal(IN, seed=50 + k) * 2 for k in range(concepts)]
        erased, mapping, c = [], [], []
        for parts in (given.wordings, given.sentences):
            for k, part in enumerate(parts):
                for n, own in enumerate(part):
                    around = 0.2 * normal(3, IN, seed=n)
                    erased.append(torch.cat([around, names[k].unsqueeze(0)]))
                    mapping.append(torch.cat([around, -names[0].unsqueeze(0)]))
                    c.append(own)
        number = torch.arange(concepts).repeat_interleave(20).repeat(2)
        pairs = TokenPairs(torch.stack(erased), torch.stack(mapping))
        layers = (TargetLayer("one", IN, 6), TargetLayer("two", IN, 5))
        network = network_of(layers)
        paired = [PairedLayer(network.get_submodule(layer.name), pairs, 0.2 * normal(40, IN)) for layer in layers]
        task = AttentionTask(paired, 20 * concepts, torch.stack(c).unsqueeze(0), Settings())
        config = HypernetConfig(WIDTH, layers, 2, min(IN, 2 * concepts), concepts, bounded=True)
        hypernet = Hypernet(config, seeded(0))
        closed_form.start(hypernet, task, number, given, seeded(1))
    return SimpleNamespace(hypernet=hypernet, task=task, given=given)


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_the_hypernet_makes_the_mappings_outputs_of_the_concepts(started, size):
    """size: of the embeddings. A mean over tokens has more of the concept in a short prompt, which needs no more."""
    index = torch.arange(started.task.wordings)
    X, changes = started.task.batch(index)
    factors = started.hypernet(size * started.task.c[0, index], 300)
    for own, x, change in zip(factors, X, changes, strict=True):
        assert (lowrank_delta(x, own) - change).square().sum() < 0.2 * change.square().sum()


def test_retained_prompts_get_next_to_nothing(started):
    sizes = [
        delta_norm(started.hypernet(c, 300)).mean() for c in (started.given.retained, torch.cat(started.given.wordings))
    ]
    assert sizes[0] < 0.1 * sizes[1]


def test_at_the_beginning_of_the_trajectory_nothing_changes(started):
    assert not delta_norm(started.hypernet(started.task.c[0], 0)).any()


def test_steps_leave_the_units_as_they_are(started):
    trained = {name for name, parameter in started.hypernet.named_parameters() if parameter.requires_grad}
    assert trained >= {"left.weight", "right.weight"}
    assert not {name for name in trained if name.startswith("trunk")}


def test_the_generator_alone_decides():
    def weights():
        torch.manual_seed(int(torch.randint(100, ())))
        X = normal(30, IN)
        return regression(moments_of(X, X), torch.zeros(IN, IN), 2, seeded(0)).U

    assert torch.equal(weights(), weights())

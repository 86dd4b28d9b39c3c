"""The methods that ours is compared with: each equation against numbers worked out by hand, then all on the lab."""

import math
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import pytest
import torch
from tiny import seeded

from benchmarks.baselines import METHODS, erased_model, esd, gate, nullspace, spm, states, task, uce
from benchmarks.lab.measure import Lab, encode, noise_of
from unhype.hypernet.factors import Factors
from unhype.training.losses import steered_target
from unhype.training.prompts import RetainSplit, parse_concepts, phrasings
from unhype.training.settings import Settings

QUICK = Settings(
    steps=2, batch=2, rollouts=2, pictures=1, kept_steps=1, retain_batch=4, rank=2,
    width=128, height=128, guidance=3.0, sampler_steps=2, checkpointing=False,
)  # fmt: skip
RETAIN = RetainSplit(("a guitar", "a horse in a field", "a photo of a teapot"), ("a boat",))
CONCEPTS = parse_concepts("cat -> tree\nship -> sofa")


@pytest.fixture(scope="module")
def lab():
    return Lab()


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float32)


def test_esd_aims_away_from_the_concept_at_the_empty_prompt():
    e_p, e_empty = row(2.0, 1.0), row(1.0, 1.0)
    assert steered_target(e_p, e_empty, 1.0).tolist() == [[0, 1]]
    assert steered_target(e_p, e_empty, 3.0).tolist() == [[-2, 1]]


def test_the_retention_loss_of_a_static_lora_is_the_mean_square_of_its_output():
    # B A = [[2, 0], [4, 0]]; the states (1, 5) and (0, 7) get (2, 4) and (0, 0): (4 + 16) / 4 numbers.
    lora = [Factors(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[2.0], [4.0]]]))]
    assert esd.retention_loss(lora, torch.tensor([[1.0, 5.0], [0.0, 7.0]])).item() == 5.0
    # A second layer that adds nothing halves the mean.
    still = Factors(torch.ones(1, 1, 2), torch.zeros(1, 3, 1))
    assert esd.retention_loss([*lora, still], torch.tensor([[1.0, 5.0], [0.0, 7.0]])).item() == 2.5


def test_uce_of_two_axes_by_hand():
    # Erase c = (1, 0) to c* = (0, 1), keep p = (0, 2). Gram = diag(1, 0) + .25 diag(0, 4) + diag(1, 1) = diag(2, 2).
    # (c* - c)^T c = [[-1, 0], [1, 0]], so T = [[-.5, 0], [.5, 0]].
    T = uce.transform(row(1, 0), row(0, 1), row(0, 2), preserve=0.25, ridge=1.0)
    torch.testing.assert_close(T, torch.tensor([[-0.5, 0.0], [0.5, 0.0]]))


def test_uce_without_a_ridge_maps_the_concept_and_keeps_the_rest_for_any_weight():
    erased, wanted, kept = row(1, 1, 0), row(0, 3, 1), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    T = uce.transform(erased, wanted, kept, preserve=1.0, ridge=1e-9)
    W = torch.randn(4, 3, generator=seeded(0))
    edit = W + W @ T
    torch.testing.assert_close(edit @ erased[0], W @ wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(edit @ kept.T, W @ kept.T, atol=1e-5, rtol=0)


def test_uce_keeps_a_prompt_the_better_the_more_it_weighs():
    erased, wanted, kept = row(1, 0), row(0, 1), row(1, 1)
    moved = [(uce.transform(erased, wanted, kept, weight, 0.1) @ kept[0]).norm().item() for weight in (0.0, 1.0, 100.0)]
    assert moved[0] > moved[1] > moved[2]


def test_the_null_space_leaves_protected_states_exactly_and_takes_the_rest():
    kept, exact = torch.tensor([[3.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]]), row(0, 1, 1, 0)
    Q = nullspace.null_projector(kept, exact, share=1.0)
    wanted_projector = torch.diag(torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64))
    wanted_projector[1, 2] = wanted_projector[2, 1] = -0.5
    torch.testing.assert_close(Q, wanted_projector)
    # Seen through Q the erased state (4, 0, 0, 1) is (0, 0, 0, 1): T moves the last axis by c* - c over 1 + ridge.
    T = nullspace.transform(row(4, 0, 0, 1), row(4, 0, 2, 0), Q, ridge=1.0)
    assert T[:, :3].abs().max() < 1e-7
    torch.testing.assert_close(T[:, 3], torch.tensor([0.0, 0.0, 1.0, -0.5]))
    W = torch.randn(3, 4, generator=seeded(0))
    for state in (*kept, *exact):
        torch.testing.assert_close((W + W @ T) @ state, W @ state)


def test_weak_directions_of_the_retain_prompts_are_given_up():
    # Energies 100 and 1: with 0.9 of the energy the first direction is protected, with all of it both are.
    kept, nothing = torch.tensor([[10.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.zeros(1, 3)
    part, whole = (nullspace.null_projector(kept, nothing, share) for share in (0.9, 1.0))
    torch.testing.assert_close(part, torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)))
    torch.testing.assert_close(whole, torch.diag(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)))


def test_only_states_that_the_edit_would_move_are_protected():
    kept = torch.tensor([[2.0, 0.0], [0.0, 9.0], [0.0, 1.0]])
    assert nullspace.influenced(kept, row(1, 0), row(0, 1), ridge=1.0).tolist() == [[2.0, 0.0]]


def test_the_gate_opens_with_the_cosine_and_takes_the_direction_out():
    one = gate.Gate(row(2, 0), torch.tensor([0.6]), gamma=0.1, scale=1.0)
    prompt = torch.tensor([[6.0, 8.0], [0.0, 0.0]])  # mean (3, 4): cosine 0.6, exactly at the threshold
    assert gate.activation(prompt, one).tolist() == [pytest.approx(0.5)]
    torch.testing.assert_close(gate.edit(one, prompt), torch.tensor([[5.0, 8.0], [-1.0, 0.0]]))
    # Orthogonal: sigmoid(-0.6 / 0.1) of the direction.
    away = torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(gate.edit(one, away), torch.tensor([[-2 / (1 + math.exp(6)), 3.0]]))


def test_the_strongest_of_several_concepts_acts_alone():
    two = gate.Gate(torch.eye(2), torch.tensor([0.5, 0.5]), gamma=0.1, scale=1.0)
    edited = gate.edit(two, row(3, 1))
    assert edited[0, 1] == 1.0
    assert edited[0, 0] == pytest.approx(3 - 1 / (1 + math.exp(-(3 / 10**0.5 - 0.5) / 0.1)))


def test_the_threshold_lies_between_benign_prompts_and_phrasings():
    own, benign = torch.tensor([0.9, 0.5, 0.7]), torch.full((50,), 0.1)
    assert gate.calibrated(own, benign, 0.25).item() == pytest.approx(0.2)


def test_an_adapter_is_scaled_by_the_cosine_over_that_of_its_own_phrasings():
    adapter = spm.Adapter({}, torch.tensor([1.0, 0.0]), own=0.8)
    assert spm.strength(torch.tensor([5.0, 0.0]), adapter) == 1.0
    assert spm.strength(torch.tensor([0.6, 0.8]), adapter) == pytest.approx(0.75)
    assert spm.strength(torch.tensor([0.0, 2.0]), adapter) == 0.0
    assert spm.strength(torch.tensor([-1.0, 0.0]), adapter) == 0.0


def test_anchors_that_resemble_the_concept_are_drawn_less():
    means = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    weights = spm.anchor_weights(means, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.4, 1.0]) ** spm.SHARPNESS)


@pytest.mark.parametrize(
    ("ids", "onto", "wanted"),
    [
        ([1, 5, 7, 9, 2], [1, 5, 8, 9, 2], [0, 1, 2, 3, 4]),
        ([1, 7, 7, 9, 2], [1, 8, 9, 2], [0, 1, 1, 2, 3]),
        ([1, 7, 9, 2], [1, 8, 8, 9, 2], [0, 2, 3, 4]),
        ([1, 5, 7, 2], [1, 2], [0, 1, 1, 1]),
    ],
)
def test_each_token_is_mapped_to_the_one_in_its_place(ids, onto, wanted):
    assert states.matching_tokens(ids, onto) == wanted


def test_prompts_encoded_in_batches_are_those_of_the_host(lab):
    texts = ["a photo of a cat", "a very old tortoise that walks by the sea", ""]
    encoded = states.encode_prompts(lab.clip, texts)
    for text in texts:
        (context, options), ((wanted, others),) = encoded[text].conditioning[0], encode(lab.clip, text)
        torch.testing.assert_close(context, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(options["pooled_output"], others["pooled_output"], atol=1e-3, rtol=0)


def test_a_lora_on_the_patched_clone_is_the_one_that_was_trained(lab):
    made = task.make_task(lab, CONCEPTS[:1], 0, QUICK)
    frozen, samples = made.frozen, made.samples
    z, sigma, conds = samples.z[:2], samples.sigma[:2], [samples.conds[2]] * 2
    untouched = frozen.predict(z, sigma, conds)
    lora = task.new_lora(frozen.layers, 2, seeded(0), frozen.device)
    lora = [Factors(A.detach(), torch.randn(B.shape, generator=seeded(n))) for n, (A, B) in enumerate(lora)]
    merged = erased_model.edited(frozen.patcher, task.deltas_of(frozen.layers, lora))
    comfy.model_management.load_models_gpu([merged], force_full_load=True)
    found = frozen.predict(z, sigma, conds)
    frozen.load()
    assert frozen.predict(z, sigma, conds).equal(untouched)
    torch.testing.assert_close(found, frozen.predict(z, sigma, conds, task.for_rows(lora, 2)), atol=1e-4, rtol=1e-4)
    assert (found - untouched).abs().mean() > 0.01


def predict(patcher, conditioning):
    """One step of the sampler from fixed noise."""
    with torch.inference_mode():
        noise = noise_of([0])
        nothing = [[torch.zeros_like(conditioning[0][0]), {}]]
        return comfy.sample.sample(
            patcher, noise, 1, 1.0, "euler", "normal", conditioning, nothing, torch.zeros_like(noise), disable_pbar=True
        ).clone()


def numbers_of(name, layers, concepts):
    """What a method changes and what it has to keep, from the sizes of the layers alone."""
    width = layers[0].inputs
    rank = {"spm": spm.RANK}.get(name, QUICK.rank)
    lora = sum(rank * (layer.inputs + layer.outputs) for layer in layers)
    dense = sum(layer.inputs * layer.outputs for layer in layers)
    return {
        "esd": (lora, lora),
        "esd mapping": (lora, lora),
        "uce": (dense, width * width),
        "nullspace": (dense, width * width),
        "gate": (concepts * (width + 1),) * 2,
        "spm": (concepts * (lora + width + 1),) * 2,
    }[name]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_the_erased_prompts_and_leaves_the_base_alone(lab, name):
    prompts = [encode(lab.clip, text) for text in ("a cat", "a photo of a ship")]
    base = [predict(lab.patcher, prompt) for prompt in prompts]
    erased = METHODS[name](lab, CONCEPTS, RETAIN, 0, QUICK)
    for prompt, before in zip(prompts, base, strict=True):
        copy = prompt[0][0].clone()
        after = predict(erased.model_for(prompt), erased.condition(prompt))
        assert after.shape == before.shape
        assert (after - before).abs().mean() > 1e-4
        assert prompt[0][0].equal(copy)
        assert predict(lab.patcher, prompt).equal(before)
    changed, kept = numbers_of(name, erased_model.layers_of(lab.patcher), len(CONCEPTS))
    assert (erased.name, erased.parameters, erased.bytes) == (name, changed, 4 * kept)
    assert erased.seconds > 0


def test_the_same_seed_trains_the_same_weights(lab):
    prompt = encode(lab.clip, "a cat")
    first, second, other = (
        predict(METHODS["spm"](lab, CONCEPTS[:1], RETAIN, seed, QUICK).model_for(prompt), prompt) for seed in (0, 0, 1)
    )
    assert first.equal(second)
    assert not first.equal(other)


def test_esd_does_not_read_the_mapping(lab):
    seen = []

    def stop(lab, concepts, seed, settings):
        seen.append(concepts)
        raise KeyboardInterrupt

    assert phrasings((("cat", ""),), "object")[0].mapping == ""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(esd, "make_task", stop)
        METHODS["esd"](SimpleNamespace(), CONCEPTS, RETAIN, 0, QUICK)
    assert seen == [(("cat", ""), ("ship", ""))]

"""The frozen model: its predictions and gradients, and the user's own model, which stays as it is."""

from dataclasses import replace

import pytest
import torch
from runs import TINY, Reports, go, same_weights
from tiny import (
    FAMILIES,
    TOKENS,
    Call,
    TinyClip,
    embedding,
    merged,
    overridden,
    prompt,
    replay,
    sample,
    seeded,
    tiny_eraser,
    tiny_model,
)

from unhype.hypernet.lora import to_lora
from unhype.hypernet.network import Hypernet
from unhype.training.encode import EncodedPrompt, encode
from unhype.training.frozen import FrozenModel
from unhype.training.plan import Request

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


def test_the_users_model_is_not_touched(model, ask):
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    picture = sample(model, prompt(1), prompt(2))
    previews = Reports()
    go(model, ask(preview_every=3, decode=lambda latents: torch.zeros(8, 8, 3)), previews)
    assert len(previews.pictures) == 2
    after = model.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(weight.is_inference() for weight in after.values()), "these are the user's tensors, not copies"
    assert not any(weight.requires_grad for weight in model.model.parameters())
    assert overridden(model) == []
    assert model.wrappers == {}
    assert torch.equal(sample(model, prompt(1), prompt(2)), picture)


@pytest.fixture
def styled(model):
    """The model with a LoRA loaded."""
    return merged(model, to_lora(tiny_eraser(model, seed=5), embedding(prompt(9)), "style"))


def test_the_users_loras_are_trained_on(model, styled):
    z, sigma = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.full((2,), 2.0)
    call = Call(z, sigma, prompt(1)[0][0].expand(2, -1, -1), {}, None)
    frozen = FrozenModel(styled)
    frozen.load()
    given = EncodedPrompt("", embedding(prompt(1)), prompt(1))
    found = frozen.predict(z, sigma, [frozen.model_conds(given, z)] * 2)
    with_lora, without = ((z - replay(one, call)) / 2 for one in (styled, model))
    torch.testing.assert_close(found, with_lora, rtol=1e-4, atol=1e-4)
    assert (found - without).abs().max() > 0.01


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A request and its outcome on the model as it is."""
    folder = tmp_path_factory.mktemp("plain")
    request = Request("cat -> tree", "", folder / "models", "eraser", folder / "checkpoints", TINY)
    with torch.inference_mode():
        return request, go(tiny_model(), request)


def test_a_model_with_another_lora_is_another_training(plain, styled):
    request, outcome = plain
    other = go(styled, request)
    assert other.reason == "finished"
    assert other.path != outcome.path
    assert not same_weights(other.eraser, outcome.eraser)
    assert go(styled, request).reason == "already trained"


def test_a_model_that_is_in_use_with_a_lora_is_trained_alike(plain, model, styled):
    """The LoRA of another branch is merged into the shared weights."""
    request, outcome = plain
    sample(styled, prompt(1), prompt(2))
    assert go(model, request).reason == "already trained"
    assert same_weights(go(model, replace(request, name="beside")).eraser, outcome.eraser)


# Its predictions


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_gradients_equal_plain_ones(family):
    model = tiny_model(family)
    eraser = tiny_eraser(model)
    with torch.inference_mode(False), torch.enable_grad():
        network = Hypernet(eraser.hypernet.config)
        network.load_state_dict({name: weight.clone() for name, weight in eraser.hypernet.state_dict().items()})
        z, sigma = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.tensor([3.0, 0.5])
        c = torch.stack([embedding(prompt(seed)).clone() for seed in (1, 2)])
        gradients, calls = [], []
        for checkpointing in (False, True):
            frozen = FrozenModel(model, checkpointing)
            frozen.load()
            given = [EncodedPrompt("", c[row], [[torch.ones(1, TOKENS, 32), prompt(row + 1)[0][1]]]) for row in (0, 1)]
            conds = [frozen.model_conds(each, z) for each in given]
            counted = []
            hook = frozen.network.middle_block[1].norm.register_forward_pre_hook(lambda *_, n=counted: n.append(1))
            prediction = frozen.predict(z, sigma, conds, network(c, 150))
            parameters = list(network.parameters())
            gradients.append(torch.autograd.grad(prediction.square().mean(), parameters))
            hook.remove()
            calls.append(len(counted))
            assert overridden(frozen.patcher) == []
    assert calls == [1, 2], "with checkpointing the block runs again for backward"
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-4
    for plain, rerun in zip(*gradients, strict=True):
        torch.testing.assert_close(rerun, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prediction_is_the_noise_as_the_sampler_sees_it(family):
    model = tiny_model(family)
    frozen = FrozenModel(model)
    frozen.load()
    z, sigma = torch.randn(2, 4, 8, 8, generator=seeded(1)), torch.tensor([3.0, 0.5])
    conds = [frozen.model_conds(EncodedPrompt("", embedding(prompt(seed)), prompt(seed)), z) for seed in (1, 2)]
    found = frozen.predict(z, sigma, conds)
    for row in (0, 1):
        others = {"y": conds[row]["y"].cond} if family == "sdxl" else {}
        call = Call(z[row : row + 1], sigma[row : row + 1], prompt(row + 1)[0][0], others, None)
        expected = (call.x - replay(model, call)) / sigma[row]
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-4)


def test_rollouts_collect_the_latents_of_the_chosen_steps(model):
    frozen = FrozenModel(model)
    noise = frozen.noise(2, 64, 64, seeded(0))
    cat, empty = (encode(TinyClip(), text) for text in ("cat", ""))
    collected = frozen.rollout(cat, empty, noise, 5, 3.0, {0, 2, 4})
    assert [z.shape for z, _ in collected] == [noise.shape] * 3
    sigmas = [sigma for _, sigma in collected]
    assert sigmas == sorted(sigmas, reverse=True)
    for z, sigma in collected[:1]:
        torch.testing.assert_close(z, noise * (1 + sigma**2) ** 0.5, rtol=1e-3, atol=1e-3)

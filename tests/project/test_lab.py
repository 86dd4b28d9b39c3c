"""The lab model and how its weights are stored."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import seeded

from benchmarks.lab import flow, flux, storage
from benchmarks.lab.captions import fill
from benchmarks.lab.measure import Lab, accuracy, encode
from benchmarks.lab.model import WEIGHTS, LabVAE, load_model
from benchmarks.lab.text import encode_batch, load_clip, pooled
from benchmarks.lab.vocabulary import CLASSES
from unhype.hypernet.targets import recognise, target_layers


def stored(tmp_path, tensor):
    """A tensor after a round trip, and all that lies in the file."""
    path = tmp_path / "weights.safetensors"
    storage.save({"layer": tensor}, path, {})
    return storage.load(path)["layer"], load_file(path)


@pytest.mark.parametrize("shape", [(500, 400), (256, 100, 3, 3)])
def test_large_tensors_are_off_by_half_a_step_of_their_row_at_most(tmp_path, shape):
    tensor = torch.randn(shape, generator=seeded(0))
    tensor *= torch.logspace(-2, 2, len(tensor)).view(-1, *[1] * (tensor.dim() - 1))
    loaded, kept = stored(tmp_path, tensor)
    assert kept["layer"].dtype == torch.int8
    step = kept["layer.row_scale"].float()
    assert (loaded - tensor).flatten(1).abs().amax(1).le(step * 0.501).all()
    assert step.le(tensor.flatten(1).abs().amax(1) / 126).all()


def test_a_large_tensor_of_zeros_comes_back_as_zeros(tmp_path):
    loaded, kept = stored(tmp_path, torch.zeros(500, 400))
    assert kept["layer.row_scale"].min() > 0
    assert loaded.equal(torch.zeros(500, 400))


def test_small_tensors_are_kept_in_half_precision(tmp_path):
    tensor = torch.randn(20, 30, generator=seeded(0))
    loaded, kept = stored(tmp_path, tensor)
    assert kept["layer"].dtype == torch.float16
    assert loaded.dtype == torch.float32
    assert loaded.equal(tensor.half().float())


def test_the_stored_weights_are_a_stable_diffusion_1_model():
    if not (WEIGHTS / "base.safetensors").exists():
        pytest.skip("the lab model is not in this checkout")
    model = load_model()
    family = recognise(model.model)
    assert family.key == "sd15"
    assert len(target_layers(model.model, family)) > 4
    assert all(weight.isfinite().all() for weight in model.model.diffusion_model.parameters())


def test_a_picture_comes_back_from_its_latent():
    picture = torch.rand(2, 32, 32, 3, generator=seeded(0))
    latent = LabVAE().encode(picture)
    assert latent.shape == (2, 12, 16, 16)
    torch.testing.assert_close(LabVAE().decode(latent), picture, rtol=0, atol=1e-6)


def test_clip_skip_changes_the_tokens_and_not_the_pooled_vector():
    """As in CLIP."""
    clip = load_clip()
    skipping = clip.clone()
    skipping.clip_layer(-2)
    ((usual, values),), ((skipped, same),) = (encode(version, "a cat") for version in (clip, skipping))
    assert torch.equal(values["pooled_output"], same["pooled_output"])
    assert not torch.allclose(usual, skipped)
    (again,) = encode(clip, "a cat")
    assert torch.equal(again[0], usual)


def test_the_small_flux_learns_and_is_one(monkeypatch):
    smaller = {"hidden_size": 64, "axes_dim": [4, 6, 6], "depth": 1, "depth_single_blocks": 1}
    monkeypatch.setattr(flux, "NETWORK", {**flux.NETWORK, **smaller})
    base = flux.build()
    assert recognise(base).key == "flux"
    network = base.diffusion_model.requires_grad_(True)
    flow.initialise(network)
    z0, context = torch.randn(2, 12, 16, 16, generator=seeded(1)), torch.randn(2, 64, 384, generator=seeded(2))
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    with flow.trainable():
        for _ in range(25):
            loss = flow.loss_of(network, z0, context, pooled(context), seeded(3))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_small_flux_draws_the_ten_classes():
    lab = Lab("flux")
    pictures = lab.draw([fill("a photo of a {}", name) for name in CLASSES], range(2))
    seen = accuracy(lab.judges[0], pictures, list(CLASSES), 2)[:, 1]
    assert seen.mean() >= 0.95


def test_without_weights_the_small_flux_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"isn't trained yet: python3 dev\.py lab base --family flux"):
        flux.load_model(tmp_path / "flux.safetensors")


def test_the_pooled_vector_is_a_function_of_the_token_states():
    clip = load_clip()
    context, given = encode_batch(clip, ["a cat", "a photo of a very small dog"])
    torch.testing.assert_close(pooled(context), given)

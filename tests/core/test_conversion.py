"""Files as the paper's authors save them: read safely, and doing what their layer equation says."""

import math
from dataclasses import replace

import pytest
import torch
from families import instance, prompt
from safetensors import safe_open
from tiny import POOLED, noted_calls, replay, sample, seeded, tiny_model

from unhype.hypernet.conversion import import_weights
from unhype.hypernet.files import load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.rows import patched_layers
from unhype.hypernet.targets import PREFIX, recognise, target_layers
from unhype.training.loop import TrainingError
from unhype.training.plan import Request
from unhype.training.run import train_erasure

S, OCTAVES, HIDDEN = 300, 16, 5
# Their names of Flux.1's layers, which are diffusers', beside the host's, and whether the layer is fused there.
FLUX = [
    (f"transformer_blocks.{i}.attn.{theirs}", f"double_blocks.{i}.{ours}", fused)
    for i in (0, 1)
    for theirs, ours, fused in (
        ("to_v", "img_attn.qkv", True),
        ("add_v_proj", "txt_attn.qkv", True),
        ("to_out.0", "img_attn.proj", False),
    )
] + [(f"single_transformer_blocks.{i}.attn.to_v", f"single_blocks.{i}.linear1", True) for i in (0, 1)]


def small(*shape, generator):
    return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])


def their_layer(inputs, outputs, rank, generator, width=POOLED):
    """One layer of theirs, as its module's state dict has it; every number random."""
    frequencies = (2.0 * math.pi / (S + 1)) * torch.pow(torch.tensor(2.0), torch.arange(OCTAVES).float())
    layer = {
        "xL_const_flat": torch.randn(1, inputs * rank, generator=generator) / rank**0.5,
        "xR_const_flat": torch.zeros(1, outputs * rank),
        "alpha_b": torch.tensor(0.5),
        "alpha": torch.randn((), generator=generator),
        "time_feat.freqs": frequencies,
        "original.weight": torch.randn(outputs, inputs, generator=generator),
        "original.bias": torch.randn(outputs, generator=generator),
    }
    for side, size in (("left", inputs * rank), ("right", outputs * rank)):
        layer[f"{side}_head.0.weight"] = small(HIDDEN, width + 2 * OCTAVES, generator=generator)
        layer[f"{side}_head.0.bias"] = small(HIDDEN, generator=generator)
        layer[f"{side}_head.2.weight"] = small(size, HIDDEN, generator=generator)
        layer[f"{side}_head.2.bias"] = small(size, generator=generator)
    return layer


def their_file(backend, rank, model, generator):
    """(state dict, config) of a file for a tiny model."""
    layers = target_layers(model.model, recognise(model.model))
    own = {layer.name: layer for layer in layers}
    names = [(name, name) for name in own] if backend == "sd" else [(theirs, ours) for theirs, ours, _ in FLUX]
    state = {}
    for theirs, ours in names:
        made = their_layer(own[ours].inputs, own[ours].outputs, rank, generator)
        state |= {f"{theirs}.hyper_lora.{key}": value for key, value in made.items()}
    config = {
        "rank": rank,
        "lora_alpha": 0.5,
        "internal_size": HIDDEN,
        "hyper_train_steps": S,
        "use_orig_concat": False,
        "use_pooler": True,
        "backend": backend,
    }
    return state, config


def their_update(state, name, c, x, rank, step=S):
    """(x L) R of one layer, worked out from the file as the equation has it; c: (768,), x: (..., in)."""
    part = {key.partition(".hyper_lora.")[2]: value for key, value in state.items() if key.startswith(name + ".hyper")}
    t = torch.tensor([float(step)])
    angles = t[:, None] * part["time_feat.freqs"]
    v = torch.cat([c[None], torch.cos(angles), torch.sin(angles)], dim=1)

    def head(side):
        inner = part[f"{side}_head.0.weight"] @ v[0] + part[f"{side}_head.0.bias"]
        return part[f"{side}_head.2.weight"] @ inner.clamp(min=0) + part[f"{side}_head.2.bias"]

    scale = part["alpha_b"] + step / S * part["alpha"]
    L = scale * (part["xL_const_flat"][0] + step / S * head("left"))
    R = part["xR_const_flat"][0] + step / S * head("right")
    return (x @ L.reshape(-1, rank)) @ R.reshape(rank, -1)


def embedding(seed=1):
    return torch.randn(POOLED, generator=seeded(seed))


@pytest.fixture
def model(request):
    return tiny_model() if request.param == "sd" else instance("flux")


BACKENDS = pytest.mark.parametrize(("backend", "model"), [("sd", "sd"), ("flux", "flux")], indirect=["model"])


def write(path, state, config=None):
    torch.save(state if config is None else {"state_dict": state, "config": config}, path)
    return path


@BACKENDS
@pytest.mark.parametrize("rank", range(1, 10))
@torch.inference_mode()
def test_every_layer_does_what_their_equation_says(backend, model, rank, tmp_path):
    state, config = their_file(backend, rank, model, seeded(rank))
    eraser = import_weights(write(tmp_path / "theirs.pth", state, config))
    network, c = model.model.diffusion_model, embedding()
    names = dict((ours, theirs) for theirs, ours, _ in FLUX) if backend == "flux" else {}
    layers = eraser.hypernet(c[None], S)
    rows = torch.tensor([1])
    assert len(layers) == len(target_layers(model.model, recognise(model.model)))
    for layer in eraser.hypernet.config.layers:
        module = network.get_submodule(layer.name)
        x = torch.randn(2, 3, layer.inputs, generator=seeded(2))
        base = module(x)
        with patched_layers(network, eraser.hypernet.config.layers, rows, layers, 2):
            found = module(x)
        update = their_update(state, names.get(layer.name, layer.name), c, x[1], rank)
        assert update.abs().max() > 0.01
        assert (found[1, :, layer.rows] - (base[1, :, layer.rows] + update)).abs().max() <= 1e-5 * max(
            1.0, float(found.abs().max())
        )
        others = torch.ones(layer.features, dtype=torch.bool)
        others[layer.rows] = False
        assert torch.equal(found[1][:, others], base[1][:, others])
        assert torch.equal(found[0], base[0])


@BACKENDS
@pytest.mark.parametrize("step", [0, 37, 150, 300])
def test_strength_is_the_place_on_their_trajectory(backend, model, step, tmp_path):
    state, config = their_file(backend, 2, model, seeded(3))
    eraser = import_weights(write(tmp_path / "theirs.pth", state, config))
    name, factors = eraser.hypernet.config.layers[0], eraser.hypernet(embedding()[None], step)[0]
    theirs = next(t for t, ours, _ in FLUX if ours == name.name) if backend == "flux" else name.name
    x = torch.eye(name.inputs)
    expected = their_update(state, theirs, embedding(), x, 2, step)
    torch.testing.assert_close(x @ factors.A[0].T @ factors.B[0].T, expected, rtol=1e-5, atol=1e-5)
    if step == 0:
        assert not factors.B.any()


@BACKENDS
@torch.inference_mode()
def test_an_imported_file_erases_and_exports(backend, model, tmp_path):
    state, config = their_file(backend, 4, model, seeded(5))
    import_weights(write(tmp_path / "theirs.pth", state, config), (("cat", "tree"),))
    eraser = load(tmp_path / "theirs.safetensors")
    name = "flux" if backend == "flux" else "sd3"  # prompts with a pooled vector
    a, negative = prompt(name, 1), prompt(name, 3)
    with noted_calls(apply_erasure(model, eraser)) as (clone, calls):
        sample(clone, a, negative, steps=1)
    (call,) = calls
    rows, base = call.reads(a), replay(model, call)
    patched = model.clone()
    c = a[0][1]["pooled_output"][0]
    names = dict((ours, theirs) for theirs, ours, _ in FLUX) if backend == "flux" else {}
    for layer in eraser.hypernet.config.layers:
        delta = their_update(state, names.get(layer.name, layer.name), c, torch.eye(layer.inputs), 4).T
        patched.add_patches({(f"{PREFIX}{layer.name}.weight", (0, layer.start, layer.outputs)): ("diff", (delta,))})
    expected, effect = replay(patched, call)[rows], (replay(patched, call) - base)[rows].abs().max()
    assert (call.output[rows] - expected).abs().max() <= 1e-4 * effect + 1e-6 * expected.abs().max()
    assert torch.equal(call.output[~rows], base[~rows])
    assert len(to_lora(eraser, c, "a cat")) == 3 * len(eraser.hypernet.config.layers)


# Key variants


@BACKENDS
@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model.", "diffusion_model.", "transformer."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_way_of_saving_the_same_gives_the_same(backend, model, prefix, wrapped, tmp_path):
    state, config = their_file(backend, 3, model, seeded(4))
    plain = import_weights(write(tmp_path / "plain.pth", state, config))
    renamed = {prefix + key: value for key, value in state.items()} | {"out.2.weight": torch.ones(3)}
    other = import_weights(write(tmp_path / "other.pth", renamed, config if wrapped else None))
    assert other.network.config.layers == plain.network.config.layers
    for one, two in zip(other.network(embedding()[None], S), plain.network(embedding()[None], S), strict=True):
        assert torch.equal(one.A, two.A)
        assert torch.equal(one.B, two.B)


@BACKENDS
def test_half_precision_is_read(backend, model, tmp_path):
    state, config = their_file(backend, 2, model, seeded(4))
    half = {key: value if "freqs" in key else value.half() for key, value in state.items()}
    eraser = import_weights(write(tmp_path / "half.pth", half, config))
    assert {weight.dtype for weight in eraser.hypernet.state_dict().values()} == {torch.float32}


# The file that is made


@BACKENDS
def test_the_base_weights_are_left_out_and_the_rest_is_kept(backend, model, tmp_path):
    state, config = their_file(backend, 2, model, seeded(4))
    eraser = import_weights(write(tmp_path / "theirs.pth", state, config), (("cat", "tree"), ("dog", "")))
    with safe_open(tmp_path / "theirs.safetensors", "pt") as file:
        numbers = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - no dict
    heads = sum(v.numel() for k, v in state.items() if "head" in k or "xL_const" in k or k.endswith(("alpha", "_b")))
    assert numbers == heads + OCTAVES
    loaded = load(tmp_path / "theirs.safetensors")
    assert loaded.record == eraser.record
    assert loaded.record.family == ("flux" if backend == "flux" else "sd15")
    assert loaded.record.concepts == (("cat", "tree"), ("dog", ""))
    assert loaded.record.dead_zone == 0
    assert loaded.network.config == eraser.hypernet.config
    for one, two in zip(loaded.network(embedding()[None], S), eraser.hypernet(embedding()[None], S), strict=True):
        assert torch.equal(one.A, two.A)
        assert torch.equal(one.B, two.B)


def sd_file(tmp_path, change=lambda state, config: None, name="theirs.pth"):
    state, config = their_file("sd", 2, tiny_model(), seeded(4))
    change(state, config)
    return write(tmp_path / name, state, config)


def test_a_file_is_converted_once(tmp_path):
    path = sd_file(tmp_path)
    import_weights(path)
    made = (tmp_path / "theirs.safetensors").stat().st_mtime_ns
    assert import_weights(path).record.concepts[0][0] == "theirs"
    assert (tmp_path / "theirs.safetensors").stat().st_mtime_ns == made
    assert import_weights(path, (("ship", "lake"),)).record.concepts == (("ship", "lake"),)
    assert load(tmp_path / "theirs.safetensors").record.concepts == (("ship", "lake"),)


def test_a_strangers_file_of_that_name_is_left_alone(tmp_path):
    path = sd_file(tmp_path)
    (tmp_path / "theirs.safetensors").write_bytes(b"a diary")
    with pytest.raises(HypernetFileError, match=r"there is another file 'theirs\.safetensors' beside it"):
        import_weights(path)
    assert (tmp_path / "theirs.safetensors").read_bytes() == b"a diary"


# What is refused


def drop(word):
    def change(state, config):
        for key in [key for key in state if word in key]:
            del state[key]

    return change


def settings(**values):
    return lambda state, config: config.update(values)


def put(word, value, shape=None):
    def change(state, config):
        key = next(key for key in reversed(state) if word in key)
        state[key] = torch.full(shape or state[key].shape, value)

    return change


def rename(state, config):
    for key in [key for key in state if "attn2" in key]:
        state[key.replace("attn2", "attn1")] = state.pop(key)


REFUSED = [
    (drop("xL_const_flat"), "lacks the random constant that it was eraser with"),
    (drop("hyper_lora"), "holds no hypernet of the UnHype authors"),
    (drop("right_head.2.bias"), r"lacks \['right_head\.2\.bias'\]"),
    (settings(embedding_model="nv_embed"), r"another text encoder \(nv_embed\)"),
    (settings(use_orig_concat=True), "use_orig_concat"),
    (settings(use_pooler=False), "use_pooler off"),
    (settings(rank=4), "not the rank 4 that its config says"),
    (put("left_head.0.weight", 1.0, (HIDDEN, 3)), "does not fit together"),
    (put("xR_const_flat", 1.0), "for every prompt"),
    (put("left_head.2.weight", float("nan")), "not numbers"),
    (rename, r"changes the layer 'input_blocks.*attn1\.to_k'"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=[reason[:24] for _, reason in REFUSED])
def test_what_cannot_work_is_refused_with_the_reason(change, reason, tmp_path):
    with pytest.raises(HypernetFileError, match=rf"'theirs\.pth' (?s:.)*{reason}"):
        import_weights(sd_file(tmp_path, change))
    assert not (tmp_path / "theirs.safetensors").exists()


def test_without_a_rank_anywhere_a_file_is_refused(tmp_path):
    def change(state, config):
        config.pop("rank")
        drop("original")(state, config)

    with pytest.raises(HypernetFileError, match="does not say its rank"):
        import_weights(sd_file(tmp_path, change))


class Program:
    """What a harmful file would hold: an object whose loading runs something."""

    def __reduce__(self):
        return (open, ("ran.txt", "w"))


def test_a_file_with_a_program_in_it_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = sd_file(tmp_path, lambda state, config: config.update(note=Program()))
    with pytest.raises(HypernetFileError, match="not opened for safety's sake"):
        import_weights(path)
    assert not (tmp_path / "ran.txt").exists()


@pytest.mark.parametrize("length", [0, 10, 1000])
def test_a_damaged_file_is_refused(tmp_path, length):
    path = sd_file(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(HypernetFileError, match=r"'theirs\.pth' is damaged"):
        import_weights(path)


def test_an_imported_hypernet_is_not_trained_further(tmp_path):
    eraser = import_weights(sd_file(tmp_path))
    request = Request("dog -> tree", "", tmp_path, "more", tmp_path, start_from=replace(eraser, name="theirs"))
    with pytest.raises(TrainingError, match="'theirs' was imported from the paper's authors"):
        train_erasure(tiny_model(), object(), request, lambda *_, **__: None)

"""Files as the paper's authors save them: loaded safely, and doing what their layer equation says."""

import pytest
import torch
from allocated import Allocated
from core_parts import POOLED, network_of, seeded
from published_parts import HIDDEN, OCTAVES, S, saved, their_file, their_layers, their_name, their_update
from safetensors import safe_open

from unhype.hypernet.conversion import import_weights
from unhype.hypernet.files import load
from unhype.hypernet.lora import to_lora
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.rows import patched_layers

BACKENDS = pytest.mark.parametrize("backend", ["sd", "flux"])


def embedding(seed=1):
    return torch.randn(POOLED, generator=seeded(seed))


@BACKENDS
@pytest.mark.parametrize("rank", range(1, 10))
@torch.inference_mode()
def test_every_layer_does_what_their_equation_says(backend, rank, tmp_path):
    state, config = their_file(backend, rank, their_layers(backend), seeded(rank))
    eraser = import_weights(saved(tmp_path / "theirs.pth", state, config))
    network, c = network_of(their_layers(backend)), embedding()
    layers = eraser.hypernet(c[None], S)
    rows = torch.tensor([1])
    assert set(eraser.hypernet.config.layers) == set(their_layers(backend))
    for layer in eraser.hypernet.config.layers:
        module = network.get_submodule(layer.name)
        x = torch.randn(2, 3, layer.inputs, generator=seeded(2))
        base = module(x)
        with patched_layers(network, eraser.hypernet.config.layers, rows, layers):
            found = module(x)
        update = their_update(state, their_name(layer), c, x[1], rank)
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
def test_strength_is_the_place_on_their_trajectory(backend, step, tmp_path):
    state, config = their_file(backend, 2, their_layers(backend), seeded(3))
    eraser = import_weights(saved(tmp_path / "theirs.pth", state, config))
    layer, factors = eraser.hypernet.config.layers[0], eraser.hypernet(embedding()[None], step)[0]
    x = torch.eye(layer.inputs)
    expected = their_update(state, their_name(layer), embedding(), x, 2, step)
    torch.testing.assert_close(x @ factors.A[0].T @ factors.B[0].T, expected, rtol=1e-5, atol=1e-5)
    if step == 0:
        assert not factors.B.any()


@BACKENDS
def test_an_imported_file_makes_a_lora(backend, tmp_path):
    state, config = their_file(backend, 4, their_layers(backend), seeded(5))
    import_weights(saved(tmp_path / "theirs.pth", state, config), (("cat", "tree"),))
    eraser = load(tmp_path / "theirs.safetensors")
    lora = to_lora(eraser, embedding(), "a cat")
    for layer in eraser.hypernet.config.layers:
        up, down = (lora[f"diffusion_model.{layer.name}.lora_{side}.weight"] for side in ("up", "down"))
        update = their_update(state, their_name(layer), embedding(), torch.eye(layer.inputs), 4)
        torch.testing.assert_close((up @ down)[layer.rows].T, update, rtol=1e-4, atol=1e-5)


# Key variants


@BACKENDS
@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model.", "diffusion_model.", "transformer."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_way_of_saving_the_same_gives_the_same(backend, prefix, wrapped, tmp_path):
    state, config = their_file(backend, 3, their_layers(backend), seeded(4))
    plain = import_weights(saved(tmp_path / "plain.pth", state, config))
    renamed = {prefix + key: value for key, value in state.items()} | {"out.2.weight": torch.ones(3)}
    other = import_weights(saved(tmp_path / "other.pth", renamed, config if wrapped else None))
    assert other.hypernet.config.layers == plain.hypernet.config.layers
    for one, two in zip(other.hypernet(embedding()[None], S), plain.hypernet(embedding()[None], S), strict=True):
        assert torch.equal(one.A, two.A)
        assert torch.equal(one.B, two.B)


@BACKENDS
def test_half_precision_is_loaded_in_fp32(backend, tmp_path):
    state, config = their_file(backend, 2, their_layers(backend), seeded(4))
    half = {key: value if "freqs" in key else value.half() for key, value in state.items()}
    eraser = import_weights(saved(tmp_path / "half.pth", half, config))
    assert {weight.dtype for weight in eraser.hypernet.state_dict().values()} == {torch.float32}


# The file that is made


@BACKENDS
def test_the_base_weights_are_left_out_and_the_rest_is_kept(backend, tmp_path):
    state, config = their_file(backend, 2, their_layers(backend), seeded(4))
    eraser = import_weights(saved(tmp_path / "theirs.pth", state, config), (("cat", "tree"), ("dog", "")))
    with safe_open(tmp_path / "theirs.safetensors", "pt") as file:
        numbers = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - no dict
    heads = sum(v.numel() for k, v in state.items() if "head" in k or "xL_const" in k or k.endswith(("alpha", "_b")))
    assert numbers == heads + OCTAVES
    loaded = load(tmp_path / "theirs.safetensors")
    assert loaded.record == eraser.record
    assert loaded.record.family == ("flux" if backend == "flux" else "sd15")
    assert loaded.record.concepts == (("cat", "tree"), ("dog", ""))
    assert loaded.detector is None
    assert loaded.score(embedding()[None]).tolist() == [1.0]
    assert loaded.hypernet.config == eraser.hypernet.config
    for one, two in zip(loaded.hypernet(embedding()[None], S), eraser.hypernet(embedding()[None], S), strict=True):
        assert torch.equal(one.A, two.A)
        assert torch.equal(one.B, two.B)


def sd_file(tmp_path, change=lambda state, config: None, name="theirs.pth"):
    state, config = their_file("sd", 2, their_layers("sd"), seeded(4))
    change(state, config)
    return saved(tmp_path / name, state, config)


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
    (drop("xL_const_flat"), "lacks the random constant that it was trained with"),
    (drop("hyper_lora"), "holds no hypernet of the UnHype authors"),
    (drop("right_head.2.bias"), r"lacks \['right_head\.2\.bias'\]"),
    (settings(embedding_model="nv_embed"), r"another text encoder \(nv_embed\)"),
    (settings(use_orig_concat=True), "use_orig_concat"),
    (settings(use_pooler=False), "use_pooler off"),
    (settings(rank=4), "n't have the rank 4 of its config"),
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

    with pytest.raises(HypernetFileError, match="names no rank"):
        import_weights(sd_file(tmp_path, change))


def test_more_weights_than_a_file_holds_are_refused_at_no_cost(tmp_path):
    """Strides of zero make any number of weights of one."""

    def change(state, config):
        for key in [key for key in state if "head.2.weight" in key]:
            state[key] = torch.zeros(1).expand(50_000, 50_000)

    path = sd_file(tmp_path, change)
    with (
        Allocated() as allocated,
        pytest.raises(HypernetFileError, match=r"'theirs\.pth' is damaged: it claims more weights than it holds"),
    ):
        import_weights(path)
    assert allocated.bytes < 4 * path.stat().st_size


def test_a_first_layer_wider_than_the_others_is_refused_before_a_network_is_built(tmp_path):
    """The hidden width is read from the first layer, and the network has it in all."""

    def change(state, config):
        first = next(iter(state)).partition(".hyper_lora.")[0]
        state[f"{first}.hyper_lora.left_head.0.weight"] = torch.zeros(50_000, POOLED + 2 * OCTAVES)

    path = sd_file(tmp_path, change)
    with Allocated() as allocated, pytest.raises(HypernetFileError, match="does not fit together"):
        import_weights(path)
    assert allocated.bytes < 4 * path.stat().st_size


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

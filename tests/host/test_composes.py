"""Erasure beside the other nodes around a sampler: the same picture, whichever of the two comes first.

The expected picture is made without the pack: `by_hand` adds the dense change B A, computed from the hypernet, to
the target layers for those rows of a block whose context is a prompt's own tokens, and for no others.
`test_lora_export` shows that ComfyUI makes the same change of the exported LoRA.
"""

import inspect
import json
import os
from contextlib import contextmanager

import comfy.model_management
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from model_parts import MODEL_PARTS, Missing, another_model, run_node
from prompt_parts import GUIDER_PARTS, PROMPT_PARTS
from tiny import LATENT, embedding, overridden, prompt, seeded, tiny_eraser, tiny_model

from benchmarks.environment import ROOT
from unhype.hypernet.controlnets import TEXT as CONTROL_TEXT
from unhype.hypernet.patch import apply_erasure

A, B, NEGATIVE, EMPTY = prompt(1), prompt(2), prompt(3), prompt(6)
# Every prompt of the parts that isn't a negative one.
POSITIVE = [A, B, prompt(2, tokens=16), prompt(4)]
# Parts that get the prediction for the negative prompt, and guiders that surely push away from it: elsewhere it is
# erased like any prompt.
OWN_GUIDANCE = {"pag", "sag", "slg", "perp-neg", "rescale cfg", "mahiro", "tcfg", "apg", "fresca"}
# Behind these, what attention gives for the negative prompt may end in the positive one's rows.
OWN_GUIDANCE |= {"nag", "hypertile", "tome"}
PLAIN = {"cfg", "cfg 1", "basic"}
# Four pictures are four frames to nodes that look at windows of frames, and a cache needs steps to leave out.
SETTINGS = {"context windows": {"pictures": 4, "steps": 3}, "easy cache": {"steps": 3}}
# Where weights lie and how frames are grouped need not change a picture.
MAY_BE_SAME = {"partly loaded", "context windows"}

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def shared():
    """The tiny model, which has the same weights and gives the same picture when all tests are done."""
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    with torch.inference_mode():
        picture = draw(GUIDER_PARTS["cfg"](model, A, NEGATIVE))
        yield model
        assert torch.equal(draw(GUIDER_PARTS["cfg"](model, A, NEGATIVE)), picture)
    comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def model(shared):
    """The tiny model, on which no test leaves an override."""
    yield shared
    assert overridden(shared) == []


@pytest.fixture(scope="module")
def eraser(shared):
    return tiny_eraser(shared)


@contextmanager
def available():
    """Skips what this ComfyUI lacks, and what fails on it without any erasure."""
    try:
        yield
    except Missing as lacking:
        pytest.skip(f"ComfyUI {os.environ.get('UNHYPE_HOST')} has {lacking}")
    except RuntimeError as error:
        pytest.skip(f"ComfyUI {os.environ.get('UNHYPE_HOST')} fails there by itself: {error}")


def draw(guider, pictures=2, steps=2, sampler="euler", denoise=1.0, latent=None, mask=None, side=LATENT):
    """Latents as SamplerCustomAdvanced would make them."""
    torch.manual_seed(0)  # a few nodes draw from the global generator
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", round(steps / denoise))[-steps - 1 :]
    noise = torch.randn(pictures, 4, side, side, generator=seeded(5))
    latent = torch.zeros_like(noise) if latent is None else latent
    method = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, latent, method, sigmas, denoise_mask=mask, disable_pbar=True, seed=0)


def _rows_of(context, conditioning):
    """The rows of a block's context that are this prompt, whose tokens the host repeats to make lengths equal."""
    tokens = conditioning[0][0][0].to(context)
    if context.shape[1] % len(tokens):
        return torch.zeros(len(context), dtype=torch.bool)
    return (context == tokens.repeat(context.shape[1] // len(tokens), 1)).flatten(1).all(1)


@contextmanager
def by_hand(model, eraser, conditionings):
    """While open, the target layers of `model` add B A x to the rows whose context is one of the conditionings."""
    network, layers, hooks, rows, lengths = model.model.diffusion_model, eraser.hypernet.config.layers, [], {}, {}
    deltas = [eraser.hypernet(embedding(conditioning).unsqueeze(0), 300) for conditioning in conditionings]

    def note(block, args, kwargs):
        context = kwargs.get("context", args[1] if len(args) > 1 else None)
        rows[block] = [_rows_of(context, conditioning) for conditioning in conditionings]
        lengths[block] = context.shape[1]  # what comes behind is no token of the prompt

    def add(layer, block, number):
        def hook(module, args, y):
            y = y.clone()
            for selected, factors in zip(rows[block], deltas, strict=True):
                dense = factors[number].B[0] @ factors[number].A[0]
                y[selected, : lengths[block]] += args[0][selected, : lengths[block]].float() @ dense.T
            return y

        return layer.register_forward_hook(hook)

    for number, layer in enumerate(layers):
        block = network.get_submodule(layer.name.partition(".attn2")[0])
        if block not in rows:
            rows[block] = []
            hooks.append(block.register_forward_pre_hook(note, with_kwargs=True))
        hooks.append(add(network.get_submodule(layer.name), block, number))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check(found, expected, base):
    """The pictures agree to a thousandth of the erasure's effect, which is not zero."""
    effect = (expected - base).abs().max()
    assert effect > 0.01 * base.abs().max()
    assert (found - expected).abs().max() <= 1e-3 * effect


@pytest.fixture(scope="module")
def expected():
    """The pictures by hand of each part, shared by both orders."""
    return {}


@pytest.mark.parametrize("order", ["erasure first", "erasure last"])
@pytest.mark.parametrize("name", MODEL_PARTS)
def test_a_model_part(model, eraser, expected, name, order):
    part, settings, guider = MODEL_PARTS[name], SETTINGS.get(name, {}), GUIDER_PARTS["cfg"]
    if name not in expected:
        with available():
            changed = part(model)
            base = draw(guider(changed, A, NEGATIVE), **settings)
        with by_hand(model, eraser, POSITIVE + [NEGATIVE] * (name in OWN_GUIDANCE)):
            expected[name] = draw(guider(changed, A, NEGATIVE), **settings), base
        same = torch.equal(base, draw(guider(model, A, NEGATIVE), **settings))
        assert name in MAY_BE_SAME or not same, "a part without an effect tests nothing"
    erased = part(apply_erasure(model, eraser)) if order == "erasure first" else apply_erasure(part(model), eraser)
    found = draw(guider(erased, A, NEGATIVE), **settings)
    check(found, *expected[name])
    if order == "erasure last":
        assert torch.equal(draw(guider(erased, A, NEGATIVE), **settings), found), "queued twice"


def with_erased_controls(conditioning, erased=True):
    """A CONDITIONING whose ControlNets read zeros, where it is erased, and else its text."""
    return [
        [states, {**values, CONTROL_TEXT: torch.zeros_like(states) if erased else states}]
        if "control" in values
        else [states, values]
        for states, values in conditioning
    ]


PAIRS = [*((prompts, "cfg") for prompts in PROMPT_PARTS), *(("regional", guider) for guider in GUIDER_PARTS)]


@pytest.mark.parametrize(("prompts", "guider"), dict.fromkeys(PAIRS))
def test_a_guider_with_prompts(model, eraser, prompts, guider):
    with available():
        positive, negative = PROMPT_PARTS[prompts](A, NEGATIVE)
        plain = GUIDER_PARTS[guider](model, positive, negative)
    base = draw(plain)
    conditionings = POSITIVE + [NEGATIVE, EMPTY] * (guider not in PLAIN)
    # The dual guider draws the negative prompt on a model of its own, with the wrappers of the first.
    with available():
        erased = with_erased_controls(positive), with_erased_controls(negative, guider not in PLAIN)
        by_hand_guider = GUIDER_PARTS[guider](model, *erased)
    with by_hand(model, eraser, conditionings), by_hand(another_model(), eraser, conditionings):
        expected = draw(by_hand_guider)
    found = draw(GUIDER_PARTS[guider](apply_erasure(model, eraser), positive, negative))
    check(found, expected, base)


LATENTS = {
    "one": {"pictures": 1},
    "five": {"pictures": 5},
    "larger": {"side": 2 * LATENT},
    "img2img": {"denoise": 0.5, "latent": torch.randn(2, 4, LATENT, LATENT, generator=seeded(60))},
    "inpainting": {
        "latent": torch.randn(2, 4, LATENT, LATENT, generator=seeded(61)),
        "mask": (torch.rand(1, 1, LATENT, LATENT, generator=seeded(62)) > 0.5).float(),
    },
    "ancestral": {"sampler": "euler_ancestral"},
    "two calls a step": {"sampler": "heun"},
    "multistep": {"sampler": "dpmpp_2m"},
    "cfg++": {"sampler": "euler_cfg_pp"},
}


@pytest.mark.parametrize("name", LATENTS)
def test_a_latent_or_sampler(model, eraser, name):
    guider = GUIDER_PARTS["cfg"]
    base = draw(guider(model, A, NEGATIVE), **LATENTS[name])
    # CFG++ takes the prediction for the negative prompt out by a function of its own.
    with by_hand(model, eraser, [A] + [NEGATIVE] * (name == "cfg++")):
        expected = draw(guider(model, A, NEGATIVE), **LATENTS[name])
    check(draw(guider(apply_erasure(model, eraser), A, NEGATIVE), **LATENTS[name]), expected, base)


def test_a_second_pass_at_another_size_with_the_same_guider(model, eraser):
    def twice(guider):
        small = draw(guider, steps=2)
        large = torch.nn.functional.interpolate(small, scale_factor=2.0)
        return draw(guider, steps=2, denoise=0.5, latent=large, side=2 * LATENT)

    guider = GUIDER_PARTS["cfg"]
    base = twice(guider(model, A, NEGATIVE))
    with by_hand(model, eraser, [A]):
        expected = twice(guider(model, A, NEGATIVE))
    check(twice(guider(apply_erasure(model, eraser), A, NEGATIVE)), expected, base)


def test_two_branches_with_an_eraser_each(model, eraser):
    """One graph, one loaded model, two samplers that take turns."""
    other, guider = tiny_eraser(model, seed=7), GUIDER_PARTS["cfg"]
    base, branches = draw(guider(model, A, NEGATIVE)), [eraser, other, eraser]
    found = [draw(guider(apply_erasure(model, own), A, NEGATIVE)) for own in branches]
    for own, picture in zip(branches, found, strict=True):
        with by_hand(model, own, [A]):
            check(picture, draw(guider(model, A, NEGATIVE)), base)


def test_parts_stacked_on_both_sides(model, eraser):
    def stack(model, *names):
        for name in names:
            model = MODEL_PARTS[name](model)
        return model

    below, above, guider = (
        ("lora", "freeu", "pag"),
        ("merge", "ip-adapter", "tiles", "rescale cfg"),
        GUIDER_PARTS["cfg"],
    )
    positive, negative = PROMPT_PARTS["regional"](*PROMPT_PARTS["control net"](A, NEGATIVE))
    plain = stack(model, *below, *above)
    base = draw(guider(plain, positive, negative))
    with by_hand(model, eraser, [*POSITIVE, NEGATIVE]):
        expected = draw(guider(plain, with_erased_controls(positive), with_erased_controls(negative)))
    erased = stack(apply_erasure(stack(model, *below), eraser), *above)
    check(draw(guider(erased, positive, negative)), expected, base)


def test_a_merge_takes_the_weights_of_its_second_model_only(model, eraser):
    """No patch survives there, so the help of Apply Concept Erasure names the input to connect to."""
    erased, other, guider = apply_erasure(model, eraser), tiny_model(seed=9), GUIDER_PARTS["cfg"]

    def merged_into_other(second):
        inputs = {"model1": other, "model2": second, "ratio": 0.5}
        return run_node("comfy_extras.nodes_model_merging", "ModelMergeSimple", **inputs)[0]

    found = draw(guider(merged_into_other(erased), A, NEGATIVE))
    assert torch.equal(found, draw(guider(merged_into_other(model), A, NEGATIVE)))
    assert "`model1`" in (ROOT / "web" / "docs" / "UnHypeApplyErasure.md").read_text("utf-8")


def quantised_model():
    """The tiny model with its cross-attention stored as the host's scaled fp8 tensors."""
    if not hasattr(comfy.ops, "mixed_precision_ops"):
        raise Missing("no mixed precision operations")
    weights = tiny_model().model.diffusion_model.state_dict()
    layers = {name.removesuffix(".weight") for name in weights if ".attn2." in name and weights[name].dim() > 1}
    kind = {"format": "float8_e4m3fn"}
    for layer in layers:
        weight = weights[f"{layer}.weight"]
        weights[f"{layer}.weight_scale"] = scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        weights[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    options, known = {"compute_dtype": torch.float32}, inspect.signature(comfy.ops.mixed_precision_ops).parameters
    if "layer_quant_config" in known:
        options["layer_quant_config"] = dict.fromkeys(layers, kind)
    else:
        options |= {"quant_config": {"mixed_ops": True}, "disabled": {kind["format"]}}
        mark = torch.tensor(list(json.dumps(kind).encode()), dtype=torch.uint8)
        weights |= {f"{layer}.comfy_quant": mark.clone() for layer in layers}
    model = tiny_model(operations=comfy.ops.mixed_precision_ops(**options))
    model.model.diffusion_model.load_state_dict(weights, strict=False)
    assert type(model.model.diffusion_model.get_submodule(layer).weight.data).__name__ == "QuantizedTensor"
    return model


@pytest.mark.parametrize(
    "make", [lambda: tiny_model(dtype=torch.float8_e4m3fn), quantised_model], ids=["fp8 storage", "mixed precision"]
)
def test_weights_of_eight_bits(eraser, make):
    with available():
        model = make()
    guider = GUIDER_PARTS["cfg"]
    base = draw(guider(model, A, NEGATIVE))
    with by_hand(model, eraser, [A]):
        expected = draw(guider(model, A, NEGATIVE))
    check(draw(guider(apply_erasure(model, eraser), A, NEGATIVE)), expected, base)
    assert torch.equal(draw(guider(model, A, NEGATIVE)), base)


def test_a_compiled_block_is_compiled_once_for_all_prompts(model, eraser, caplog):
    torch._dynamo.reset()  # what other tests compiled decides what is compiled anew
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compiled(model):
        clone = model.clone()
        keys = ["diffusion_model.middle_block.1.transformer_blocks.0.attn2"]
        set_torch_compile_wrapper(model=clone, backend=backend, keys=keys)
        return clone

    plain, guider = apply_erasure(model, eraser), GUIDER_PARTS["cfg"]
    expected = {name: draw(guider(plain, positive, NEGATIVE)) for name, positive in (("A", A), ("B", B))}
    for both in (compiled(apply_erasure(model, eraser)), apply_erasure(compiled(model), eraser)):
        assert torch.equal(draw(guider(both, A, NEGATIVE)), expected["A"])
        before = len(graphs)
        assert before > 0
        assert torch.equal(draw(guider(both, B, NEGATIVE)), expected["B"])
        assert len(graphs) == before
    assert "runs without its delta" not in caplog.text

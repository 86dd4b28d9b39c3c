"""Text that reaches the target layers beside the conditionings: scored like a prompt, or unknown_prompts decides."""

import logging
from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from chunks import NEGATIVE, without_regressor
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import WrappersMP
from families import NAMES, embedding_of, eraser_for, instance, key_of
from families import prompt as prompt_of
from prompt_parts import GUIDER_PARTS
from test_families import with_offset_patches
from tiny import CPU, TOKENS, detector_of, noted_calls, overridden, replay, sample, seeded
from torch.nn.functional import linear

from unhype.hypernet.doors import ErasureLapsedError
from unhype.hypernet.families import FAMILIES
from unhype.hypernet.patch import apply_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

JOINT = {family.key for family in FAMILIES if family.joint}


# The ways: each takes a MODEL and a text, and gives a MODEL that draws the text too.


def _attention_patch(rows_of):
    """rows_of: takes rows (n, tokens, in) and the text's (1, tokens, in), and gives rows of a multiple of n."""

    def way(model, conditioning):
        def patch(q, keys, values, options):
            changed = rows_of(keys, conditioning[0][0].repeat(1, keys.shape[1] // TOKENS, 1))
            return q.repeat(len(changed) // len(keys), 1, 1), changed, changed

        def output(n, options):
            batch = options["original_shape"][0]
            return n.unflatten(0, (-1, batch)).mean(0)

        clone = model.clone()
        clone.set_model_attn2_patch(patch)
        clone.set_model_attn2_output_patch(output)
        return clone

    return way


def _wrapper(kind, change):
    """A wrapper of that kind around the eraser or inside of it. change: of its arguments, by a tokens tensor."""

    def way(model, conditioning):
        clone = model.clone()
        clone.add_wrapper_with_key(
            kind,
            "another node",
            lambda executor, *args, **kwargs: executor(*change(args, conditioning[0][0]), **kwargs),
        )
        return clone

    return way


def _third_lengthened(args, tokens):
    x, t, context, *rest = args
    return x, t, torch.cat([context, tokens.to(context).expand(len(context), -1, -1)], 1), *rest


def _fourth_replaced(args, tokens):
    x, t, c_concat, context, *rest = args
    return x, t, c_concat, tokens.repeat(1, context.shape[1] // TOKENS, 1).expand(len(context), -1, -1), *rest


def _conditionings_replaced(args, tokens):
    model, conds, *rest = args

    def replaced(cond):
        return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": CONDCrossAttn(tokens)}}

    return model, [[replaced(cond) for cond in conds[0]], *conds[1:]], *rest


def _model_function(model, conditioning):
    def wrapper(apply, arguments):
        c = arguments["c"]
        tokens = conditioning[0][0].repeat(1, c["c_crossattn"].shape[1] // TOKENS, 1)
        c = {**c, "c_crossattn": tokens.expand(len(c["c_crossattn"]), -1, -1)}
        return apply(arguments["input"], arguments["timestep"], **c)

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


def _calls_function(model, conditioning):
    """As guiders do that add conditionings of their own."""

    def function(arguments):
        positive, negative = arguments["conds"]
        entry = {**positive[0], "model_conds": {"c_crossattn": CONDCrossAttn(conditioning[0][0])}}
        entry["cross_attn"], entry["pooled_output"] = conditioning[0][0], conditioning[0][1]["pooled_output"]
        return comfy.samplers.calc_cond_batch(
            arguments["model"], [[entry], negative], arguments["input"], arguments["sigma"], arguments["model_options"]
        )

    clone = model.clone()
    clone.set_model_sampler_calc_cond_batch_function(function)
    return clone


WAYS = {
    "rows behind": _attention_patch(lambda rows, own: torch.cat([rows, own.expand(len(rows), -1, -1)])),
    "rows before": _attention_patch(lambda rows, own: torch.cat([own.expand(len(rows), -1, -1), rows])),
    "in place": _attention_patch(lambda rows, own: own.expand(len(rows), -1, -1).clone()),
    "one row in place": _attention_patch(lambda rows, own: torch.cat([rows[:-1], own])),
    "tokens behind": _attention_patch(lambda rows, own: torch.cat([rows, own.expand(len(rows), -1, -1)], 1)),
    "tokens before": _attention_patch(lambda rows, own: torch.cat([own.expand(len(rows), -1, -1), rows], 1)),
    "tokens in the middle": _attention_patch(
        lambda rows, own: torch.cat([rows[:, :3], own.expand(len(rows), -1, -1), rows[:, 3:]], 1)
    ),
    "a wrapper around the network": _wrapper(WrappersMP.DIFFUSION_MODEL, _third_lengthened),
    "a wrapper around the model": _wrapper(WrappersMP.APPLY_MODEL, _fourth_replaced),
    "a wrapper around conditionings": _wrapper(WrappersMP.CALC_COND_BATCH, _conditionings_replaced),
    "a model function": _model_function,
    "a function for conditionings": _calls_function,
}
ORDERS = {
    "erasure first": lambda way, model, text, *args, **options: way(apply_erasure(model, *args, **options), text),
    "erasure last": lambda way, model, text, *args, **options: apply_erasure(way(model, text), *args, **options),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("unknown", ["base", "strict"])
@pytest.mark.parametrize("way", WAYS)
def test_text_beside_the_conditionings_is_scored_like_a_prompt(model, texts, way, unknown, order):
    def drawn(conditioning, positive=texts.boat):
        erased = ORDERS[order](WAYS[way], model, conditioning, texts.eraser, unknown=unknown)
        return sample(erased, positive, NEGATIVE), sample(WAYS[way](model, conditioning), positive, NEGATIVE)

    found, base = drawn(texts.cat)
    assert not torch.equal(found, base)
    found, base = drawn(texts.lamp)
    assert torch.equal(found, base)


@pytest.mark.parametrize("way", WAYS)
def test_the_sampling_scores_such_text_once(model, texts, monkeypatch, way):
    asked = []
    scored = type(texts.eraser).chunks
    monkeypatch.setattr(type(texts.eraser), "chunks", lambda self, entry: (asked.append(entry), scored(self, entry))[1])
    sample(WAYS[way](apply_erasure(model, texts.eraser), texts.cat), texts.boat, NEGATIVE, steps=4)
    # A wrapper around conditionings and a function for them make new ones in every step.
    assert len(asked) <= (9 if "conditionings" in way else 3)


def test_the_usual_path_compares_no_tokens_inside_the_network(model, texts, monkeypatch):
    from unhype.hypernet.doors import NetworkCall

    def refuse(*_):
        raise AssertionError("tokens were compared")

    monkeypatch.setattr(NetworkCall, "deltas_for", refuse)
    sample(apply_erasure(model, texts.eraser), texts.boat + texts.cat, NEGATIVE)
    with pytest.raises(AssertionError, match="compared"):
        sample(WAYS["rows behind"](apply_erasure(model, texts.eraser), texts.cat), texts.boat, NEGATIVE)


@pytest.mark.parametrize("name", [name for name in NAMES if key_of(name) != "wan"])
def test_the_usual_path_of_joint_layers_compares_none_either(name, monkeypatch):
    from unhype.hypernet.doors import NetworkCall

    model = instance(name)
    monkeypatch.setattr(NetworkCall, "enter", None)
    monkeypatch.setattr(NetworkCall, "lengthened", None)
    sample(apply_erasure(model, eraser_for(name, model)), prompt_of(name, 1), prompt_of(name, 3), steps=1)


def test_nor_does_that_of_wan(monkeypatch):
    from unhype.hypernet.doors import NetworkCall

    model = instance("wan")
    monkeypatch.setattr(NetworkCall, "deltas_for", None)
    sample(apply_erasure(model, eraser_for("wan", model)), prompt_of("wan", 1), prompt_of("wan", 3), steps=1)


# Text without an embedding


def picture_tokens(model, conditioning):
    """As the first IPAdapter packages did: tokens of another width's encoder, projected, behind the prompt's."""
    return _attention_patch(lambda rows, own: torch.cat([rows, own[:, :3].expand(len(rows), -1, -1)], 1))(
        model, conditioning
    )


def test_appended_tokens_are_no_repeat_of_the_prompts_beginning(model, texts):
    """Ten tokens of which the prompt has eight: the last two get no delta."""
    read, layer = [], "middle_block.1.transformer_blocks.0.attn2.to_k"
    pooled_only = without_regressor(texts.eraser)
    module = model.model.diffusion_model.get_submodule(layer)
    plain = module.forward
    erased = picture_tokens(apply_erasure(model, pooled_only), texts.lamp)

    def note(executor, *args, **kwargs):
        patched = module.forward

        def noting(x):
            read.append((x.clone(), patched(x)))
            return read[-1][1]

        module.forward = noting
        try:
            return executor(*args, **kwargs)
        finally:
            module.forward = patched

    erased.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "note", note)
    sample(erased, texts.cat, NEGATIVE, steps=1)
    for x, y in read:
        changed = (y != plain(x)).any(-1)
        assert changed[:, TOKENS:].sum() == 0
        assert changed.sum() == 2 * TOKENS


@pytest.mark.parametrize("unknown", ["base", "strict"])
def test_unknown_tokens_follow_the_policy_with_one_warning(model, texts, caplog, unknown):
    told = []
    pooled_only = without_regressor(texts.eraser)
    erased = picture_tokens(apply_erasure(model, pooled_only, unknown=unknown, tell=told.append), texts.lamp)
    with caplog.at_level(logging.WARNING):
        found = sample(erased, texts.boat, NEGATIVE)
    outcome = "runs the model unchanged" if unknown == "base" else "is treated as erased"
    line = f"text that another node brings into the model carries no embedding that fits hypernet 'tiny'; it {outcome}"
    assert [line in text for text in told] == [True]
    assert caplog.text.count(line) == 1
    assert torch.equal(found, sample(picture_tokens(model, texts.lamp), texts.boat, NEGATIVE)) == (unknown == "base")
    sample(erased, texts.boat, NEGATIVE)
    assert len(told) == 2, "the next sampling warns again"


def test_harmless_text_warns_nobody(model, texts, caplog):
    with caplog.at_level(logging.WARNING):
        sample(WAYS["rows behind"](apply_erasure(model, texts.eraser), texts.lamp), texts.boat, NEGATIVE)
        sample(apply_erasure(model, texts.eraser), texts.cat, NEGATIVE)
    assert not [record for record in caplog.records if record.name == "unhype"]


# Negative prompts

FUNCTIONS = {
    "sampler_cfg_function": lambda args: args["uncond"],
    "sampler_pre_cfg_function": lambda args: [args["conds_out"][1]] * 2,
    "sampler_post_cfg_function": lambda args: args["uncond_denoised"],
}


def with_function(model, name):
    clone = model.clone()
    function = FUNCTIONS[name]
    clone.model_options[name] = function if name == "sampler_cfg_function" else [function]
    return clone


@pytest.mark.parametrize(("cfg", "exempt"), [(0.0, False), (0.5, False), (0.99, False), (1.5, True), (7.0, True)])
def test_a_negative_prompt_is_left_alone_from_cfg_1_on(model, texts, cfg, exempt):
    found = sample(apply_erasure(model, texts.eraser), texts.boat, texts.cat, cfg=cfg)
    assert torch.equal(found, sample(model, texts.boat, texts.cat, cfg=cfg)) == exempt
    harmless = sample(apply_erasure(model, texts.eraser), texts.boat, texts.lamp, cfg=cfg)
    assert torch.equal(harmless, sample(model, texts.boat, texts.lamp, cfg=cfg))


@pytest.mark.parametrize("order", ["erasure first", "erasure last"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_may_return_the_negative_alone_has_it_erased(model, texts, name, order):
    if order == "erasure first":
        erased = with_function(apply_erasure(model, texts.eraser), name)
    else:
        erased = apply_erasure(with_function(model, name), texts.eraser)
    plain = with_function(model, name)
    assert not torch.equal(sample(erased, texts.boat, texts.cat), sample(plain, texts.boat, texts.cat))
    assert torch.equal(sample(erased, texts.boat, texts.lamp), sample(plain, texts.boat, texts.lamp))


def without_guidance(executor, *args, **kwargs):
    """As CFG Override does."""
    guider = executor.class_obj
    former, guider.cfg = guider.cfg, 0.0
    try:
        return executor(*args, **kwargs)
    finally:
        guider.cfg = former


def negative_instead(out, options):
    """As NAG does at scale 0."""
    negative, positive = (options["cond_or_uncond"].index(number) for number in (1, 0))
    parts = list(out.chunk(len(options["cond_or_uncond"])))
    parts[positive] = parts[negative]
    return torch.cat(parts)


def with_override(model):
    clone = model.clone()
    clone.add_wrapper(WrappersMP.PREDICT_NOISE, without_guidance)
    return clone


def with_output_patch(model):
    clone = model.clone()
    clone.set_model_attn2_output_patch(negative_instead)
    return clone


@pytest.mark.parametrize("changed", [with_override, with_output_patch])
def test_a_node_that_draws_the_negative_inside_the_sampler_has_it_erased(model, texts, changed):
    for erased in (changed(apply_erasure(model, texts.eraser)), apply_erasure(changed(model), texts.eraser)):
        plain = changed(model)
        assert not torch.equal(sample(erased, texts.boat, texts.cat), sample(plain, texts.boat, texts.cat))
        assert torch.equal(sample(erased, texts.boat, texts.lamp), sample(plain, texts.boat, texts.lamp))


@pytest.mark.parametrize(
    ("name", "exempt"), [("cfg", True), ("perp-neg", False), ("dual cfg", False), ("one by one", False)]
)
def test_other_guiders_have_their_negatives_erased(model, texts, name, exempt):
    def drawn(model):
        guider = GUIDER_PARTS[name](model, texts.boat, texts.cat)
        noise = torch.randn(1, 4, 8, 8, generator=seeded(5))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)

    assert torch.equal(drawn(apply_erasure(model, texts.eraser)), drawn(model)) == exempt


def test_a_negative_prompt_in_another_row_counts_like_any_prompt(model, texts):
    moved = _attention_patch(lambda rows, own: rows.flip(0))
    found = sample(moved(apply_erasure(model, texts.eraser), texts.cat), texts.boat, texts.cat, pictures=1)
    assert not torch.equal(found, sample(moved(model, texts.cat), texts.boat, texts.cat, pictures=1))


# GLIGEN


class Boxes(torch.nn.Module):
    """Stands for a GLIGEN model: takes a note of the boxes that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def set_position(self, shape, boxes, device):
        self.seen.append([box[0] for box in boxes])
        return lambda x, options: x

    def set_empty(self, shape, device):
        return lambda x, options: x


def boxes_drawn(model, *vectors):
    gligen = comfy.model_patcher.ModelPatcher(Boxes(), CPU, CPU)
    boxes = [(vector, 4, 4, 0, 0) for vector in vectors]
    (tokens, values), *_ = NEGATIVE
    sample(model, [[tokens, {**values, "gligen": ("position", gligen, boxes)}]], NEGATIVE, steps=1)
    seen = gligen.model.seen[-1]
    return [next(n for n, vector in enumerate(vectors) if vector is own) for own in seen]


def pooled(conditioning):
    return conditioning[0][1]["pooled_output"]


def test_a_box_that_names_an_erased_concept_is_left_out(model, texts):
    vectors = [pooled(texts.boat), pooled(texts.cat), pooled(texts.lamp), pooled(texts.dog)]
    assert boxes_drawn(model, *vectors) == [0, 1, 2, 3]
    assert boxes_drawn(apply_erasure(model, texts.eraser), *vectors) == [0, 2]
    assert boxes_drawn(apply_erasure(model, texts.eraser, gate=False), *vectors) == [0, 2]


@pytest.mark.parametrize(("unknown", "drawn"), [("base", [0, 1]), ("strict", [0])])
def test_a_box_that_cannot_be_read_follows_the_policy(model, texts, unknown, drawn):
    told = []
    erased = apply_erasure(model, texts.eraser, unknown=unknown, tell=told.append)
    assert boxes_drawn(erased, pooled(texts.boat), torch.ones(1, 5)) == drawn
    assert ["the text of a GLIGEN box carries no embedding" in line for line in told] == [True]


# The same eraser twice


def test_the_same_eraser_twice_counts_once_with_the_stricter_values(model, texts):
    twice = apply_erasure(apply_erasure(model, texts.eraser, 1.0), replace(texts.eraser, name="again"), 0.5)
    once = sample(apply_erasure(model, texts.eraser, 1.0), texts.cat, NEGATIVE)
    assert torch.equal(sample(twice, texts.cat, NEGATIVE), once)
    assert [list(keyed) for keyed in twice.wrappers.values()] == [["unhype"]] * 3
    ungated = apply_erasure(apply_erasure(model, texts.eraser, gate=False, unknown="strict"), texts.eraser)
    assert torch.equal(
        sample(ungated, texts.boat, NEGATIVE),
        sample(apply_erasure(model, texts.eraser, gate=False), texts.boat, NEGATIVE),
    )
    (wrapper,) = ungated.wrappers[WrappersMP.OUTER_SAMPLE]["unhype"]
    assert wrapper.__self__.deltas.fallback is not None


# Layers that don't run


def fused(model, *, skipped=".attn2.to_k"):
    """As a fused kernel does: the attention computes with a layer's weight and never calls the layer."""
    clone = model.clone()

    def wrapper(executor, *args, **kwargs):
        modules = {name: m for name, m in executor.class_obj.named_modules() if name.endswith(skipped)}
        former = {name: module.forward for name, module in modules.items()}
        parents = {name: executor.class_obj.get_submodule(name.rpartition(".")[0]) for name in modules}

        def attention(module, layer):
            whole = type(module).forward

            def forward(x, context=None, **options):
                patched, layer.__dict__["forward"] = layer.forward, lambda x: linear(x, layer.weight)
                try:
                    return whole(module, x, context=context, **options)
                finally:
                    layer.__dict__["forward"] = patched

            return forward

        try:
            for name, module in modules.items():
                parents[name].forward = attention(parents[name], module)
            return executor(*args, **kwargs)
        finally:
            for name in modules:
                del parents[name].forward
            assert {name: module.forward for name, module in modules.items()} == former

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fused", wrapper)
    return clone


def test_a_layer_that_never_ran_is_told_under_base(model, texts):
    told = []
    erased = fused(apply_erasure(model, texts.eraser, tell=told.append))
    sample(erased, texts.boat, NEGATIVE)
    assert told == []
    sample(erased, texts.cat, NEGATIVE)
    (line,) = told
    assert "layer 'input_blocks.1.1.transformer_blocks.0.attn2.to_k' (7 in all) runs without its delta" in line
    assert "comfy_force_cast_weights" in line


def test_a_layer_that_never_ran_is_an_error_under_strict(model, texts):
    erased = fused(apply_erasure(model, texts.eraser, unknown="strict"))
    with pytest.raises(ErasureLapsedError, match=r"attn2\.to_k' .* unknown_prompts is 'strict', so nothing is drawn"):
        sample(erased, texts.cat, NEGATIVE)
    sample(erased, texts.boat, NEGATIVE)


def test_blocks_that_another_node_skips_are_no_lapse(model, texts):
    told = []
    erased = apply_erasure(model, texts.eraser, unknown="strict", tell=told.append)

    def without_middle(executor, *args, **kwargs):
        network = executor.class_obj
        middle, network.middle_block = network.middle_block, None
        try:
            return executor(*args, **kwargs)
        finally:
            network.middle_block = middle

    erased.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "skip", without_middle)
    sample(erased, texts.cat, NEGATIVE)
    assert told == []


# Other families


def swapped(model, tokens, lengthen=False):
    """Another node's wrapper that gives the network another context for positive rows, which come last."""

    def wrapper(executor, x, t, c_concat, context, *rest, **kwargs):
        if lengthen:
            context = torch.cat([context, tokens.expand(len(context), -1, -1)], 1)
        else:
            tokens_padded = torch.zeros_like(context[-1:])  # Flux.2 pads on the left
            tokens_padded[:, -tokens.shape[1] :] = tokens
            context = torch.cat([context[:-1], tokens_padded])
        return executor(x, t, c_concat, context, *rest, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another node", wrapper)
    return clone


def strict_eraser(name, model):
    """An eraser that detects prompt 1 and not 2; of families without embeddings in tokens strict knows prompt 1's."""
    above, below = embedding_of(name, prompt_of(name, 1)), embedding_of(name, prompt_of(name, 2))
    eraser = eraser_for(name, model, detector=detector_of([above], [below]))
    return replace(eraser, concept_embeddings=above.unsqueeze(0))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("lumina2")])
@pytest.mark.parametrize("lengthen", [False, True])
def test_a_context_that_changes_on_its_way_in_is_seen_where_it_enters(name, lengthen):
    model = instance(name)
    eraser, tokens = strict_eraser(name, model), prompt_of(name, 1)[0][0]
    b, negative = prompt_of(name, 2), prompt_of(name, 2)
    erased = swapped(apply_erasure(model, eraser, unknown="strict"), tokens, lengthen)
    with noted_calls(erased) as (clone, calls):
        sample(clone, b, negative, pictures=1, steps=1)
    (call,) = calls
    wanted = with_offset_patches(model, (eraser, embedding_of(name, prompt_of(name, 1))))
    base, full = replay(model, call), replay(wanted, call)
    effect = (full - base).abs().max()
    if key_of(name) in JOINT or not lengthen:
        assert (call.output[-1] - full[-1]).abs().max() <= 1e-3 * effect
    assert not torch.equal(call.output[-1], base[-1])
    assert torch.equal(call.output[0], base[0]) == (not lengthen)
    assert overridden(model) == []


@pytest.mark.parametrize("unknown", ["base", "strict"])
def test_text_that_joins_the_stream_behind_its_entry_is_noticed(unknown):
    model, told, longer_calls = instance("flux"), [], []
    eraser = strict_eraser("flux", model)

    def longer(args):
        longer_calls.append(args)
        return args | {name: torch.cat([args[name], args[name][:, :2]], 1) for name in ("txt", "txt_ids")}

    def with_patch(model):
        clone = model.clone()
        clone.set_model_patch(longer, "post_input")
        return clone

    b, negative = prompt_of("flux", 2), prompt_of("flux", 2)
    found = sample(with_patch(apply_erasure(model, eraser, unknown=unknown, tell=told.append)), b, negative, steps=1)
    if not longer_calls:
        pytest.skip("this ComfyUI has no such patch")
    assert torch.equal(found, sample(with_patch(model), b, negative, steps=1)) == (unknown == "base")
    (line,) = told
    assert "prompts that another node lengthens inside the model" in line


@pytest.mark.parametrize("change", ["copied", "reordered", "lengthened"])
def test_what_wan_makes_of_its_text_is_followed(change):
    model, told = instance("wan"), []
    eraser = strict_eraser("wan", model)
    order = {"copied": [0, 1], "reordered": [1, 0], "lengthened": [0, 1]}[change]

    def block(args, rest):
        txt = args["txt"][order]
        if change == "lengthened":
            txt = torch.cat([txt, torch.ones_like(txt[:, :2])], 1)
        return rest["original_block"]({**args, "txt": txt})

    def with_patch(model):
        clone = model.clone()
        clone.set_model_patch_replace(block, "dit", "double_block", 0)
        return clone

    def drawn(model, positive, negative):
        return sample(with_patch(model), positive, negative, pictures=1, steps=1)

    a, b = prompt_of("wan", 1), prompt_of("wan", 2)
    erased = apply_erasure(model, eraser, tell=told.append)
    assert not torch.equal(drawn(erased, a, b), drawn(model, a, b))
    assert torch.equal(drawn(erased, b, b), drawn(model, b, b))
    assert len(told) == 2 * (change == "lengthened")


def test_a_second_model_that_the_hypernet_does_not_fit_is_told_or_refused(texts):
    from tiny import tiny_model

    model, other, told = tiny_model(), tiny_model("sd20", context=16), []
    erased = apply_erasure(model, texts.eraser, tell=told.append)
    options = {"transformer_options": {"wrappers": erased.wrappers}}
    comfy.model_management.load_models_gpu([other])
    x, t, context = torch.randn(1, 4, 8, 8), torch.ones(1), torch.randn(1, TOKENS, 16)
    other.model.apply_model(x, t, c_crossattn=context, **options)
    assert "a second model draws a part of the picture" in told[0]
    strict = apply_erasure(model, texts.eraser, unknown="strict")
    options = {"transformer_options": {"wrappers": strict.wrappers}}
    with pytest.raises(ErasureLapsedError, match="doesn't fit it"):
        other.model.apply_model(x, t, c_crossattn=context, **options)

"""Text where it enters the networks of other families."""

from dataclasses import replace

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from families import NAMES, embedding_of, eraser_for, instance, key_of
from families import prompt as prompt_of
from test_families import with_offset_patches
from tiny import detector_of, noted_calls, overridden, replay, sample

from unhype.hypernet.families import FAMILIES
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.targets import recognise

pytestmark = pytest.mark.usefixtures("as_a_node_runs")

JOINT = {family.key for family in FAMILIES if family.joint}


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


def test_text_that_joins_the_stream_of_stable_diffusion_3_inside_is_erased_under_strict():
    model, told = instance("sd3"), []
    eraser, b = strict_eraser("sd3", model), prompt_of("sd3", 2)

    def with_patch(model):
        def block(args, rest):
            return rest["original_block"]({**args, "txt": torch.cat([args["txt"], args["txt"][:, :2]], 1)})

        clone = model.clone()
        clone.set_model_patch_replace(block, "dit", "double_block", 0)
        return clone

    erased = with_patch(apply_erasure(model, eraser, unknown="strict", tell=told.append))
    assert not torch.equal(sample(erased, b, b, steps=1), sample(with_patch(model), b, b, steps=1))
    assert "prompts that another node lengthens inside the model" in told[0]


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


def in_several_passes(model, tokens, order):
    """Another node's wrapper that runs the network for each text by itself, and gives what the prompt's pass gave."""

    def wrapper(executor, x, t, c_concat, context, *rest, **kwargs):
        texts = {"prompt": context, "other": tokens.expand(len(context), -1, -1)}
        return {name: executor(x, t, c_concat, texts[name], *rest, **kwargs) for name in order}["prompt"]

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another node", wrapper)
    return clone


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [("other", "prompt"), ("prompt", "other")], ids="-".join)
def test_each_pass_of_the_network_has_the_deltas_of_its_own_text(name, order):
    model = instance(name)
    eraser = strict_eraser(name, model)
    erased, a, b = apply_erasure(model, eraser), prompt_of(name, 1), prompt_of(name, 2)
    for positive, other in ((a, b), (b, a)):
        found = sample(in_several_passes(erased, other[0][0], order), positive, b, pictures=1, steps=1)
        assert torch.equal(found, sample(erased, positive, b, pictures=1, steps=1))


@pytest.mark.parametrize("name", ["flux", "chroma", "qwen_image", "sd3"])
@pytest.mark.parametrize("order", ["before", "behind"])
def test_text_that_enters_beside_the_prompt_joins_it(name, order):
    """As regional prompts do that pass the text projection by themselves: none of the two takes the other's delta."""
    model = instance(name)
    eraser = strict_eraser(name, model)
    entries = (getattr(model.model.diffusion_model, part, None) for part in recognise(model.model).entry)
    entry = next(module for module in entries if module is not None)

    def with_patch(model, tokens):
        def wrapper(executor, *args, **kwargs):
            former = entry.forward

            def forward(x):
                entry.forward = former  # once a pass
                if order == "before":
                    former(tokens.to(x))
                states = former(x)
                if order == "behind":
                    former(tokens.to(x))
                return states

            entry.forward = forward
            try:
                return executor(*args, **kwargs)
            finally:
                entry.forward = former

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another node", wrapper)
        return clone

    a, b = prompt_of(name, 1), prompt_of(name, 2)
    erased = apply_erasure(model, eraser, unknown="strict")
    for positive, other in ((a, b), (b, a)):
        found = sample(with_patch(erased, other[0][0]), positive, b, cfg=1.0, pictures=1, steps=1)
        assert not torch.equal(found, sample(model, positive, b, cfg=1.0, pictures=1, steps=1))
    found = sample(with_patch(erased, b[0][0]), b, b, cfg=1.0, pictures=1, steps=1)
    assert torch.equal(found, sample(model, b, b, cfg=1.0, pictures=1, steps=1))

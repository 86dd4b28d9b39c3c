"""Text that reaches the target layers beside the conditionings: scored like a prompt, or unknown_prompts decides."""

import logging
from dataclasses import replace

import pytest
import torch
from chunks import NEGATIVE, without_regressor
from comfy.patcher_extension import WrappersMP
from families import NAMES, eraser_for, instance, key_of
from families import prompt as prompt_of
from text_ways import ORDERS, WAYS, attention_patch
from tiny import TOKENS, sample

from unhype.hypernet.patch import apply_erasure

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


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
    from unhype.hypernet.network_call import NetworkCall

    def refuse(*_):
        raise AssertionError("tokens were compared")

    monkeypatch.setattr(NetworkCall, "deltas_for", refuse)
    sample(apply_erasure(model, texts.eraser), texts.boat + texts.cat, NEGATIVE)
    with pytest.raises(AssertionError, match="compared"):
        sample(WAYS["rows behind"](apply_erasure(model, texts.eraser), texts.cat), texts.boat, NEGATIVE)


@pytest.mark.parametrize("name", [name for name in NAMES if key_of(name) != "wan"])
def test_the_usual_path_of_joint_layers_compares_none_either(name, monkeypatch):
    from unhype.hypernet.network_call import NetworkCall

    model = instance(name)
    monkeypatch.setattr(NetworkCall, "enter", None)
    monkeypatch.setattr(NetworkCall, "lengthened", None)
    sample(apply_erasure(model, eraser_for(name, model)), prompt_of(name, 1), prompt_of(name, 3), steps=1)


def test_nor_does_that_of_wan(monkeypatch):
    from unhype.hypernet.network_call import NetworkCall

    model = instance("wan")
    monkeypatch.setattr(NetworkCall, "deltas_for", None)
    sample(apply_erasure(model, eraser_for("wan", model)), prompt_of("wan", 1), prompt_of("wan", 3), steps=1)


def _without_options(executor, x, t, c_concat, c_crossattn, control, options, **kwargs):
    return executor(x, t, c_concat, c_crossattn, control, {"cond_or_uncond": options["cond_or_uncond"]}, **kwargs)


def _with_the_wrappers_alone(executor, model, conds, x, t, options):
    kept = {"wrappers": options["transformer_options"]["wrappers"]}
    return executor(model, conds, x, t, {"transformer_options": kept})


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kind", "wrapper"),
    [(WrappersMP.APPLY_MODEL, _without_options), (WrappersMP.CALC_COND_BATCH, _with_the_wrappers_alone)],
)
def test_options_that_another_node_replaces_leave_every_prompt_its_own_delta(model, texts, kind, wrapper, order):
    def way(model, _):
        clone = model.clone()
        clone.add_wrapper_with_key(kind, "another node", wrapper)
        return clone

    erased = ORDERS[order](way, model, None, texts.eraser)
    found = sample(erased, texts.boat + texts.cat, NEGATIVE)
    wanted = sample(apply_erasure(model, texts.eraser), texts.boat + texts.cat, NEGATIVE)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5)
    assert torch.equal(sample(erased, texts.boat, NEGATIVE), sample(model, texts.boat, NEGATIVE))


# Text without an embedding


def picture_tokens(model, conditioning):
    """As the first IPAdapter packages did: tokens of another width's encoder, projected, behind the prompt's."""
    return attention_patch(lambda rows, own: torch.cat([rows, own[:, :3].expand(len(rows), -1, -1)], 1))(
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

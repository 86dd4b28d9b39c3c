"""A policy on the host's own models and samplers: what draws keeps its rules, however the model came there."""

import copy

import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from core_parts import normal
from policies import enforcing, rules_for, strict_eraser
from tiny import CPU, LATENT, prompt, sample, tiny_eraser, tiny_model

from unhype.hypernet.files import load, save
from unhype.hypernet.patch import apply_erasure
from unhype.policy.enforced import enforced, learning, protected
from unhype.policy.file import PolicyError
from unhype.policy.rules import Rule, Rules

CAT, EMPTY = prompt(1), prompt(2)


@pytest.fixture
def eraser(model):
    return strict_eraser(model)


@pytest.fixture
def rules(eraser):
    return rules_for(eraser)


def drawn(model, **options):
    return sample(model, CAT, EMPTY, **options)


def test_a_protected_model_draws_what_apply_draws(model, eraser, rules):
    base, erased = drawn(model), drawn(apply_erasure(model, eraser, unknown="strict"))
    assert not torch.equal(base, erased)
    with enforcing(rules):
        assert torch.equal(drawn(protected(model)), erased)
    assert torch.equal(drawn(model), base)


def test_without_a_policy_nothing_is_replaced_and_nothing_changes(model):
    assert enforced() is None
    assert comfy.sampler_helpers.prepare_sampling.__module__ == "comfy.sampler_helpers"
    assert BaseModel.apply_model.__module__ == "comfy.model_base"
    assert protected(model) is model


def test_a_model_that_keeps_the_rules_stays_the_same_object(model, rules):
    once = rules.protected(model)
    assert once is not model
    assert rules.protected(once) is once
    assert rules.protected(once.clone()).wrappers == once.wrappers


def test_a_bare_model_is_refused_before_the_first_step(model, rules):
    steps = []
    with enforcing(rules), pytest.raises(PolicyError, match=r"^This server draws only with the eraser 'school'\. The"):
        comfy.sample.sample(
            model, normal(1, 4, LATENT, LATENT), 3, 3.0, "euler", "normal", CAT, EMPTY,
            torch.zeros(1, 4, LATENT, LATENT), callback=lambda *_: steps.append(1), disable_pbar=True, seed=0,
        )  # fmt: skip
    assert steps == []


def test_the_refusal_does_not_name_a_folder_of_the_server():
    assert f"{PolicyError.__module__}.{PolicyError.__qualname__}" == "unhype.PolicyError"


def remade(model):
    """A patcher over the same weights that knows nothing of the first."""
    return ModelPatcher(model.model, CPU, CPU)


def without(kind):
    def dropped(model):
        clone = model.clone()
        clone.wrappers[kind] = {}
        return clone

    return dropped


@pytest.mark.parametrize(
    "change",
    [remade, *map(without, (WrappersMP.OUTER_SAMPLE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL))],
    ids=["remade", "outer", "batch", "apply"],
)
def test_a_model_that_lost_its_wrappers_is_refused_and_protected_anew(model, rules, change):
    with enforcing(rules):
        erased = drawn(protected(model))
        lost = change(protected(model))
        with pytest.raises(PolicyError, match="came without 'school'"):
            drawn(lost)
        assert torch.equal(drawn(protected(lost)), erased)


def test_a_deep_copy_of_the_wrappers_keeps_the_rules(model, rules):
    with enforcing(rules):
        erased = drawn(protected(model))
        clone = protected(model).clone()
        clone.wrappers = copy.deepcopy(clone.wrappers)
        assert clone.wrappers != protected(model).wrappers
        assert torch.equal(drawn(clone), erased)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_the_same_eraser_at_a_lower_strength_is_not_enough(model, eraser, rules, strength):
    weak = apply_erasure(model, eraser, strength, unknown="strict")
    with enforcing(rules):
        with pytest.raises(PolicyError):
            drawn(weak)
        erased = drawn(protected(model))
        assert torch.equal(drawn(protected(weak)), erased)
        assert torch.equal(drawn(apply_erasure(protected(model), eraser, strength)), erased)


def test_the_same_eraser_that_leaves_unknown_text_alone_is_not_enough(model, eraser, rules):
    lax = apply_erasure(model, eraser)
    with enforcing(rules):
        with pytest.raises(PolicyError):
            drawn(lax)
        drawn(protected(lax))
    with enforcing(Rules([Rule(eraser, unknown="base")])):
        drawn(lax)


def test_another_eraser_of_the_same_name_is_not_the_eraser(model, rules):
    other = apply_erasure(model, strict_eraser(model, seed=5), unknown="strict")
    with enforcing(rules), pytest.raises(PolicyError):
        drawn(other)


def test_a_second_copy_of_the_file_is_the_eraser(model, tmp_path):
    path = tmp_path / "school.safetensors"
    save(strict_eraser(model), path)
    own, loaded = load(path), load(path)
    with enforcing(rules_for(own)):
        drawn(apply_erasure(model, loaded, unknown="strict"))


def test_all_erasers_of_a_family_are_needed(model):
    first, second = strict_eraser(model, "first"), strict_eraser(model, "second", seed=3)
    with enforcing(rules_for(first, second)):
        with pytest.raises(PolicyError, match=r"^This server draws only with the erasers 'first' and 'second'\."):
            drawn(apply_erasure(model, first, unknown="strict"))
        both = apply_erasure(apply_erasure(model, first, unknown="strict"), second, unknown="strict")
        assert torch.equal(drawn(protected(model)), drawn(both))


# What reaches the network by other ways


class _Bare(comfy.samplers.Sampler):
    """A sampler that calls the network without the options that it was given."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *_):
        return model_wrap(noise, sigmas[0].expand(len(noise)), model_options={"transformer_options": {}}, seed=0)


class _OwnGuider(comfy.samplers.CFGGuider):
    """A guider that prepares nothing itself."""

    def sample(self, noise, latent_image, sampler, sigmas, *_, **__):
        comfy.model_management.load_models_gpu([self.model_patcher])
        x, sigma = noise, sigmas[:1].expand(len(noise))
        return self.model_patcher.model.apply_model(x, sigma, c_crossattn=CAT[0][0].expand(len(noise), -1, -1))


def guided(guider):
    guider.set_conds(CAT, EMPTY)
    guider.set_cfg(3.0)
    return guider


def by(guider, sampler):
    noise = normal(1, 4, LATENT, LATENT)
    return guided(guider).sample(noise, torch.zeros_like(noise), sampler, torch.tensor([5.0, 1.0, 0.0]), seed=0)


def test_options_that_a_sampler_drops_are_missed_at_the_network(model, rules):
    with enforcing(rules), pytest.raises(PolicyError, match="came without 'school'"):
        by(comfy.samplers.CFGGuider(protected(model)), _Bare())


def test_a_network_that_is_called_without_a_sampler_is_refused(model, rules):
    with enforcing(rules), pytest.raises(PolicyError, match="came without 'school'"):
        by(_OwnGuider(protected(model)), comfy.samplers.sampler_object("euler"))


def test_options_without_the_wrappers_reach_no_network(model, rules):
    """A guider takes the wrappers of its MODEL when it starts, whatever options it was given."""
    with enforcing(rules):
        guider = comfy.samplers.CFGGuider(protected(model))
        guider.model_options = {"transformer_options": {"wrappers": {}}}
        plain = by(comfy.samplers.CFGGuider(protected(model)), comfy.samplers.sampler_object("euler"))
        assert torch.equal(by(guider, comfy.samplers.sampler_object("euler")), plain)


def test_a_replaced_call_of_the_network_is_refused(model, rules):
    with enforcing(rules):
        other = protected(model)
        other.add_object_patch("apply_model", lambda x, *_, **__: x)
        with pytest.raises(PolicyError, match="replaced the way in which this model is called"):
            drawn(other)
        drawn(protected(model))


def test_the_second_model_of_a_guider_is_looked_at_as_well(model, rules):
    custom = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(custom, "Guider_DualModel"):
        pytest.skip("this ComfyUI has no guider of two models")
    second = tiny_model(seed=4)
    euler = comfy.samplers.sampler_object("euler")
    with enforcing(rules):
        with pytest.raises(PolicyError, match="came without 'school'"):
            by(custom.Guider_DualModel(protected(model), second), euler)
        by(custom.Guider_DualModel(protected(model), protected(second)), euler)


# Other models


def test_models_of_other_families_are_refused_or_allowed(model, eraser):
    other = tiny_model("sdxl")
    with enforcing(rules_for(eraser)):
        assert protected(other) is other
        words = r"It is for Stable Diffusion 1\.x, and this model is Stable Diffusion XL\."
        with pytest.raises(PolicyError, match=words):
            drawn(other)
    with enforcing(rules_for(eraser, other_models="allow")):
        drawn(other)
        with pytest.raises(PolicyError):
            drawn(model)


@pytest.mark.parametrize("other_models", ["refuse", "allow"])
def test_a_model_of_the_family_into_which_the_eraser_does_not_fit_is_never_allowed(eraser, other_models):
    larger = tiny_model(context=48)
    with enforcing(rules_for(eraser, other_models=other_models)):
        assert protected(larger) is larger
        with pytest.raises(PolicyError, match=r"can't be put on this model\. Hypernet 'school' does not fit"):
            drawn(larger)


@pytest.mark.parametrize("other_models", ["refuse", "allow"])
def test_a_network_of_its_own_in_a_model_of_the_family_is_never_allowed(model, eraser, other_models):
    class Fused(torch.nn.Module):
        pass

    model.model.diffusion_model.__class__ = type("Fused", (torch.nn.Module,), {})
    with pytest.raises(PolicyError, match="can't be put on this model"):
        rules_for(eraser, other_models=other_models).needed(model.model)


# When something is broken


def test_nothing_is_drawn_while_there_is_a_problem(model, eraser, rules):
    erased = apply_erasure(model, eraser, unknown="strict")
    with enforcing(rules):
        rules.problem = "policy.json is no JSON"
        for other in (model, erased, protected(model), tiny_model("sdxl")):
            with pytest.raises(PolicyError, match=r"until its owner mends its policy: policy\.json is no JSON\.$"):
                drawn(other)


def test_functions_that_call_ours_may_be_put_around_them(model, rules):
    with enforcing(rules) as guard:
        prepare, apply = comfy.sampler_helpers.prepare_sampling, BaseModel.apply_model
        comfy.sampler_helpers.prepare_sampling = lambda *args, **kwargs: prepare(*args, **kwargs)
        BaseModel.apply_model = lambda self, *args, **kwargs: apply(self, *args, **kwargs)
        assert guard.hold()
        drawn(protected(model))


@pytest.mark.parametrize("number", [0, 1])
def test_a_function_that_was_put_back_is_noticed(rules, number):
    former = comfy.sampler_helpers.prepare_sampling, BaseModel.apply_model
    with enforcing(rules) as guard:
        assert guard.hold()
        if number:
            BaseModel.apply_model = former[1]
        else:
            comfy.sampler_helpers.prepare_sampling = former[0]
        assert not guard.hold()


def test_a_network_whose_guard_was_put_back_draws_nothing(model, rules):
    former = BaseModel.apply_model
    with enforcing(rules):
        BaseModel.apply_model = former
        with pytest.raises(PolicyError, match="replaced the way"):
            drawn(protected(model))


def test_a_host_without_the_function_is_refused(monkeypatch, rules):
    monkeypatch.delattr(comfy.sampler_helpers, "prepare_sampling")
    with pytest.raises(PolicyError, match=r"has no comfy\.sampler_helpers\.prepare_sampling"):
        from unhype.policy.guard import Guard
        from unhype.policy.log import Log

        Guard(rules, Log()).set()


def test_an_imported_eraser_cannot_be_strict(model, tmp_path):
    from unhype.hypernet.record import HypernetFileError
    from unhype.policy.file import EraserEntry, Policy
    from unhype.policy.rules import rules_of

    path = tmp_path / "imported.safetensors"
    save(tiny_eraser(model), path)
    with pytest.raises(HypernetFileError, match="Choose 'base'"):
        rules_of(Policy((EraserEntry(path),)))
    assert rules_of(Policy((EraserEntry(path, unknown_prompts="base"),))).rules[0].unknown == "base"
    with pytest.raises(PolicyError, match=r"there is no eraser 'none\.safetensors' beside"):
        rules_of(Policy((EraserEntry(tmp_path / "none.safetensors"),)))


# A training's own calls


def test_a_training_may_call_the_model_as_it_is(model, rules):
    base = drawn(model)
    with enforcing(rules):
        with learning():
            assert torch.equal(drawn(model), base)
        with pytest.raises(PolicyError):
            drawn(model)


def test_nothing_can_be_mapped_to_what_is_erased(model, rules):
    with enforcing(rules), pytest.raises(PolicyError, match="'a photo of a cat' is erased here"):
        enforced().check_mappings(model.model, {"a photo of a cat": CAT})

"""The pack's own nodes under a policy: they show erased pictures only, and make nothing that takes an eraser back."""

from dataclasses import replace

import pytest
import torch
from core_parts import POOLED, TINY, TinyClip, embedding, moved_hypernet, prompt
from policies import enforcing, rules_for, strict_eraser
from runs import Reports, go, same_weights

from unhype.evaluation.compare import compare
from unhype.hypernet.detector import Detector
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.targets import recognise, target_layers
from unhype.nodes import UnHypeExtension
from unhype.nodes.export import HypernetToLora
from unhype.nodes.server_policy import ServerPolicy, ServerRefusal
from unhype.policy.enforced import learning, protected
from unhype.policy.file import PolicyError
from unhype.training.encode import EncodedPrompt
from unhype.training.frozen import FrozenModel
from unhype.training.preview import Previewer
from unhype.training.sampling import Drawing

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture
def eraser(model):
    return strict_eraser(model)


def encoded(number):
    return EncodedPrompt(f"prompt {number}", embedding(prompt(number)), prompt(number))


class Decoded:
    """Keeps the latents that are to be seen."""

    def __init__(self):
        self.latents = []

    def __call__(self, latents):
        self.latents.append(latents.clone())
        return torch.zeros(8, 8, 3)


def test_previews_of_a_training_show_erased_pictures_only(model, eraser):
    hypernet = moved_hypernet(POOLED, target_layers(model.model, recognise(model.model)), seed=7)

    def previewed(frozen):
        decoded = Decoded()
        Previewer(frozen, [encoded(1)], encoded(2), TINY, decoded).picture(hypernet)
        return decoded.latents

    frozen = FrozenModel(model, copied=False)
    bare = previewed(frozen)
    with enforcing(rules_for(eraser)), learning():
        seen = previewed(frozen)
    frozen.patcher = apply_erasure(frozen.patcher, eraser, unknown="strict")
    erased = previewed(frozen)
    assert len(seen) == len(bare) == len(erased) == 2
    assert all(torch.equal(a, b) for a, b in zip(seen, erased, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen, bare, strict=True))


@pytest.mark.parametrize("objective", ["attention", "direct"])
def test_a_training_learns_the_same_under_a_policy(model, eraser, ask, objective):
    never = replace(eraser, detector=Detector(torch.zeros(1, POOLED), torch.zeros(1)))
    plain = go(model, ask(name="plain", objective=objective))
    with enforcing(rules_for(never)):
        policed = go(protected(model), ask(name="policed", objective=objective, preview_every=3, decode=Decoded()))
    assert same_weights(plain.eraser, policed.eraser)


def test_nothing_is_trained_towards_what_is_erased(model, eraser, ask):
    reports = Reports()
    with enforcing(rules_for(eraser)), pytest.raises(PolicyError, match="is erased here, so nothing can be mapped"):
        go(protected(model), ask(concepts="tree -> cat"), reports)
    assert "training" not in reports.stages


def test_a_training_on_a_model_that_may_not_draw_is_refused(model, ask):
    from tiny import tiny_model

    with enforcing(rules_for(strict_eraser(tiny_model("sdxl")))), pytest.raises(PolicyError, match="It is for Stable"):
        go(model, ask())


def test_the_report_draws_before_with_the_eraser_of_the_policy(model, eraser):
    drawing, texts = Drawing(steps=2, cfg=3.0, width=64, height=64), ["a cat"]
    other = strict_eraser(model, "other", seed=3)
    with enforcing(rules_for(eraser)):
        with pytest.raises(PolicyError, match="came without 'school'"):
            compare(model, TinyClip(), other, texts, drawing, Decoded(), lambda *_: None)
        decoded = Decoded()
        compare(protected(model), TinyClip(), other, texts, drawing, decoded, lambda *_: None)
    erased = Decoded()
    compare(model, TinyClip(), eraser, texts, drawing, erased, lambda *_: None)
    bare_before, erased_after = erased.latents
    assert not torch.equal(decoded.latents[0], bare_before)
    torch.testing.assert_close(decoded.latents[0], erased_after)


def test_no_lora_is_made_of_an_eraser(eraser):
    clip = TinyClip()
    with enforcing(rules_for(eraser)), pytest.raises(PolicyError, match="would take the eraser back"):
        HypernetToLora.execute(eraser, clip, "a cat", 1.0)
    HypernetToLora.execute(eraser, clip, "a cat", 1.0)


async def _nodes():
    return await UnHypeExtension().get_node_list()


def test_the_policys_nodes_are_there_only_with_a_policy(eraser):
    import asyncio

    plain = asyncio.run(_nodes())
    with enforcing(rules_for(eraser)):
        policed = asyncio.run(_nodes())
    assert [node for node in policed if node not in plain] == [ServerPolicy, ServerRefusal]


def test_the_policys_node_hands_on_what_is_no_model(model, eraser):
    with enforcing(rules_for(eraser)):
        for other in (None, "text", 3, object()):
            assert ServerPolicy.execute(other).args == (other,)
        (given,) = ServerPolicy.execute(model).args
        assert given is not model
        assert ServerPolicy.execute(given).args == (given,)


def test_the_refusal_is_the_reason():
    with pytest.raises(PolicyError, match=r"^because$"):
        ServerRefusal.execute("because")

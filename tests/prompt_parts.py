"""Parts of graphs between prompts and sampler, made by ComfyUI's own nodes and classes for the tiny models.

A prompt part takes positive and negative CONDITIONING and gives both; a guider part takes a MODEL and them and gives
a GUIDER. A host that lacks the node of a part raises `Missing` with its name.
"""

import copy

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import comfy.samplers
import torch
from model_parts import another_model, run_node, style_lora
from tiny import _UNET, CPU, LATENT, draw_weights, prompt, seeded


def control_net():
    """A ControlNet of the tiny model's size."""
    sizes = {
        key: value for key, value in copy.deepcopy(_UNET).items() if not key.startswith("transformer_depth_output")
    }
    network = comfy.cldm.cldm.ControlNet(
        **{key: value for key, value in sizes.items() if key not in ("out_channels",)},
        hint_channels=3,
        num_heads=2,
        operations=comfy.ops.disable_weight_init,
    )
    draw_weights(network, seed=40)
    return comfy.controlnet.ControlNet(network.eval().requires_grad_(False), load_device=CPU)


def controlled(positive, negative):
    image = torch.rand(1, LATENT * 8, LATENT * 8, 3, generator=seeded(41))
    return run_node(
        "nodes",
        "ControlNetApplyAdvanced",
        positive=positive,
        negative=negative,
        control_net=control_net(),
        image=image,
        strength=0.8,
        start_percent=0.0,
        end_percent=1.0,
    )


def hooked(positive, negative):
    """A LoRA on the positive prompt only, as CreateHookLora and the nodes after it make it."""
    hooks = comfy.hooks.create_hook_lora(style_lora(seed=50), 1.0, 0.0)
    (positive,) = run_node(
        "comfy_extras.nodes_hooks",
        "ConditioningSetProperties",
        cond_NEW=positive,
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )
    return positive, negative


def _each(positive, module, name, **inputs):
    return run_node(module, name, conditioning=positive, **inputs)[0]


def regional(positive, negative):
    half = {"width": LATENT * 4, "height": LATENT * 8, "y": 0, "strength": 1.0}
    left = _each(positive, "nodes", "ConditioningSetArea", x=0, **half)
    right = _each(prompt(2), "nodes", "ConditioningSetArea", x=LATENT * 4, **half)
    return left + right, negative


def masked(positive, negative):
    mask = torch.zeros(1, LATENT * 8, LATENT * 8)
    mask[..., : LATENT * 4] = 1.0
    return _each(positive, "nodes", "ConditioningSetMask", mask=mask, strength=1.0, set_cond_area="default") + prompt(
        2
    ), negative


def by_turns(positive, negative):
    early = _each(positive, "nodes", "ConditioningSetTimestepRange", start=0.0, end=0.5)
    late = _each(prompt(2), "nodes", "ConditioningSetTimestepRange", start=0.5, end=1.0)
    return early + late, negative


PROMPT_PARTS = {
    "plain": lambda positive, negative: (positive, negative),
    "combined": lambda positive, negative: (positive + prompt(2, tokens=16), negative),
    "regional": regional,
    "masked": masked,
    "by turns": by_turns,
    "control net": controlled,
    "hooked": hooked,
}


# Guiders


class OneByOne(comfy.samplers.CFGGuider):
    """A guider as packages write them: each prompt in a call of its own, the negative one at index 0."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        guided = [
            comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[name]], x, timestep, model_options)[0]
            for name in ("negative", "positive")
        ]
        return guided[0] + self.cfg * (guided[1] - guided[0])


def _guider(cls, cfg=3.0):
    def part(model, positive, negative):
        guider = cls(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return guider

    return part


def _node_guider(module, name, **inputs):
    def part(model, positive, negative):
        middle, empty = prompt(4), prompt(6)
        given = {"cond1": positive, "cond2": middle, "conditioning": positive, "empty_conditioning": empty}
        given |= {"model": model, "positive": positive, "negative": negative, "model_negative": another_model()}
        return run_node(f"comfy_extras.nodes_{module}", name, **given, **inputs)[0]

    return part


GUIDER_PARTS = {
    "cfg": _guider(comfy.samplers.CFGGuider),
    "cfg 1": _guider(comfy.samplers.CFGGuider, 1.0),
    "one by one": _guider(OneByOne),
    "basic": _node_guider("custom_sampler", "BasicGuider"),
    "perp-neg": _node_guider("perpneg", "PerpNegGuider", cfg=4.0, neg_scale=0.8),
    "dual cfg": _node_guider("custom_sampler", "DualCFGGuider", cfg_conds=3.0, cfg_cond2_negative=2.0, style="regular"),
    "nested cfg": _node_guider(
        "custom_sampler", "DualCFGGuider", cfg_conds=3.0, cfg_cond2_negative=2.0, style="nested"
    ),
    "dual model": _node_guider("custom_sampler", "DualModelGuider", cfg=3.0),
}

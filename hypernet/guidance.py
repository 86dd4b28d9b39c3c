"""When a negative prompt provably pushes pictures away from what it names, so that it needs no delta."""

from collections.abc import Mapping
from typing import Any

# Functions of other nodes that get the prediction for the negative prompt and may return it alone.
_FUNCTIONS = (
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_cfg_function",
)
_LAST_FUNCTIONS = "sampler_post_cfg_function"
# The host's CFG++ samplers read the negative prediction through such a function, and step away from it.
_HOST_SAMPLERS = "comfy.k_diffusion.sampling"
# Patches of other nodes that may put what attention gives for the negative prompt into the positive one's rows, as
# NAG does with a scale below 1.
_PATCHES = ("attn1_output_patch", "attn2_output_patch")
# Wrappers of other nodes that may set the cfg of a step, as CFG Override does.
_WRAPPERS = "predict_noise"


def negative_is_pushed_away(cfg: float, model_options: Mapping[str, Any]) -> bool:
    """Whether a plain guider computes negative + cfg * (positive - negative) itself, with cfg at least 1.

    Below 1 the negative prompt has the weight 1 - cfg in the picture. Guiders of other classes combine prompts
    as they like.
    """
    inside = model_options.get("transformer_options", {})
    patches, wrappers = inside.get("patches", {}), inside.get("wrappers", {})
    others = (
        *(model_options.get(name) for name in _FUNCTIONS),
        *(own.__module__ != _HOST_SAMPLERS for own in model_options.get(_LAST_FUNCTIONS, ())),
        *(patches.get(name) for name in _PATCHES),
        *wrappers.get(_WRAPPERS, {}).values(),
    )
    return cfg >= 1 and not any(others)

"""When a negative prompt provably pushes pictures away from what it names, so that it needs no delta."""

from collections.abc import Mapping
from typing import Any

# Functions of other nodes that get the prediction for the negative prompt and may return it alone.
_FUNCTIONS = (
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
)


def negative_is_pushed_away(cfg: float, model_options: Mapping[str, Any]) -> bool:
    """Whether a plain guider computes negative + cfg * (positive - negative) itself, with cfg at least 1.

    Below 1 the negative prompt has the weight 1 - cfg in the picture. Guiders of other classes combine prompts
    as they like.
    """
    return cfg >= 1 and not any(model_options.get(name) for name in _FUNCTIONS)

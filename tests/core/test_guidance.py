"""Which negative prompts need no delta."""

from types import FunctionType

import pytest

from unhype.hypernet.guidance import negative_is_pushed_away

# As the host's CFG++ samplers make them.
OF_A_SAMPLER = FunctionType((lambda arguments: arguments).__code__, {"__name__": "comfy.k_diffusion.sampling"})


@pytest.mark.parametrize(
    ("cfg", "options", "expected"),
    [
        (7.0, {}, True),
        (1.0, {"sampler_post_cfg_function": []}, True),
        (0.999, {}, False),
        (0.0, {}, False),
        (7.0, {"sampler_cfg_function": print}, False),
        (7.0, {"sampler_pre_cfg_function": [print]}, False),
        (7.0, {"sampler_post_cfg_function": [print]}, False),
        (7.0, {"sampler_post_cfg_function": [OF_A_SAMPLER]}, True),
        (7.0, {"sampler_post_cfg_function": [OF_A_SAMPLER, print]}, False),
        (7.0, {"sampler_calc_cond_batch_function": print}, False),
        (7.0, {"model_function_wrapper": print, "transformer_options": {}}, True),
        (7.0, {"transformer_options": {"patches": {"attn2_patch": [print]}, "wrappers": {"predict_noise": {}}}}, True),
        (7.0, {"transformer_options": {"patches": {"attn1_output_patch": [print]}}}, False),
        (7.0, {"transformer_options": {"patches": {"attn2_output_patch": [print]}}}, False),
        (7.0, {"transformer_options": {"wrappers": {"predict_noise": {None: [print]}}}}, False),
    ],
)
def test_a_negative_prompt_is_left_alone_where_it_can_only_push_away(cfg, options, expected):
    assert negative_is_pushed_away(cfg, options) is expected

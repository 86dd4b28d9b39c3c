"""Ways by which text reaches the target layers beside the conditionings, as other nodes bring it."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import WrappersMP
from tiny import TOKENS

from unhype.hypernet.patch import apply_erasure

# The ways: each takes a MODEL and a text, and gives a MODEL that draws the text too.


def attention_patch(rows_of):
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


def calls_function(model, conditioning):
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
    "rows behind": attention_patch(lambda rows, own: torch.cat([rows, own.expand(len(rows), -1, -1)])),
    "rows before": attention_patch(lambda rows, own: torch.cat([own.expand(len(rows), -1, -1), rows])),
    "in place": attention_patch(lambda rows, own: own.expand(len(rows), -1, -1).clone()),
    "one row in place": attention_patch(lambda rows, own: torch.cat([rows[:-1], own])),
    "tokens behind": attention_patch(lambda rows, own: torch.cat([rows, own.expand(len(rows), -1, -1)], 1)),
    "tokens before": attention_patch(lambda rows, own: torch.cat([own.expand(len(rows), -1, -1), rows], 1)),
    "tokens in the middle": attention_patch(
        lambda rows, own: torch.cat([rows[:, :3], own.expand(len(rows), -1, -1), rows[:, 3:]], 1)
    ),
    "a wrapper around the network": _wrapper(WrappersMP.DIFFUSION_MODEL, _third_lengthened),
    "a wrapper around the model": _wrapper(WrappersMP.APPLY_MODEL, _fourth_replaced),
    "a wrapper around conditionings": _wrapper(WrappersMP.CALC_COND_BATCH, _conditionings_replaced),
    "a model function": _model_function,
    "a function for conditionings": calls_function,
}
ORDERS = {
    "erasure first": lambda way, model, text, *args, **options: way(apply_erasure(model, *args, **options), text),
    "erasure last": lambda way, model, text, *args, **options: apply_erasure(way(model, text), *args, **options),
}

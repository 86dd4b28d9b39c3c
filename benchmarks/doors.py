"""Ways in which text reaches the network beside the prompt on the sampler's positive input: other nodes, in small.

Each takes the lab, the text in question and harmless text, and gives a `Door`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from .lab.measure import encode


@dataclass(frozen=True)
class Door:
    """A graph around the sampler: its prompts, its cfg, and what other nodes do to the MODEL."""

    positive: list
    negative: list
    change: Callable[[Any], Any] = lambda model: model
    cfg: float = 3.0


def _attention_patch(change, reduce=None):
    """An attention patch on the rows of the positive prompt.

    change: of those rows of the context (n, tokens, in) by the text's. reduce: of the attention's output of twice as
    many rows to as many.
    """

    def way(lab, text, other):
        ((tokens, _),) = encode(lab.clip, text)

        def positive_rows(count, options):
            chunks = options["cond_or_uncond"]
            rows = torch.tensor([chunk == 0 for chunk in chunks]).repeat_interleave(count // len(chunks))
            return rows.nonzero().flatten()

        def patch(q, keys, values, options):
            rows = positive_rows(len(keys), options)
            region = tokens.to(keys).repeat(len(rows), keys.shape[1] // tokens.shape[1], 1)
            if reduce is None:
                changed = change(keys[rows], region)
                # The negative prompt's rows are made as long by repeating them.
                keys = keys.repeat(1, changed.shape[1] // keys.shape[1], 1)
                keys[rows] = changed
                return q, keys, keys
            keys = change(keys, region)
            return torch.cat([q, q[rows]]) if reduce == "behind" else torch.cat([q[rows], q]), keys, keys

        def output(n, options):
            batch = options["original_shape"][0]
            rows, side = positive_rows(batch, options), math.isqrt(n.shape[1])
            own, region = (n[:batch], n[batch:]) if reduce == "behind" else (n[-batch:], n[:-batch])
            left = (torch.arange(n.shape[1]) % side < side // 2).view(1, -1, 1)
            own = own.clone()
            own[rows] = torch.where(left, region, own[rows])
            return own

        def on(model):
            clone = model.clone()
            clone.set_model_attn2_patch(patch)
            if reduce is not None:
                clone.set_model_attn2_output_patch(output)
            return clone

        return Door(encode(lab.clip, other), encode(lab.clip, ""), on)

    return way


def _lengthened_by_a_wrapper(lab, text, other):
    """As regional prompting does in Flux: the wrapper around the network gets a longer context."""
    ((tokens, _),) = encode(lab.clip, text)

    def wrapper(executor, x, timesteps, context, *args, **kwargs):
        region = tokens.to(context).expand(len(context), -1, -1)
        return executor(x, timesteps, torch.cat([context, region], 1), *args, **kwargs)

    def on(model):
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another node", wrapper)
        return clone

    return Door(encode(lab.clip, other), encode(lab.clip, ""), on)


def _swapped_by_a_model_function(lab, text, other):
    ((tokens, _),) = encode(lab.clip, text)

    def function(apply, arguments):
        c, chunks = arguments["c"], arguments["cond_or_uncond"]
        context = c["c_crossattn"].clone()
        rows = torch.tensor([chunk == 0 for chunk in chunks]).repeat_interleave(len(context) // len(chunks))
        context[rows] = tokens.to(context).repeat(1, context.shape[1] // tokens.shape[1], 1)
        return apply(arguments["input"], arguments["timestep"], **{**c, "c_crossattn": context})

    def on(model):
        clone = model.clone()
        clone.set_model_unet_function_wrapper(function)
        return clone

    return Door(encode(lab.clip, other), encode(lab.clip, ""), on)


def _negative_at_cfg_0(lab, text, other):
    return Door(encode(lab.clip, other), encode(lab.clip, text), cfg=0.0)


def _negative_by_a_cfg_function(lab, text, other):
    def on(model):
        clone = model.clone()
        clone.set_model_sampler_cfg_function(lambda args: args["uncond"])
        return clone

    return Door(encode(lab.clip, other), encode(lab.clip, text), on)


DOORS = {
    "rows behind the prompt's, by an attention patch": _attention_patch(
        lambda rows, region: torch.cat([rows, region]), "behind"
    ),
    "rows before the prompt's, by an attention patch": _attention_patch(
        lambda rows, region: torch.cat([region, rows]), "before"
    ),
    "the prompt's place, by an attention patch": _attention_patch(lambda rows, region: region),
    "tokens behind the prompt's, by an attention patch": _attention_patch(
        lambda rows, region: torch.cat([rows, region], 1)
    ),
    "tokens before the prompt's, by an attention patch": _attention_patch(
        lambda rows, region: torch.cat([region, rows], 1)
    ),
    "tokens amid the prompt's, by an attention patch": _attention_patch(
        lambda rows, region: torch.cat([rows[:, :3], region, rows[:, 3:]], 1)
    ),
    "tokens behind the prompt's, by a wrapper around the network": _lengthened_by_a_wrapper,
    "the prompt's place, by a model function": _swapped_by_a_model_function,
    "the negative prompt at cfg 0": _negative_at_cfg_0,
    "the negative prompt, which a cfg function returns alone": _negative_by_a_cfg_function,
}

"""Parts of graphs that take and give a MODEL, made by ComfyUI's own nodes and classes for the tiny models.

A host that lacks the node of a part raises `Missing` with its name.
"""

import importlib
import inspect
from functools import cache

import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from tiny import CONTEXT, LATENT, TOKENS, merged, prompt, seeded, tiny_model


class Missing(Exception):
    """This ComfyUI has no such node."""


def run_node(module, name, **inputs):
    """The outputs of a node of the host, old or new style; inputs that this version of it lacks are left out."""
    try:
        node = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise Missing(f"no node {name}") from None
    function = node.execute if issubclass(node, io.ComfyNode) else getattr(node(), node.FUNCTION)
    known = inspect.signature(function).parameters
    outputs = function(**{key: value for key, value in inputs.items() if key in known})
    return outputs.args if isinstance(outputs, io.NodeOutput) else outputs


def extra(name, node, **inputs):
    """A model part that is one node of comfy_extras."""

    def part(model):
        return run_node(f"comfy_extras.nodes_{name}", node, model=model, **inputs)[0]

    return part


@cache
def another_model():
    """A model with other weights, for nodes that want two."""
    return tiny_model(seed=9)


@cache
def style_lora(seed=20, size=0.1):
    """A LoRA on self-attention and cross-attention, target layers included."""
    lora = {}
    for name, weight in another_model().model.state_dict().items():
        if name.endswith(("attn1.to_q.weight", "attn2.to_k.weight", "attn2.to_v.weight", "attn2.to_q.weight")):
            key = name.removesuffix(".weight")
            lora[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=seeded(seed)) * size
            lora[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=seeded(seed + 1)) * size
    return lora


def lora(model):
    return merged(model, style_lora())


def merge(model):
    return run_node(
        "comfy_extras.nodes_model_merging", "ModelMergeSimple", model1=model, model2=another_model(), ratio=0.5
    )[0]


def perp_neg(model):
    """The deprecated node, which encodes its empty prompt by hand while sampling."""
    empty = [[prompt(6)[0][0], {"pooled_output": torch.zeros(1, 24)}]]
    return run_node("comfy_extras.nodes_perpneg", "PerpNeg", model=model, empty_conditioning=empty, neg_scale=0.7)[0]


def tiles(model):
    """As tiled diffusion does: the batch is repeated for two halves of the picture, tile by tile."""

    def in_two(apply, arguments):
        x, t, c = arguments["input"], arguments["timestep"], dict(arguments["c"])
        if x.shape[2] < LATENT or c.get("control"):
            return apply(x, t, **c)
        repeated = {name: torch.cat([value, value]) if torch.is_tensor(value) else value for name, value in c.items()}
        halves = apply(torch.cat(x.chunk(2, dim=2)), torch.cat([t, t]), **repeated)
        return torch.cat(halves.chunk(2), dim=2)

    clone = model.clone()
    clone.set_model_unet_function_wrapper(in_two)
    return clone


def more_tokens(model):
    """As the first IPAdapter packages did: the picture's tokens join the prompt's before the projections."""
    tokens = torch.randn(1, 2, CONTEXT, generator=seeded(31))

    def patch(n, context, value, options):
        longer = torch.cat([context, tokens.expand(len(context), -1, -1)], dim=1)
        return n, longer, longer

    clone = model.clone()
    clone.set_model_attn2_patch(patch)
    return clone


def ip_adapter(model):
    """As IPAdapter does now: it replaces cross-attention and adds a picture's, on positive rows only."""

    def replace(q, k, v, options):
        heads = options["n_heads"]
        out = optimized_attention(q, k, v, heads)
        picture = torch.randn(1, 3, q.shape[-1], generator=seeded(32)).expand(len(q), -1, -1)
        added = optimized_attention(q, picture, picture, heads)
        chunks = options["cond_or_uncond"]
        weight = torch.tensor([float(chunk == 0) for chunk in chunks]).repeat_interleave(len(q) // len(chunks))
        return out + added * weight.view(-1, 1, 1)

    clone = model.clone()
    for block, number in (("input", 1), ("input", 3), ("middle", 0), ("output", 1)):
        clone.set_model_attn2_replace(replace, block, number)
    return clone


def extra_rows(model):
    """As the NAG packages do: a negative prompt joins the batch inside the network, and attention splits it again."""
    clone = model.clone()
    negative = torch.randn(1, TOKENS, CONTEXT, generator=seeded(33))

    def attention(module):
        def guided(x, context=None, **_options):
            q, k, v = module.to_q(x), module.to_k(context), module.to_v(context)
            out = optimized_attention(q, k[: len(x)], v[: len(x)], module.heads)
            other = optimized_attention(q[-1:], k[len(x) :], v[len(x) :], module.heads)
            return module.to_out(torch.cat([out[:-1], 1.5 * out[-1:] - 0.5 * other]))

        return guided

    def wrapper(executor, x, timesteps, context, *args, **kwargs):
        crossing = [module for name, module in executor.class_obj.named_modules() if name.endswith("attn2")]
        try:
            for module in crossing:
                module.forward = attention(module)
            longer = torch.cat([context, negative.repeat(1, context.shape[1] // TOKENS, 1)])
            return executor(x, timesteps, longer, *args, **kwargs)
        finally:
            for module in crossing:
                module.__dict__.pop("forward", None)

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "nag", wrapper)
    return clone


class LittleMemory(comfy.model_patcher.ModelPatcher):
    """The host's patcher on a device with room for a part of the weights."""

    def partially_load(self, device_to, extra_memory=0, **options):
        return super().partially_load(device_to, extra_memory=self.model_size() // 3, **options)


def partly_loaded(model):
    clone = model.clone()
    clone.__class__ = LittleMemory
    return clone


MODEL_PARTS = {
    "lora": lora,
    "merge": merge,
    "attention multiply": extra("attention_multiply", "UNetCrossAttentionMultiply", q=1.1, k=0.9, v=1.2, out=1.0),
    "freeu": extra("freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "pag": extra("pag", "PerturbedAttentionGuidance", scale=2.0),
    "sag": extra("sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "slg": extra(
        "slg",
        "SkipLayerGuidanceDiT",
        scale=2.0,
        start_percent=0.0,
        end_percent=1.0,
        double_layers="0",
        single_layers="0",
        rescaling_scale=0.2,
    ),
    "nag": extra("nag", "NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    "extra rows": extra_rows,
    "perp-neg": perp_neg,
    "hypertile": extra("hypertile", "HyperTile", tile_size=32, swap_size=1, max_depth=1, scale_depth=False),
    "tome": extra("tomesd", "TomePatchModel", ratio=0.3),
    "downscale": extra(
        "model_downscale",
        "PatchModelAddDownscale",
        block_number=2,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=1.0,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "easy cache": extra(
        "easycache", "EasyCacheNode", reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False
    ),
    "rescale cfg": extra("model_advanced", "RescaleCFG", multiplier=0.7),
    "zero snr": extra("model_advanced", "ModelSamplingDiscrete", sampling="eps", zsnr=True),
    "mahiro": extra("mahiro", "Mahiro"),
    "tcfg": extra("tcfg", "TCFG"),
    "apg": extra("apg", "APG", eta=0.5, norm_threshold=5.0, momentum=-0.5),
    "fresca": extra("fresca", "FreSca", scale_low=1.0, scale_high=1.25, freq_cutoff=2),
    "more tokens": more_tokens,
    "ip-adapter": ip_adapter,
    "tiles": tiles,
    "context windows": extra(
        "context_windows",
        "ContextWindowsManualNode",
        context_length=2,
        context_overlap=1,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        dim=0,
        freenoise=False,
    ),
    "partly loaded": partly_loaded,
}

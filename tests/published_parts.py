"""Files as the paper's authors save them, made up, and their layer equation."""

import math

import torch
from core_parts import POOLED

from unhype.hypernet.targets import TargetLayer

S, OCTAVES, HIDDEN = 300, 16, 5
# Their names of Flux.1's layers, which are diffusers', beside the host's, and whether the layer is fused there.
FLUX = [
    (f"transformer_blocks.{i}.attn.{theirs}", f"double_blocks.{i}.{ours}", fused)
    for i in (0, 1)
    for theirs, ours, fused in (
        ("to_v", "img_attn.qkv", True),
        ("add_v_proj", "txt_attn.qkv", True),
        ("to_out.0", "img_attn.proj", False),
    )
] + [(f"single_transformer_blocks.{i}.attn.to_v", f"single_blocks.{i}.linear1", True) for i in (0, 1)]


def _small(*shape, generator):
    return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])


def their_layer(inputs, outputs, rank, generator, width=POOLED):
    """One layer of theirs, as its module's state dict has it; every number random."""
    frequencies = (2.0 * math.pi / (S + 1)) * torch.pow(torch.tensor(2.0), torch.arange(OCTAVES).float())
    layer = {
        "xL_const_flat": torch.randn(1, inputs * rank, generator=generator) / rank**0.5,
        "xR_const_flat": torch.zeros(1, outputs * rank),
        "alpha_b": torch.tensor(0.5),
        "alpha": torch.randn((), generator=generator),
        "time_feat.freqs": frequencies,
        "original.weight": torch.randn(outputs, inputs, generator=generator),
        "original.bias": torch.randn(outputs, generator=generator),
    }
    for side, size in (("left", inputs * rank), ("right", outputs * rank)):
        layer[f"{side}_head.0.weight"] = _small(HIDDEN, width + 2 * OCTAVES, generator=generator)
        layer[f"{side}_head.0.bias"] = _small(HIDDEN, generator=generator)
        layer[f"{side}_head.2.weight"] = _small(size, HIDDEN, generator=generator)
        layer[f"{side}_head.2.bias"] = _small(size, generator=generator)
    return layer


def their_name(layer):
    """Their name of a target layer."""
    return next((theirs for theirs, ours, _ in FLUX if ours == layer.name), layer.name)


def their_file(backend, rank, layers, generator):
    """(state dict, config) of a file for these target layers."""
    own = {layer.name: layer for layer in layers}
    names = (
        [(name, name) for name in own]
        if backend == "sd"
        else [(theirs, ours) for theirs, ours, _ in FLUX if ours in own]
    )
    state = {}
    for theirs, ours in names:
        made = their_layer(own[ours].inputs, own[ours].outputs, rank, generator)
        state |= {f"{theirs}.hyper_lora.{key}": value for key, value in made.items()}
    config = {
        "rank": rank,
        "lora_alpha": 0.5,
        "internal_size": HIDDEN,
        "hyper_train_steps": S,
        "use_orig_concat": False,
        "use_pooler": True,
        "backend": backend,
    }
    return state, config


def their_update(state, name, c, x, rank, step=S):
    """(x L) R of one layer, worked out from the file as the equation has it; c: (768,), x: (..., in)."""
    part = {key.partition(".hyper_lora.")[2]: value for key, value in state.items() if key.startswith(name + ".hyper")}
    t = torch.tensor([float(step)])
    angles = t[:, None] * part["time_feat.freqs"]
    v = torch.cat([c[None], torch.cos(angles), torch.sin(angles)], dim=1)

    def head(side):
        inner = part[f"{side}_head.0.weight"] @ v[0] + part[f"{side}_head.0.bias"]
        return part[f"{side}_head.2.weight"] @ inner.clamp(min=0) + part[f"{side}_head.2.bias"]

    scale = part["alpha_b"] + step / S * part["alpha"]
    L = scale * (part["xL_const_flat"][0] + step / S * head("left"))
    R = part["xR_const_flat"][0] + step / S * head("right")
    return (x @ L.reshape(-1, rank)) @ R.reshape(rank, -1)


def their_layers(backend, width=6, wider=8):
    """Target layers of their two kinds of models, small."""
    if backend == "sd":
        sizes = {"input_blocks.1.1": width, "middle_block.1": wider}
        return tuple(
            TargetLayer(f"{block}.transformer_blocks.0.attn2.to_{kind}", 5, size)
            for block, size in sizes.items()
            for kind in "kv"
        )
    layers = []
    for _, name, fused in FLUX:
        times = 7 if name.endswith("linear1") else 3 if fused else 1
        layers.append(TargetLayer(name, width, width, 2 * width if fused else 0, times * width))
    return tuple(layers)


def saved(path, state, config=None):
    """A .pth file of theirs."""
    torch.save(state if config is None else {"state_dict": state, "config": config}, path)
    return path

"""How the lab's weights are kept small enough for a repository: fp16, and eight bits for the largest tensors."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

_LARGE = 200_000
_SCALE = ".row_scale"


def save(state, path, metadata):
    """Write a state dict as safetensors; tensors of 200,000 and more numbers as int8 with a scale a row."""
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().float()
        if tensor.numel() >= _LARGE:
            scale = tensor.flatten(1).abs().amax(1) / 127
            # Never less than the smallest half: a row of zeros must not be divided by zero.
            tensors[name + _SCALE] = scale.clamp_min(2**-24).to(torch.float16)
            rows = tensors[name + _SCALE].float().view(-1, *[1] * (tensor.dim() - 1))
            tensors[name] = (tensor / rows).round().clamp(-127, 127).to(torch.int8)
        else:
            tensors[name] = tensor.to(torch.float16).contiguous()
    save_file(tensors, path, metadata={name: str(value) for name, value in metadata.items()})


def load(path):
    """The fp32 state dict that `save` wrote."""
    stored = load_file(path)
    state = {}
    for name, tensor in stored.items():
        if name.endswith(_SCALE):
            continue
        scale = stored.get(name + _SCALE)
        state[name] = tensor.float()
        if scale is not None:
            state[name] *= scale.float().view(-1, *[1] * (tensor.dim() - 1))
    return state


def steps(path):
    """How many steps the stored weights were trained for."""
    with safe_open(str(path), framework="pt") as file:
        return int(file.metadata()["steps"])

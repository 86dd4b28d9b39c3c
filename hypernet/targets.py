"""Which layers of which model families H writes to, as data.

A family is one entry of `FAMILIES`. It is told from the names of the host's classes, never from a
file name, so that subclasses made by other packs match as well.
"""

import re
from dataclasses import dataclass

PREFIX = "diffusion_model."


@dataclass(frozen=True)
class TargetLayer:
    """One linear layer that receives a low-rank delta.

    `name` is relative to the diffusion network, `inputs` and `outputs` are its features.
    """

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Family:
    """A model family: how to recognise it and where its text enters.

    `config` is the name of the host's configuration class (or of an ancestor of it), `pattern` a
    regular expression over layer names, `architecture` the name used by modelspec metadata. `encoders`:
    widths of its text encoders where several lie side by side in each token. `joint`: whether its target
    layers see the tokens of prompt and picture together.
    """

    key: str
    title: str
    config: str
    network: str
    pattern: str
    architecture: str
    encoders: tuple[int, ...] = ()
    joint: bool = False


_CROSS_ATTENTION = r"(input_blocks|middle_block|output_blocks)\..*\.attn2\.to_[kv]"

FAMILIES = (
    Family("sd15", "Stable Diffusion 1.x", "SD15", "UNetModel", _CROSS_ATTENTION, "stable-diffusion-v1-5"),
    Family("sd20", "Stable Diffusion 2.x", "SD20", "UNetModel", _CROSS_ATTENTION, "stable-diffusion-v2-1"),
    Family(
        "sdxl", "Stable Diffusion XL", "SDXL", "UNetModel", _CROSS_ATTENTION, "stable-diffusion-xl-v1-base", (768, 1280)
    ),
)


class UnsupportedModelError(ValueError):
    """The model is of no family that H knows how to steer."""


def _ancestors(thing):
    return {cls.__name__ for cls in type(thing).__mro__}


def family_by_key(key):
    """Return the `Family` called `key`; raises `UnsupportedModelError` for one this version lacks."""
    for family in FAMILIES:
        if family.key == key:
            return family
    raise UnsupportedModelError(f"Model family '{key}' is not one that this version of UnHype knows: {supported()}.")


def supported():
    """Name the supported families in words, for messages."""
    return ", ".join(family.title for family in FAMILIES)


def recognise(base_model):
    """Tell the `Family` of a ComfyUI base model (the `.model` of a MODEL).

    Raises `UnsupportedModelError`, which names the model's class and lists what is supported.
    """
    config = _ancestors(getattr(base_model, "model_config", None))
    network = _ancestors(getattr(base_model, "diffusion_model", None))
    for family in FAMILIES:
        if family.config in config and family.network in network:
            return family
    raise UnsupportedModelError(
        f"This model is a {type(base_model).__name__}, and UnHype cannot erase concepts from that kind yet. "
        f"Supported: {supported()}."
    )


def target_layers(base_model, family):
    """List the `TargetLayer`s of `family` in a base model, in the order of its modules.

    Sizes are read from `in_features` and `out_features`: a quantised or lazily loaded layer is no
    torch Linear and may have no weight to look at. Raises `UnsupportedModelError` when there are none.
    """
    pattern = re.compile(family.pattern)
    layers = []
    for name, module in base_model.diffusion_model.named_modules():
        name = name.replace("_orig_mod.", "")  # blocks wrapped by torch.compile nodes
        if pattern.fullmatch(name) and hasattr(module, "in_features") and hasattr(module, "out_features"):
            layers.append(TargetLayer(name, module.in_features, module.out_features))
    if not layers:
        raise UnsupportedModelError(
            f"This {family.title} model has none of the layers that UnHype steers (its cross-attention). "
            "It was probably rebuilt by another node; connect the model before that node."
        )
    return tuple(layers)


def weight_spread(model, layers):
    """The standard deviation of each target layer's weights: a fingerprint that survives a change of dtype.

    model: ModelPatcher. Where a LoRA is merged into the shared weights at the moment, perhaps by another
    branch of the graph, the host's backup of them counts. Returns a list of floats, empty where weights
    can't be read (quantised or paged out).
    """
    spread = []
    for layer in layers:
        holder = model.backup.get(f"{PREFIX}{layer.name}.weight")
        weight = getattr(holder or model.model.diffusion_model.get_submodule(layer.name), "weight", None)
        if weight is None or weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:
            return []
        spread.append(round(weight.detach().float().std().item(), 6))
    return spread

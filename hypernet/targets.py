"""The layers of a model that H changes: the entry of ``families`` that fits, and the layers it names.

Either its `target_layers` or, for models of joint attention, the few `projection_layers` by which text enters.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UserError
from .families import FAMILIES, Family, whole

PREFIX = "diffusion_model."


@dataclass(frozen=True)
class TargetLayer:
    """One linear layer, or some output rows of a fused one, that receives a low-rank delta.

    `name` is relative to the diffusion network. H changes `outputs` rows from `start` on, of the
    layer's `features` output rows; `inputs` are the features of its input.
    """

    name: str
    inputs: int
    outputs: int
    start: int = 0
    features: int = 0

    def __post_init__(self) -> None:
        if not self.features:
            object.__setattr__(self, "features", self.outputs)

    @property
    def rows(self) -> slice:
        """The output rows that H changes, as a slice."""
        return slice(self.start, self.start + self.outputs)


class UnsupportedModelError(UserError, ValueError):
    """The model is of no family that H knows how to steer."""


def _ancestors(thing: object) -> set[str]:
    return {cls.__name__ for cls in type(thing).__mro__}


def family_by_key(key: str) -> Family:
    """Return the `Family` called `key`; raises `UnsupportedModelError` for one this version lacks."""
    for family in FAMILIES:
        if family.key == key:
            return family
    raise UnsupportedModelError(f"Model family '{key}' is not one that this version of UnHype knows: {supported()}.")


def supported() -> str:
    """Name the supported families in words, for messages."""
    return ", ".join(family.title for family in FAMILIES)


def recognise(base_model: Any) -> Family:
    """The `Family` of a ComfyUI base model (the `.model` of a MODEL).

    Raises `UnsupportedModelError`, which names the model's class and lists what is supported, or says that another
    node has put its own network into a supported model.
    """
    config = _ancestors(getattr(base_model, "model_config", None))
    network = _ancestors(getattr(base_model, "diffusion_model", None))
    for family in FAMILIES:
        if family.config in config and family.network in network:
            return family
    if (family := configured_family(base_model)) is not None:
        raise UnsupportedModelError(
            f"This model is {family.title}, but not as ComfyUI builds it: the node that loaded it uses a network "
            f"of its own, {type(base_model.diffusion_model).__name__}, in which UnHype can't find the layers to "
            "change. Load the model with a loader of ComfyUI's own; if it is too large, in fp8."
        )
    raise UnsupportedModelError(
        f"This model is a {type(base_model).__name__}, and UnHype cannot erase concepts from that kind yet. "
        f"Supported: {supported()}."
    )


def configured_family(base_model: Any) -> Family | None:
    """The `Family` of a base model's configuration, whatever its network, or None."""
    config = _ancestors(getattr(base_model, "model_config", None))
    return next((family for family in FAMILIES if family.config in config), None)


def takes_guidance(base_model: Any, family: Family) -> bool:
    """Whether guidance is an input of this network, and pictures are drawn without CFG.

    Of one family some networks have that input, and others, such as Flux.1 schnell, the base models of Klein and
    finetunes that undo the distillation, are drawn with CFG or at CFG 1.
    """
    return family.distilled and base_model.diffusion_model.params.guidance_embed


def target_layers(base_model: Any, family: Family) -> tuple[TargetLayer, ...]:
    """List the `TargetLayer`s of `family` in a base model, in the order of its modules.

    Sizes are read from `in_features` and `out_features`: a quantised or lazily loaded layer is no
    torch Linear and may have no weight to look at. Raises `UnsupportedModelError` when there are none, and for one
    that has no sizes: another node has put something else in its place.
    """
    layers = _layers(base_model, family, family.targets)
    if not layers:
        raise UnsupportedModelError(
            f"This {family.title} model has none of the layers that UnHype steers (its attention). "
            "It was probably rebuilt by another node; connect the model before that node."
        )
    return layers


def projection_layers(base_model: Any, family: Family) -> tuple[TargetLayer, ...]:
    """The text projections that a base model has, in the order of its modules; as `target_layers`, without the error
    where there are none."""
    return _layers(base_model, family, tuple((re.escape(own.name), whole) for own in family.projections))


def layers_like(base_model: Any, family: Family, others: Sequence[TargetLayer]) -> tuple[TargetLayer, ...]:
    """The layers of a base model that a hypernet for the layers `others` has to fit: its text projections if they are
    some, else its `target_layers`."""
    names = {own.name for own in family.projections}
    layers_of = projection_layers if names.intersection(layer.name for layer in others) else target_layers
    return layers_of(base_model, family)


def _layers(
    base_model: Any, family: Family, targets: tuple[tuple[str, Callable[[int, int], tuple[int, int]]], ...]
) -> tuple[TargetLayer, ...]:
    """The layers of a base model that `targets` names, see `Family.targets`."""
    layers = []
    for name, module in base_model.diffusion_model.named_modules():
        name = name.replace("_orig_mod.", "")  # blocks wrapped by torch.compile nodes
        rule = next((rows for pattern, rows in targets if re.fullmatch(pattern, name)), None)
        if rule:
            if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
                raise UnsupportedModelError(
                    f"The layer '{name}' of this {family.title} model is a {type(module).__name__}, which UnHype can't "
                    "change. Another node has probably put it there; connect the model before that node."
                )
            inputs, features = module.in_features, module.out_features
            start, outputs = rule(inputs, features)
            layers.append(TargetLayer(name, inputs, outputs, start, features))
    return tuple(layers)

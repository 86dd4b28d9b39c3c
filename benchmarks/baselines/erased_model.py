"""The result of every method, and how an edit of weights gets onto the model."""

from dataclasses import dataclass

from unhype.hypernet.targets import PREFIX, recognise, target_layers


def unchanged(conditioning):
    """The conditioning of a method that leaves prompts alone."""
    return conditioning


@dataclass(frozen=True)
class ErasedModel:
    """An erasure by some method: what to draw with and what it cost.

    model: ModelPatcher to sample from, a clone of the lab's, or, where the edit depends on the prompt, a
    function from its CONDITIONING to one; `model_for` hides the difference. condition: CONDITIONING list to
    CONDITIONING list, applied to positive prompts. seconds: from words to the edit, all included.
    parameters: numbers that the method adds or changes. bytes: what a user would have to store, in fp32.
    peak_memory: bytes that training took beyond the model and text encoder.
    """

    name: str
    model: object
    condition: object
    seconds: float
    parameters: int
    bytes: int
    peak_memory: int = 0

    def below_threshold(self, conditioning):
        """Whether a gate leaves this CONDITIONING to the base model, bit for bit; without one it never does."""
        del conditioning
        return False

    def model_for(self, conditioning):
        """The ModelPatcher that draws the prompt of this CONDITIONING."""
        return self.model(conditioning) if callable(self.model) else self.model


def layers_of(patcher):
    """The `TargetLayer`s of a ModelPatcher: cross-attention K and V, the ones that ours changes."""
    return target_layers(patcher.model, recognise(patcher.model))


def weights_of(patcher):
    """Name to weight (out, in) of each target layer, unpatched, fp32."""
    network = patcher.model.diffusion_model
    weights = {}
    for layer in layers_of(patcher):
        backup = patcher.backup.get(f"{PREFIX}{layer.name}.weight")
        weight = network.get_submodule(layer.name).weight if backup is None else backup.weight
        weights[layer.name] = weight.detach().float()
    return weights


def edited(patcher, deltas, strength=1.0):
    """A clone of `patcher` with `deltas`, layer name to (out, in), added to its weights; the base stays as it is."""
    clone = patcher.clone()
    clone.add_patches({f"{PREFIX}{name}.weight": ("diff", (delta,)) for name, delta in deltas.items()}, strength)
    return clone

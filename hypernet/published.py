"""H as the paper's authors published it: two heads of its own for every target layer.

With v = [c | cos(s w_k) | sin(s w_k)], frequencies w_k = 2 pi / (S + 1) * 2**k, k = 0 .. 15, and g = s / S:

    a = alpha_base + g * alpha
    L = a * (L_const + g * left(v)), (in, rank)        R = g * right(v), (rank, out)

and the layer is y = W x + b + (x L) R. Their files are read into this network as they are
(``conversion``); what Train Erasure trains is ``network``.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from torch.nn.functional import linear, relu

from .factors import Factors
from .targets import TargetLayer

KIND = "published"


@dataclass(frozen=True)
class PublishedConfig:
    """Everything that decides the shape of the network; saved beside its weights.

    `embedding_width`: numbers in c. `hidden`: width of each head. `trajectory`: S, the last step.
    `octaves`: number of frequencies.
    """

    embedding_width: int
    layers: tuple[TargetLayer, ...]
    rank: int
    hidden: int
    trajectory: int
    octaves: int = 16

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PublishedConfig":
        """Rebuild a config from `to_dict`'s result less its kind; raises TypeError or KeyError when it is not one."""
        known: dict[str, Any] = {**values, "layers": tuple(TargetLayer(**layer) for layer in values["layers"])}
        return cls(**known)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a `PublishedHypernet` of this config, name to shape, without building one."""
        width, layers = self.embedding_width + 2 * self.octaves, len(self.layers)
        shapes: dict[str, tuple[int, ...]] = {
            "alpha": (layers,),
            "alpha_base": (layers,),
            "frequencies": (self.octaves,),
        }
        for n, layer in enumerate(self.layers):
            shapes[f"L_const_{n}"] = (layer.inputs * self.rank,)
            for side, features in (("left", layer.inputs), ("right", layer.outputs)):
                shapes |= {
                    f"{side}.{n}.inner_weight": (self.hidden, width),
                    f"{side}.{n}.inner_bias": (self.hidden,),
                    f"{side}.{n}.outer_weight": (self.rank * features, self.hidden),
                    f"{side}.{n}.outer_bias": (self.rank * features,),
                }
        return shapes


class Head(Module):
    """W2 relu(W1 v + b1) + b2: (p, width) to (p, size)."""

    def __init__(self, width: int, hidden: int, size: int) -> None:
        super().__init__()
        self.inner_weight, self.inner_bias = Parameter(torch.zeros(hidden, width)), Parameter(torch.zeros(hidden))
        self.outer_weight, self.outer_bias = Parameter(torch.zeros(size, hidden)), Parameter(torch.zeros(size))

    def forward(self, v: Tensor) -> Tensor:
        """The head's numbers for each vector v."""
        return linear(relu(linear(v, self.inner_weight, self.inner_bias)), self.outer_weight, self.outer_bias)


class PublishedHypernet(Module):
    """The network; new, it holds zeros, to be filled from a file.

    alpha, alpha_base: (layers,). frequencies: (octaves,), as stored, since the fastest turn so often
    in a trajectory that another rounding gives other features.
    """

    frequencies: Tensor
    alpha_base: Tensor

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_width + 2 * config.octaves
        rank, layers = config.rank, config.layers
        self.left = ModuleList(Head(width, config.hidden, rank * layer.inputs) for layer in layers)
        self.right = ModuleList(Head(width, config.hidden, rank * layer.outputs) for layer in layers)
        self.alpha = Parameter(torch.zeros(len(layers)))
        self.register_buffer("alpha_base", torch.zeros(len(layers)))
        self.register_buffer("frequencies", torch.zeros(config.octaves))
        for n, layer in enumerate(layers):
            self.register_buffer(f"L_const_{n}", torch.zeros(layer.inputs * rank))

    def forward(self, c: Tensor, step: Tensor | float) -> list[Factors]:
        """Generate the factors of every target layer, in the order of `config.layers`.

        c: (p, embedding_width) fp32 embeddings. step: (p,) or a number, trajectory steps in [0, S].
        Returns a list with one `Factors` a layer, A = L^T (p, rank, in) and B = R^T (p, out, rank).
        """
        config = self.config
        step = torch.as_tensor(step, dtype=torch.float32, device=c.device).expand(c.shape[0])
        angle = step.unsqueeze(-1) * self.frequencies
        v = torch.cat([c, angle.cos(), angle.sin()], dim=-1)
        g = (step / config.trajectory).unsqueeze(-1)
        layers = []
        for n in range(len(config.layers)):
            a = self.alpha_base[n] + g * self.alpha[n]
            left = a * (getattr(self, f"L_const_{n}") + g * self.left[n](v))
            right = g * self.right[n](v)
            A = rearrange(left, "p (inputs rank) -> p rank inputs", rank=config.rank)
            B = rearrange(right, "p (rank outputs) -> p outputs rank", rank=config.rank)
            layers.append(Factors(A, B))
        return layers

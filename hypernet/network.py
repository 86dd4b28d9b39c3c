"""H(c, s): the embedding c of a prompt and a trajectory step s to the factors of every target layer.

UnHype (arXiv 2602.03410), section 3, with one trunk over c and s that all layers share. Each target layer
has a small basis, `down` (basis, in) and `up` (out, basis), and the trunk only decides how the basis is
mixed. With g = s / S:

    h = relu(W [c, code(s)] + b)            and at most 1 where the trunk is `bounded`
    P = P_const + g * left(h)              (rank, basis)
    Q = g * right(h)                       (basis, rank)
    A = P down                             (rank, in)
    B = up Q                               (out, rank)

The published network has a pair of two-layer heads for each layer instead, which is some thirty
times larger and erases no better (benchmarks/results/erasure.json). At s = 0 every prompt gets exactly
no change (B = 0). `right` starts at zero, so a new network changes nothing at any s, while A is not
zero and lets the gradient of B through.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Generator, Tensor
from torch.nn import Module, Parameter, ParameterList
from torch.nn.functional import linear, relu

from .factors import Factors
from .targets import TargetLayer


@dataclass(frozen=True)
class HypernetConfig:
    """Everything that decides the shape of H; saved beside its weights.

    `embedding_width`: numbers in c. `basis`: directions that a layer's deltas are mixed from. `hidden`:
    width of the trunk. `trajectory`: S, the last step. `octaves`: frequencies of the step code; the
    fastest has a period of 2 S / 2**(octaves - 1) steps, far above the two steps under which a code over
    whole steps would alias. `bounded`: h is at most 1, so that a prompt that is nothing but the concept gets the change
    of the concept and no multiple of it.
    """

    embedding_width: int
    layers: tuple[TargetLayer, ...]
    rank: int = 4
    basis: int = 16
    hidden: int = 64
    trajectory: int = 300
    octaves: int = 4
    bounded: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HypernetConfig":
        """Rebuild a config from `to_dict`'s result; raises TypeError or KeyError when it is not one."""
        known: dict[str, Any] = {**values, "layers": tuple(TargetLayer(**layer) for layer in values["layers"])}
        return cls(**known)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a `Hypernet` of this config, name to shape, without building one."""
        count, mixed = len(self.layers), len(self.layers) * self.rank * self.basis
        shapes: dict[str, tuple[int, ...]] = {"P_const": (count, self.rank, self.basis)}
        sizes = {
            "trunk": (self.embedding_width + 2 * self.octaves, self.hidden),
            "left": (self.hidden, mixed),
            "right": (self.hidden, mixed),
        }
        for name, (inputs, outputs) in sizes.items():
            shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
        for n, layer in enumerate(self.layers):
            shapes |= {f"down.{n}": (self.basis, layer.inputs), f"up.{n}": (layer.outputs, self.basis)}
        return shapes


def step_code(step: Tensor, trajectory: int, octaves: int) -> Tensor:
    """cos and sin of pi * (s / S) * 2**k, k = 0 .. octaves - 1: (p,) steps to (p, 2 * octaves).

    The slowest cosine falls from 1 to -1 once over the trajectory, so s = 0 and s = S stay apart.
    """
    frequencies = math.pi * 2.0 ** torch.arange(octaves, device=step.device, dtype=torch.float32)
    angle = (step.float() / trajectory).unsqueeze(-1) * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _uniform(shape: tuple[int, ...], fan_in: int, generator: Generator | None) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)


class Affine(Module):
    """v to W v + b, seeded by `generator`; with `zero` it starts as the map to zero."""

    def __init__(self, inputs: int, outputs: int, generator: Generator | None, zero: bool = False) -> None:
        super().__init__()
        self.weight = Parameter(
            torch.zeros(outputs, inputs) if zero else _uniform((outputs, inputs), inputs, generator)
        )
        self.bias = Parameter(torch.zeros(outputs))

    def forward(self, v: Tensor) -> Tensor:
        """v: (p, inputs). Returns (p, outputs)."""
        return linear(v, self.weight, self.bias)


class Hypernet(Module):
    """The network H. `generator` seeds the weights and the fixed constants P_const."""

    def __init__(self, config: HypernetConfig, generator: Generator | None = None) -> None:
        super().__init__()
        self.config = config
        count, rank, basis = len(config.layers), config.rank, config.basis
        self.trunk = Affine(config.embedding_width + 2 * config.octaves, config.hidden, generator)
        self.left = Affine(config.hidden, count * rank * basis, generator)
        self.right = Affine(config.hidden, count * basis * rank, generator, zero=True)
        self.register_buffer("P_const", torch.randn(count, rank, basis, generator=generator) / math.sqrt(rank))
        scale = 1 / math.sqrt(basis)
        self.down = ParameterList(
            [torch.randn(basis, layer.inputs, generator=generator) * scale for layer in config.layers]
        )
        self.up = ParameterList(
            [torch.randn(layer.outputs, basis, generator=generator) * scale for layer in config.layers]
        )

    def forward(self, c: Tensor, step: Tensor | float) -> list[Factors]:
        """Generate the factors of every target layer, in the order of `config.layers`.

        c: (p, embedding_width) fp32 embeddings. step: (p,) or a number, trajectory steps in [0, S].
        Returns a list with one `Factors` a layer, A (p, rank, in) and B (p, out, rank).
        """
        config = self.config
        count, rank, basis = len(config.layers), config.rank, config.basis
        step = torch.as_tensor(step, dtype=torch.float32, device=c.device).expand(c.shape[0])
        h = relu(self.trunk(torch.cat([c, step_code(step, config.trajectory, config.octaves)], dim=-1)))
        h = h.clamp_max(1.0) if config.bounded else h
        g = rearrange(step / config.trajectory, "p -> p 1 1 1")
        sizes = {"layer": count, "rank": rank, "basis": basis}
        P = self.P_const + g * rearrange(self.left(h), "p (layer rank basis) -> p layer rank basis", **sizes)
        Q = g * rearrange(self.right(h), "p (layer basis rank) -> p layer basis rank", **sizes)
        return [
            Factors(P[:, n] @ down, up @ Q[:, n]) for n, (down, up) in enumerate(zip(self.down, self.up, strict=True))
        ]

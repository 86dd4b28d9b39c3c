"""H(c, s): the embedding c of a prompt and a trajectory step s to the factors of every target layer.

UnHype (arXiv 2602.03410), section 3, with the layer equation of method part 2:

    g = s / S        a = alpha_base + g * alpha
    A = a * (A_const + g * left(c, s))        B = g * right(c, s)

At s = 0 every prompt gets exactly no change (B = 0). The last layer of `right` starts at zero, so a
new network changes nothing at any s, while A is not zero and lets the gradient of B through.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch.nn import Module, Parameter, ParameterDict
from torch.nn.functional import linear, relu

from .factors import Factors
from .targets import TargetLayer


@dataclass(frozen=True)
class HypernetConfig:
    """Everything that decides the shape of H; saved beside its weights.

    `embedding_width`: numbers in c. `hidden`: width of each head. `trajectory`: S, the last step.
    `octaves`: frequencies of the step code; the fastest has a period of 2 S / 2**(octaves - 1) steps,
    far above the two steps under which a code over whole steps would alias.
    """

    embedding_width: int
    layers: tuple[TargetLayer, ...]
    rank: int = 4
    alpha: float = 1.0
    hidden: int = 100
    trajectory: int = 300
    octaves: int = 4

    def to_dict(self):
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Rebuild a config from `to_dict`'s result; raises TypeError or KeyError when it is not one."""
        layers = tuple(TargetLayer(**layer) for layer in values["layers"])
        return cls(**{**values, "layers": layers})


def step_code(step, trajectory, octaves):
    """cos and sin of pi * (s / S) * 2**k, k = 0 .. octaves - 1: (p,) steps to (p, 2 * octaves).

    The slowest cosine falls from 1 to -1 once over the trajectory, so s = 0 and s = S stay apart.
    """
    frequencies = math.pi * 2.0 ** torch.arange(octaves, device=step.device, dtype=torch.float32)
    angle = (step.float() / trajectory).unsqueeze(-1) * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _uniform(shape, fan_in, generator):
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)


class HeadBank(Module):
    """Many two-layer heads that read the same vector, evaluated together.

    Head n maps v to W2_n relu(W1_n v + b1_n) + b2_n. The first layers are one matrix; the second
    ones are stacked by output size, so a whole model costs a handful of matrix products.
    """

    def __init__(self, width, hidden, sizes, generator, zero_last=False):
        super().__init__()
        self.hidden = hidden
        self.sizes = tuple(sizes)
        self.inner_weight = Parameter(_uniform((len(sizes) * hidden, width), width, generator))
        self.inner_bias = Parameter(_uniform((len(sizes) * hidden,), width, generator))
        self.outer_weight, self.outer_bias = ParameterDict(), ParameterDict()
        for size in sorted(set(sizes)):
            count = self.sizes.count(size)
            weight, bias = (count, size, hidden), (count, size)
            self.outer_weight[str(size)] = Parameter(
                torch.zeros(weight) if zero_last else _uniform(weight, hidden, generator)
            )
            self.outer_bias[str(size)] = Parameter(
                torch.zeros(bias) if zero_last else _uniform(bias, hidden, generator)
            )

    def forward(self, v):
        """v: (p, width). Returns a list with one (p, size_n) tensor a head."""
        h = relu(linear(v, self.inner_weight, self.inner_bias)).unflatten(-1, (len(self.sizes), self.hidden))
        heads = [None] * len(self.sizes)
        for size in sorted(set(self.sizes)):
            index = [n for n, own in enumerate(self.sizes) if own == size]
            out = torch.einsum("pnh,noh->npo", h[:, index], self.outer_weight[str(size)])
            out = out + self.outer_bias[str(size)].unsqueeze(1)
            for n, rows in zip(index, out.unbind(0), strict=True):
                heads[n] = rows
        return heads


class Hypernet(Module):
    """The network H. `generator` seeds the weights and the fixed constants A_const."""

    def __init__(self, config, generator=None):
        super().__init__()
        self.config = config
        width = config.embedding_width + 2 * config.octaves
        rank = config.rank
        self.left = HeadBank(width, config.hidden, [rank * layer.inputs for layer in config.layers], generator)
        self.right = HeadBank(
            width, config.hidden, [rank * layer.outputs for layer in config.layers], generator, zero_last=True
        )
        self.alpha = Parameter(torch.full((len(config.layers),), float(config.alpha)))
        for n, layer in enumerate(config.layers):
            constant = torch.randn(rank, layer.inputs, generator=generator) / math.sqrt(rank)
            self.register_buffer(f"A_const_{n}", constant)

    def forward(self, c, step):
        """Write the factors of every target layer, in the order of `config.layers`.

        c: (p, embedding_width) fp32 embeddings. step: (p,) or a number, trajectory steps in [0, S].
        Returns a list with one `Factors` a layer, A (p, rank, in) and B (p, out, rank).
        """
        config = self.config
        step = torch.as_tensor(step, dtype=torch.float32, device=c.device).expand(c.shape[0])
        v = torch.cat([c, step_code(step, config.trajectory, config.octaves)], dim=-1)
        g = (step / config.trajectory).view(-1, 1, 1)
        layers = []
        for n, (layer, left, right) in enumerate(zip(config.layers, self.left(v), self.right(v), strict=True)):
            a = config.alpha + g * self.alpha[n]
            constant = getattr(self, f"A_const_{n}")
            A = a * (constant + g * left.view(-1, config.rank, layer.inputs))
            B = g * right.view(-1, layer.outputs, config.rank)
            layers.append(Factors(A, B))
        return layers

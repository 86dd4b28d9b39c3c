"""Neighbours of the erased concepts: things like them, which keep their pictures.

One score for each concept can't say that a prompt is about something else: a sailboat is much like a ship, and more
like other boats. So a prompt that scores little above a threshold is compared with embeddings n_j of things that are
near the concepts. It counts as concept k only if it isn't closer to one of them than to the concept itself:

    max_j cos(n_j, c) <= cos(e_k, c)
"""

from torch import Tensor
from torch.nn import Module
from torch.nn.functional import normalize


class Neighbours(Module):
    """n_j, (neighbours, width), and e_k, (concepts, width), fp32. A file holds e_k elsewhere already."""

    embeddings: Tensor
    own: Tensor

    def __init__(self, embeddings: Tensor, own: Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("own", own, persistent=False)

    def closer(self, c: Tensor) -> Tensor:
        """Whether c (p, width) is closer to a neighbour than to each concept, (p, concepts)."""
        nearest = (c.to(self.own) @ normalize(self.embeddings, dim=1).T).amax(1, keepdim=True)
        return nearest > c.to(self.own) @ normalize(self.own, dim=1).T

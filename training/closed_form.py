"""The start of the attention objective in closed form: H as ridge regressions have it, before any step.

For each concept k and each input of target layers, token states or pooled embeddings, M_k minimises over its wordings

    sum_i p_i |M x_i - (m_i - x_i)|^2 + ridge |M|^2,        M_k ~ U_k V_k  of rank r

with x_i a token of the erased prompt, m_i its token of the mapping prompt, and U_k the r strongest directions of what
M_k gives for these tokens (reduced-rank regression). W M_k is the change of every layer W with that input. The bases of
H are the directions that the concepts have in common, `up` = W O and `down` = D with U_k ~ O Q_k and V_k ~ P_k D. The
trunk has a unit a concept, which is zero for most retained prompts and for most other concepts:

    h_k(c) = min(1, max(0, w_k c + b_k)),        P = P_const + g sum_k h_k L_k,        Q = g sum_k h_k R_k

P_const is the mean of the P_k; L_k and R_k are chosen so that the sums are P_k - P_const and Q_k for the wordings of k,
although units of like concepts answer as well.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Generator, Tensor

from ..hypernet.network import Hypernet, HypernetConfig
from .tasks.attention import AttentionTask, output_of

# Ridges as shares of the mean square: of the states, of the embeddings, of the units.
_RIDGE, _WIDTH_RIDGE, _UNIT_RIDGE = 0.01, 0.1, 1e-3
# What a unit's linear function gives before it answers.
_DEAD = 0.2
# The weights of retained states and of the other concepts' beside a concept's own.
_RETAINED, _OTHERS = 0.3, 0.3
_ITERATIONS, _SPARE = 4, 4
# Inputs wider than that are regressed in so many of their strongest directions, found from so many tokens.
_WIDEST, _SAMPLED = 1024, 4096
_PROMPTS = 64


class Embeddings(NamedTuple):
    """Embeddings c, (n, width) each: of every concept's wordings and sentences, and of retained prompts."""

    wordings: Sequence[Tensor]
    sentences: Sequence[Tensor]
    retained: Tensor

    def units(self) -> tuple[Tensor, Tensor]:
        """w (concepts, width) and b (concepts,) of the trunk's units: about 1 for a concept, 0 for all else.

        The linear function of least squares that separates the concept from the mean of the retained prompts, given how
        these and the other concepts lie, less _DEAD.
        """
        center = self.retained.double().mean(0)
        moved = [[part.double() - center for part in parts] for parts in (self.wordings, self.sentences)]
        means = torch.stack([torch.stack([part.mean(0) for part in both]).mean(0) for both in zip(*moved, strict=True)])
        spread = _mean_square(self.retained.double() - center)
        spread = (spread + sum(_mean_square(torch.cat(parts)) for parts in moved) / 2) / 2
        w = torch.linalg.solve(_with_ridge(spread, _WIDTH_RIDGE), means.T).T
        w = w / (w * means).sum(1, keepdim=True)
        return (w / (1 - _DEAD)).float(), ((-(w @ center) - _DEAD) / (1 - _DEAD)).float()


def _mean_square(X: Tensor) -> Tensor:
    return X.T @ X / len(X)


class Moments(NamedTuple):
    """Weighted sums over the tokens of a concept: gram = sum p x x', cross = sum p (m - x) x', both (in, in)."""

    gram: Tensor
    cross: Tensor


class Change(NamedTuple):
    """M = U V: U (in, r), orthonormal, and V (r, in)."""

    U: Tensor
    V: Tensor


class Bases(NamedTuple):
    """Directions that the changes of all concepts have in common, and the changes in them.

    out: (in, basis), O of the equation. down: (basis, in). P: (concepts, r, basis). Q: (concepts, basis, r).
    """

    out: Tensor
    down: Tensor
    P: Tensor
    Q: Tensor


def regression(moments: Moments, others: Tensor, rank: int, generator: Generator) -> Change:
    """The `Change` of rank `rank` that comes closest to a concept's moments and to zero for `others` (in, in)."""
    gram = _with_ridge(moments.gram + others, _RIDGE)
    M = torch.cholesky_solve(moments.cross.T, torch.linalg.cholesky(gram)).T
    U = strongest(M @ moments.gram @ M.T, rank, generator)
    return Change(U, U.T @ M)


def strongest(gram: Tensor, count: int, generator: Generator) -> Tensor:
    """The `count` strongest directions of a symmetric matrix (n, n), orthonormal columns, by subspace iteration."""
    found = torch.randn(len(gram), min(count + _SPARE, len(gram)), generator=generator, dtype=gram.dtype)
    for _ in range(_ITERATIONS):
        found = torch.linalg.qr(gram @ found)[0]
    vectors, _, _ = torch.linalg.svd(found.T @ gram @ found)
    return (found @ vectors)[:, :count]


def common_bases(changes: Sequence[Change], gram: Tensor, basis: int, generator: Generator) -> Bases:
    """`Bases` of all concepts' changes. gram: (in, in) of the tokens that the changes meet."""
    lower = torch.linalg.cholesky(_with_ridge(gram, _RIDGE))
    U, V = torch.stack([change.U for change in changes]), torch.stack([change.V for change in changes])
    met = V @ lower  # in coordinates in which the tokens have no spread of their own
    rows = met.flatten(0, 1)
    chosen = strongest(rows.T @ rows, basis, generator)
    down = torch.linalg.solve_triangular(lower.T, chosen, upper=True).T
    size = down.norm(dim=1)
    columns = rearrange(U * met.norm(dim=2).unsqueeze(1), "concept n r -> n (concept r)")
    out = strongest(columns @ columns.T, basis, generator)
    return Bases(out, down / size.unsqueeze(1), met @ chosen * size, out.T @ U)


def common_part(P: Tensor) -> Tensor:
    """Rotations (concepts, r, r) that bring the P (concepts, r, basis) of all concepts as close together as can be.

    U V is the same for R'R = 1 between the two.
    """
    rotated, turns = P, torch.eye(P.shape[1], dtype=P.dtype).expand(len(P), -1, -1)
    for _ in range(_ITERATIONS):
        left, _, right = torch.linalg.svd(rotated.mean(0) @ P.transpose(1, 2))
        turns = left @ right
        rotated = turns @ P
    return turns


def _with_ridge(gram: Tensor, share: float) -> Tensor:
    return gram + torch.eye(len(gram), dtype=gram.dtype) * (share * gram.diagonal().mean()).clamp_min(1e-12)


class _Input:
    """One input of target layers: its pairs in coordinates of at most _WIDEST directions."""

    def __init__(self, task: AttentionTask, number: int, generator: Generator) -> None:
        self.task, self.layer = task, task.layers[number]
        self.directions: Tensor | None = None
        if self.layer.pairs.erased.shape[-1] > _WIDEST:
            count = self.task.c.shape[1]
            some = torch.cat([X.flatten(0, 1) for X, _ in self._batches(torch.arange(count)[:: max(1, count // 64)])])
            some = some[:: -(-len(some) // _SAMPLED)].double()
            near = strongest(some @ some.T, _WIDEST, generator)
            self.directions = torch.linalg.qr(some.T @ near)[0].float()

    def _batches(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part in index.split(_PROMPTS):
            X_p, X_m = self.task.inputs(self.layer, part)
            yield X_p.cpu(), (X_m - X_p).cpu()

    def moments(self, index: Tensor, weight: Tensor) -> Moments:
        """The `Moments` of the pairs `index`, each counted `weight` (n,)."""
        gram = cross = torch.zeros((), dtype=torch.float64)
        for (X, change), share in zip(self._batches(index), weight.split(_PROMPTS), strict=True):
            X, change = (self.reduced(part.flatten(0, 1)) for part in (X, change))
            p = share.repeat_interleave(len(X) // len(share)).unsqueeze(1)
            gram = gram + (X.T @ (X * p)).double()
            cross = cross + (change.T @ (X * p)).double()
        return Moments(gram, cross)

    def retained(self) -> Tensor:
        """The gram of the states that must stay as they are, (coordinates, coordinates) fp64."""
        X = self.reduced(self.task.passed(self.layer, self.layer.retained).cpu())
        return (X.T @ X).double()

    def reduced(self, X: Tensor) -> Tensor:
        """States (n, in) in the coordinates of the regression."""
        return X if self.directions is None else X @ self.directions

    def full(self, vectors: Tensor) -> Tensor:
        """The reverse for rows (n, coordinates), (n, in) fp32."""
        vectors = vectors.float()
        return vectors if self.directions is None else vectors @ self.directions.T


def start(
    hypernet: Hypernet,
    task: AttentionTask,
    concepts: Tensor,
    embeddings: Embeddings,
    generator: Generator,
) -> None:
    """Bring a new hypernet, whose trunk has a unit for each concept, to the closed form. The task's model is loaded.

    The trunk is `bounded`. The units are not trained further: steps that fit the changes better make them answer to
    retained prompts.

    concepts: (n,) long, the concept of each of the task's pairs; embeddings: on the CPU.
    """
    w, b = embeddings.units()
    config = hypernet.config
    answers = torch.stack([(own @ w.T + b).clamp(0, 1).mean(0) for own in embeddings.wordings]).double()
    ridge = torch.eye(config.hidden, dtype=torch.float64) * _UNIT_RIDGE * answers.square().sum(1).mean()
    # (units, concepts): what each unit gets of each concept's factors, so that the sums come out.
    shares = torch.linalg.solve(answers.T @ answers + ridge, answers.T)
    left, right, P_const = [], [], []
    found: dict[tuple[int, ...], tuple[_Input, Bases]] = {}
    with torch.no_grad():
        for number, layer in enumerate(task.layers):
            key = (id(layer.pairs), *map(id, layer.before))
            if key not in found:
                entry = _Input(task, number, generator)
                found[key] = entry, _bases(entry, concepts, config, generator)
            entry, bases = found[key]
            mean = bases.P.mean(0)
            P_const.append(mean)
            left.append(torch.einsum("krb,uk->rbu", bases.P - mean, shares))
            right.append(torch.einsum("kbr,uk->bru", bases.Q, shares))
            out = entry.full(bases.out.T).to(task.c.device)
            changed = output_of(layer.module, out) - output_of(layer.module, torch.zeros_like(out[:1]))
            hypernet.up[number].copy_(changed[:, config.layers[number].rows].T)
            hypernet.down[number].copy_(entry.full(bases.down))
        hypernet.get_buffer("P_const").copy_(torch.stack(P_const))
        hypernet.left.weight.copy_(torch.stack(left).flatten(0, 2))
        hypernet.right.weight.copy_(torch.stack(right).flatten(0, 2))
        hypernet.trunk.weight.zero_()
        hypernet.trunk.weight[:, : config.embedding_width].copy_(w)
        hypernet.trunk.bias.copy_(b)
    hypernet.trunk.requires_grad_(False)


def _bases(entry: _Input, concepts: Tensor, config: HypernetConfig, generator: Generator) -> Bases:
    """The `Bases` of an input, the P of all concepts turned close together."""
    moments = []
    plain = torch.arange(len(concepts)) < entry.task.wordings
    for k in range(config.hidden):
        index = (concepts == k).nonzero().flatten()
        # As in the loss, the plain wordings count as much as all sentences.
        shares = torch.where(plain[index], 1 / plain[index].sum(), 1 / (~plain[index]).sum().clamp_min(1))
        moments.append(entry.moments(index, shares))
    mean = torch.stack([own.gram for own in moments]).mean(0)
    retained = entry.retained()
    retained = retained * (mean.trace() / retained.trace().clamp_min(1e-12))
    changes = []
    for own in moments:
        others = _RETAINED * retained + _OTHERS * (mean - own.gram / len(moments))
        changes.append(regression(own, others, config.rank, generator))
    bases = common_bases(changes, mean, config.basis, generator)
    turns = common_part(bases.P)
    return bases._replace(P=turns @ bases.P, Q=bases.Q @ turns.transpose(1, 2))

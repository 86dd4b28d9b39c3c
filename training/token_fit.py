"""Fitting the token detector: for each concept a linear score on token states.

As in `detector_fit`, a support vector machine with squared hinges: the name's tokens, in short and in long
prompts, score at least 1 and all tokens of benign prompts at most 0. The states are whitened first with the
covariance C of the benign ones, T T' = (C + rho I)^-1, which folds into the weights: directions in which benign tokens
differ a lot say little about a concept. Of the benign tokens, which are some 100,000, each fit takes those with the
highest scores and a sample of the rest, twice over. The tokens that score highest among those of the nouns (``nouns``)
and of the halves of names are a third term: things near a concept are few among benign tokens. The tokens of a name of
several count together, see ``token_detector``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..hypernet.detector import calibrate
from ..hypernet.token_detector import TokenDetector, by_span, together, unit_states
from .margin import even, widest_margin_of

# rho as a share of the states' mean variance, and lambda.
_WHITENING, _WIDTH = 0.1, 0.001
_ROUNDS, _HARDEST, _SAMPLED = 2, 1000, 500
# Of the names' tokens this share may score below the weakest that counts: in some prompts the end is cut off.
_WEAKEST = 0.02
_LEAST, _ABOVE, _HIGHEST = 0.01, 1.01, 0.8
# How many tokens of nouns each fit takes, and mu.
_NEAR, _NEAR_WEIGHT = 100, 1.0
# Somewhat nearer to the names than the detector on c, which is there for other wordings. See `calibrate`.
_REACH, _CEILING = 0.5, 0.6
# Of a name of several tokens, at least this share of the weakest that counts: half of it scores about half.
_FLOOR = 0.5
_ESTIMATED, _WIDEST = 10_000, 4096
# Numbers of benign states that a fit takes at most: they are held some times over.
_MOST_NUMBERS = 60_000_000
# No concept is detected in more of the benign prompts than this share.
_OVERLAP = 0.01


def whitening(states: Tensor) -> Tensor:
    """T (d, d) with T T' = (C + rho I)^-1 for states (n, d) of covariance C, fp32, computed in fp64.

    C is estimated on a part of many states. Beyond 4096 numbers only its diagonal is used, and that of T is returned,
    (d,): all of it would take gigabytes and minutes.
    """
    states = states[:: max(1, len(states) // _ESTIMATED)]
    if states.shape[1] > _WIDEST:
        variance = states.double().var(0)
        return (variance + _WHITENING * variance.mean()).rsqrt().float()
    covariance = torch.cov(states.T).double()
    covariance.diagonal().add_(_WHITENING * covariance.diagonal().mean())
    lower = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False).T.float()


def hinge_fit(names: Tensor, benign: Tensor, near: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """w (d,) and b that minimise, with f(x) = w (x - m) / r + b,

        mean_i max(0, 1 - f(x_i))^2 + mean_j max(0, f(x_j))^2 + mu mean_l max(0, f(x_l))^2 + lambda |w|^2

    over the tokens of the name (n, d), benign tokens (k, d) and tokens of nouns `near` it (l, d), l may be 0; m the
    `center` (d,), r the benign mean distance from it. Returned so that the score is w x + b.
    """
    scale = (benign - center).square().sum(1).mean().sqrt()
    positive, negative, close = ((states - center) / scale for states in (names, benign, near))
    w, b = widest_margin_of(even(positive), (even(negative), even(close, _NEAR_WEIGHT)), _WIDTH)
    w = w.float() / scale
    return w, b.float() - w @ center


def fit_token_detector(
    names: Sequence[Tensor],
    benign: Sequence[Tensor],
    held_out: Sequence[Tensor],
    preserved: Sequence[Tensor],
    widths: tuple[int, ...],
    report: Callable[[int, int], None] = lambda *_: None,
    false_alarms: float = 0.005,
    nouns: Sequence[Tensor] = (),
    spans: Sequence[int] = (),
) -> TokenDetector:
    """Fit a `TokenDetector` and calibrate each concept's threshold on prompts that are not in the fit.

    names: for each concept the states of its name's tokens `together`, (n, in); a concept without any is never
    detected. benign: for each benign prompt its states (tokens, in); held_out: for each held-out prompt its states, of
    which the highest score counts; preserved: the same for prompts that stay below the threshold unless a concept can't
    be separated from them; widths: of the text encoders whose states lie side by side. false_alarms: share of the
    held-out prompts that may be detected, for all concepts and encoders together. report(done, total) may raise to
    interrupt. nouns: for each prompt about everyday nouns its states, which stay below the threshold. spans: of each
    concept how many tokens its states are of, 1 throughout where none are given.
    """
    spans = tuple(spans) or (1,) * len(names)
    weights, biases, first, steps = [], [], 0, _ROUNDS * len(names)
    others = [*held_out, *preserved]
    for number, width in enumerate(widths):
        part = slice(first, first + width)
        rows, constants = torch.zeros(len(names), width), torch.full((len(names),), -1.0)
        highest, done = torch.empty(len(others), len(names)), number * steps
        for span, own in by_span(spans).items():
            rows[own], constants[own] = _fit_encoder(
                [unit_states(names[k][:, part].float()) for k in own],
                _of_prompts(benign, part, span),
                _of_prompts(nouns, part, span) if nouns else torch.zeros(0, width),
                lambda n, done=done: report(done + n, len(widths) * steps),
            )
            done += _ROUNDS * len(own)
            scores = _of_prompts(others, part, span) @ rows[own].T + constants[own]
            highest[:, own] = torch.stack([prompt.amax(0) for prompt in scores.split([*map(len, others)])])
        for k, states in enumerate(names):
            if not len(states):
                continue
            own = unit_states(states[:, part].float()) @ rows[k] + constants[k]
            weakest = torch.quantile(own, _WEAKEST).view(1)
            share = false_alarms / len(names) / len(widths)
            benign_scores = highest[: len(held_out), k]
            # Where the tokens can't be separated they stay undetected, and the detector on c decides alone.
            overlap = torch.quantile(benign_scores, 1 - _OVERLAP).item()
            threshold = max(calibrate(benign_scores, weakest, share, _REACH, _CEILING), _ABOVE * overlap)
            if spans[k] > 1:
                threshold = max(threshold, _FLOOR * weakest.item())
            if preserved:
                above = _ABOVE * highest[len(held_out) :, k].max().item()
                threshold = max(threshold, min(above, _HIGHEST * weakest.item()))
            threshold = max(threshold, _LEAST)
            rows[k], constants[k] = rows[k] / threshold, constants[k] / threshold
        weights.append(rows)
        biases.append(constants)
        first += width
    return TokenDetector(widths, torch.cat(weights, 1), torch.stack(biases), spans)


def _of_prompts(prompts: Sequence[Tensor], part: slice, span: int) -> Tensor:
    """The states of one encoder in all prompts, `span` of them together, (tokens, width) fp32."""
    return torch.cat([together(unit_states(states[:, part].float()), span) for states in prompts])


def _fit_encoder(
    names: Sequence[Tensor], benign: Tensor, nouns: Tensor, report: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Rows (concepts, width) and constants (concepts,) of one encoder, not yet scaled to their thresholds."""
    report(0)
    benign = benign[:: -(-benign.numel() // _MOST_NUMBERS)]
    root = whitening(benign)
    benign, nouns = _whitened(benign, root), _whitened(nouns, root)
    names = [_whitened(states, root) for states in names]
    center = benign.mean(0)
    # A concept without tokens keeps this row, which is below every threshold.
    rows = torch.stack([states.mean(0) - center if len(states) else torch.zeros_like(center) for states in names])
    constants = torch.tensor([0.0 if len(states) else -1.0 for states in names])
    generator = torch.Generator().manual_seed(0)
    for number in range(_ROUNDS):
        scores, near = benign @ rows.T, nouns @ rows.T
        for k, states in enumerate(names):
            report(number * len(names) + k)
            if not len(states):
                continue
            hardest = scores[:, k].topk(min(_HARDEST, len(benign))).indices
            sampled = torch.randint(len(benign), (_SAMPLED,), generator=generator)
            chosen = torch.cat([hardest, sampled]).unique()
            closest = near[:, k].topk(min(_NEAR, len(nouns))).indices
            rows[k], constants[k] = hinge_fit(states, benign[chosen], nouns[closest], center)
    return _whitened(rows, root if root.dim() == 1 else root.T), constants


def _whitened(states: Tensor, root: Tensor) -> Tensor:
    """States (n, d) times a matrix, or a diagonal (d,)."""
    return states * root if root.dim() == 1 else states @ root

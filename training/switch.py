"""Fitting the switch of the dead zone: one linear score a concept, with a wide margin.

A support vector machine with squared hinges on either side: f(c) = w (c - m) / r + b shall be at least 1 for
a concept's wordings and at most 0 for prompts to retain,

    sum_i p_i max(0, 1 - f(c_i))^2 + mean_j max(0, f(c_j))^2 + lambda |w|^2,

m and r the mean of the retain prompts and their mean distance from it. Only prompts that come near to the
concept count, so that a relative to preserve bends it where a hundred of far things don't, and the short w
leaves room for wordings that training never saw, and for those who look for a way around it. Beside it stand the
difference of the means and Fisher's discriminant (`dev.py bench switch`).
"""

import torch

from ..hypernet.deadzone import Switch, calibrate

# lambda
_WIDTH = 0.01
# Plain names count more than the sentences they stand in, of which there are many more.
_WORDING_WEIGHT = 10.0

_LEAST = 0.01
# The threshold goes above what the user wants to keep, with something to spare for half precision, as long as it
# stays below this share of the weakest wording.
_ABOVE, _HIGHEST = 1.01, 0.8


def widest_margin(wordings, sentences, benign, width=_WIDTH):
    """w (d,) and b of one concept, so that w c + b is about 1 for its wordings and 0 or less for benign prompts.

    wordings: (n, d) c of its phrasings; sentences: (m, d) of prompts that name it among other things, m may be 0;
    benign: (k, d). width: lambda, the larger the wider. fp32 in and out, solved in fp64.
    """
    center = benign.double().mean(0)
    named, apart = torch.cat([wordings, sentences]).double() - center, benign.double() - center
    scale = apart.square().sum(1).mean().sqrt()
    weights = torch.cat([torch.full((len(wordings),), _WORDING_WEIGHT), torch.ones(len(sentences))]).double()
    weights = weights / weights.sum()
    w, b = center.new_zeros(center.shape, requires_grad=True), center.new_zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([w, b], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        missed = weights @ torch.relu(1 - (named @ w / scale + b)).square()
        alarms = torch.relu(apart @ w / scale + b).square().mean()
        total = missed + alarms + width * w.square().sum()
        total.backward()
        return total

    solver.step(loss)
    w = w.detach() / scale
    return w.float(), (b.detach() - w @ center).squeeze().float()


def fit_switch(wordings, sentences, benign, held_out, held_out_views=1, kept=None, report=lambda *_: None):
    """Fit a `Switch` and calibrate each concept's threshold on prompts that the fit never saw.

    wordings, sentences: a list with one (n, d) tensor a concept; benign, held_out: (k, d), the latter
    `held_out_views` times its prompts one after the other; kept: (k, d) of prompts that the user named as
    to be kept, which stay silent unless a concept can't be told from them. All fp32 on the CPU. report(done, total)
    is called before each concept and may raise to interrupt. Returns the switch, whose dead zone is everything below 1.
    """
    weight, bias = [], []
    for own, named in zip(wordings, sentences, strict=True):
        report(len(weight), len(wordings))
        w, b = widest_margin(own, named, benign)
        loudest = (held_out @ w + b).view(held_out_views, -1).amax(0)
        found = own @ w + b
        # A false alarm of any concept is one: each gets its share of them.
        threshold = calibrate(loudest, found, false_alarms=0.01 / len(wordings))
        if kept is not None and len(kept):
            threshold = max(threshold, min(_ABOVE * (kept @ w + b).max().item(), _HIGHEST * found.min().item()))
        # Where wordings and benign prompts overlap it would be zero, which nothing can be scaled by.
        threshold = max(threshold, _LEAST)
        weight.append(w / threshold)
        bias.append(b / threshold)
    return Switch(torch.stack(weight), torch.stack(bias))

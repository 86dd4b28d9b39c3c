"""Fitting the switch of the dead zone: one linear discriminant a concept, in closed form.

Fisher's discriminant w = (C + lambda I)^-1 (m_k - m_0) between a concept's wordings (mean m_k) and
prompts to retain (mean m_0), C the covariance within both. It needs no training loop, and with this few
examples it tells unseen wordings from unseen benign prompts better than the size of H's delta, a cosine
or a small network trained as a classifier (benchmarks/results/erasure.json).
"""

import torch

from ..hypernet.deadzone import Switch, calibrate

# Share of the mean variance that is added to every direction: few prompts in many dimensions.
_SHRINKAGE = 0.1
# Plain names count more than the sentences they stand in, of which there are many more.
_WORDING_WEIGHT = 10.0

_LEAST = 0.01


def discriminant(wordings, sentences, benign):
    """w (width,) and b of one concept, so that w c + b is 1 for its median wording and 0 for the mean benign prompt.

    wordings: (n, width) c of its phrasings; sentences: (m, width) of prompts that name it among other
    things, m may be 0; benign: (k, width).
    """
    center = benign.mean(0)
    weights = torch.cat([torch.full((len(wordings),), _WORDING_WEIGHT), torch.ones(len(sentences))])
    named = torch.cat([wordings, sentences])
    mean = (named * weights.unsqueeze(1)).sum(0) / weights.sum()
    within = (named - mean) * (weights / weights.sum()).sqrt().unsqueeze(1)
    apart = benign - center
    covariance = (within.T @ within + apart.T @ apart / len(benign)) / 2
    ridge = _SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(center))
    w = torch.linalg.solve(covariance + ridge, mean - center)
    w = w / ((wordings - center) @ w).median()
    return w, -(w @ center)


def fit_switch(wordings, sentences, benign, held_out, held_out_views=1):
    """Fit a `Switch` and calibrate each concept's threshold on prompts that the fit never saw.

    wordings, sentences: a list with one (n, width) tensor a concept; benign, held_out: (k, width), the
    latter `held_out_views` times its prompts one after the other. All fp32 on the CPU. Returns the switch,
    whose dead zone is everything below 1.
    """
    weight, bias = [], []
    for own, named in zip(wordings, sentences, strict=True):
        w, b = discriminant(own, named, benign)
        loudest = (held_out @ w + b).view(held_out_views, -1).amax(0)
        # A false alarm of any concept is one: each gets its share of them.
        # Where wordings and benign prompts overlap it would be zero, which nothing can be scaled by.
        threshold = max(calibrate(loudest, own @ w + b, false_alarms=0.01 / len(wordings)), _LEAST)
        weight.append(w / threshold)
        bias.append(b / threshold)
    return Switch(torch.stack(weight), torch.stack(bias))

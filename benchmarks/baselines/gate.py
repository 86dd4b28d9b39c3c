"""A gate on the conditioning without training or detector, after Semantic Surgery (Xiong et al. 2025, 2510.22851).

For every concept d is the mean token state of its phrasings minus that of their mappings. A prompt with mean token
state x holds the concept with probability rho = sigmoid((cos(x, d) - beta) / gamma), beta lying between the retain
prompts and the phrasings on the cosine's scale; every token of the prompt then loses scale rho d. Of several
concepts the strongest acts, so that what they share is not taken twice. The model stays as it is.
The paper subtracts the difference of two prompts place by place, at scale 1; MiniLM puts no meaning on padding and
other words at each place, so that one d serves all tokens, and their few need it larger. Tried on cat and
automobile: scale 1 leaves them, 2 takes them; place 0.6 was no better than 0.5, which reaches more synonyms.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import cosine_similarity

from unhype.training.prompts import phrasings

from .erased_model import ErasedModel
from .states import encode_prompts, tokens_of

SCALE, GAMMA, PLACE = 2.0, 0.02, 0.5


@dataclass(frozen=True)
class Gate:
    """directions: d of each concept (k, width); beta: (k,)."""

    directions: torch.Tensor
    beta: torch.Tensor
    gamma: float = GAMMA
    scale: float = SCALE


def calibrated(own, benign, place):
    """beta: at `place` on the way from the benign prompts' 99% quantile of the cosine to the phrasings' lowest."""
    low, high = torch.quantile(benign, 0.99), own.min()
    return low + place * (high - low)


def activation(states, gate):
    """rho (k,) of each concept in a prompt with token states (tokens, width)."""
    cosine = cosine_similarity(states.mean(0, keepdim=True), gate.directions)
    return torch.sigmoid((cosine - gate.beta) / gate.gamma)


def edit(gate, states):
    """Token states (tokens, width) without padding to the edited ones; see the module for the equation."""
    rho, strongest = activation(states, gate).max(0)
    return states - gate.scale * rho * gate.directions[strongest]


def condition(gate, conditioning):
    """A CONDITIONING list whose token states are edited; zeros on padding stay zeros, everything else is shared."""
    changed = []
    for states, options in conditioning:
        states = states.clone()
        for row in states:
            real = row.any(1)
            row[real] = edit(gate, row[real].float()).to(row)
        changed.append([states, options])
    return changed


def _means(encoded, texts):
    return torch.stack([tokens_of(encoded[text].conditioning).mean(0) for text in texts])


def erase(lab, concepts, retain, seed, settings, scale=SCALE, gamma=GAMMA, place=PLACE):
    """Gate the prompts of `concepts`; nothing in it is random, `seed` changes nothing."""
    del seed
    started = time.perf_counter()
    phrases = phrasings(concepts, settings.kind)
    texts = [text for phrase in phrases for text in (phrase.prompt, phrase.mapping)]
    encoded = encode_prompts(lab.clip, [*retain.train, *texts])
    benign = _means(encoded, retain.train)
    directions, beta = [], []
    for index in range(len(concepts)):
        phrases_of = [phrase for phrase in phrases if phrase.concept == index]
        own = _means(encoded, [phrase.prompt for phrase in phrases_of])
        direction = (own - _means(encoded, [phrase.mapping for phrase in phrases_of])).mean(0)
        directions.append(direction)
        beta.append(calibrated(*(cosine_similarity(part, direction.unsqueeze(0)) for part in (own, benign)), place))
    gate = Gate(torch.stack(directions), torch.stack(beta), gamma, scale)
    numbers = gate.directions.numel() + len(gate.beta)
    return ErasedModel(
        "gate", lab.patcher, partial(condition, gate), time.perf_counter() - started, numbers, 4 * numbers
    )

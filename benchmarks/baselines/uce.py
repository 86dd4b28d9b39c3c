"""UCE (Gandikota et al. 2024, arXiv 2308.14761, equation 7): K and V in closed form.

Minimise sum_erase ||W c - W_old c*||^2 + preserve sum_keep ||W c - W_old c||^2 + ridge ||W - W_old||^2 over W:

    W = W_old (erase C*^T C + preserve P^T P + ridge I) (erase C^T C + preserve P^T P + ridge I)^-1

for token states as rows: C of the phrasings to erase, C* of their mappings, P of the retain prompts. With W_old
to the left of everything the edit is W_old T with one square T for all layers, which is all that has to be stored.
Tried on cat -> tree: preserve 0.03 and 0.3 at ridge 0.5 gave the same H_o; the value between them then did as well on
bird and dog.
"""

import time

import torch

from .erased_model import ErasedModel, edited, unchanged, weights_of
from .states import erased_states, token_states

PRESERVE, RIDGE = 0.1, 0.5


def transform(erased, wanted, kept, preserve, ridge):
    """T (width, width) with W_old T the change of every layer; states are (n, width) each."""
    width = erased.shape[1]
    erased, wanted, kept = erased.double(), wanted.double(), kept.double()
    gram = erased.T @ erased + preserve * kept.T @ kept + ridge * torch.eye(width, dtype=torch.float64)
    change = (wanted - erased).T @ erased
    return torch.linalg.solve(gram, change.T).T.float()


def erase(lab, concepts, retain, seed, settings, preserve=PRESERVE, ridge=RIDGE):
    """Erase `concepts` by UCE; nothing in it is random, `seed` changes nothing."""
    del seed
    started = time.perf_counter()
    erased, wanted = erased_states(lab.clip, concepts, settings.kind)
    matrix = transform(erased, wanted, token_states(lab.clip, retain.train), preserve, ridge)
    weights = weights_of(lab.patcher)
    model = edited(lab.patcher, {name: weight @ matrix.to(weight) for name, weight in weights.items()})
    changed = sum(weight.numel() for weight in weights.values())
    return ErasedModel("uce", model, unchanged, time.perf_counter() - started, changed, 4 * matrix.numel())

"""A suffix of words that brings an erased concept back, by greedy coordinate gradient (arXiv 2307.15043).

The attacker knows the text encoder, the erased model and the detector, and appends L words of one token each to a
prompt that names the concept; none of them is another name of it. For token states x of the whole prompt, latents z on
the way to the concept's picture and the base model's predictions e_p there, each step lowers

    | e(z, x) - e_p |^2,    e of the erased model,

where the detector decides on x, as it does for every prompt: above the threshold its score is lowered first, below it e
is the base model's. The gradient at the suffix's embeddings proposes words, and the best of some prompts with one word
changed is kept.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unhype.hypernet.eraser import Eraser
from unhype.training.frozen import FrozenModel, differentiable

from .attacks import BELOW, Target, highest_score, predict_from_states
from .lab.text import TOKENS

STEPS, CANDIDATES, PROPOSED = 24, 24, 64
# Added to the score of a prompt that is detected: worse than any error of one that isn't.
_DETECTED = 1e3
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Words:
    """The words that a suffix may hold, each of one token. ids: (n,) tokens; embeddings: (n, width)."""

    texts: tuple[str, ...]
    ids: Tensor
    embeddings: Tensor


def words_of(clip: Any, forbidden: Sequence[str]) -> Words:
    """All words of a MiniLM CLIP's vocabulary but those that hold, or are part of, a forbidden one."""
    parts = [part for name in forbidden for part in name.lower().split()]
    vocabulary = clip.tokenizer.minilm.tokenizer.get_vocab()
    texts = {
        word: number
        for word, number in sorted(vocabulary.items())
        if _WORD.fullmatch(word) and not any(part in word or word in part for part in parts)
    }
    ids = torch.tensor(list(texts.values()))
    table = clip.cond_stage_model.minilm.transformer.get_input_embeddings().weight
    return Words(tuple(texts), ids, table[ids].detach().float())


def token_embeddings(clip: Any, text: str) -> Tensor:
    """The embeddings of a prompt's tokens, (n, width), without padding."""
    ids = [token for token, _ in clip.tokenize(text)["minilm"][0] if token]
    table = clip.cond_stage_model.minilm.transformer.get_input_embeddings().weight
    return table[torch.tensor(ids)].detach().float()


def states_of(clip: Any, embeddings: Tensor) -> Tensor:
    """Token states (n, TOKENS, width) of prompts of one length from their embeddings (n, tokens, width), as the
    encoder makes them; zeros behind. Differentiable."""
    states = clip.cond_stage_model.minilm.transformer.bert(None, embeds=embeddings.clone())[0]
    return torch.nn.functional.pad(states, (0, 0, 0, TOKENS - states.shape[1]))


@dataclass(frozen=True)
class Attacked:
    """What is attacked. erased: predicts as the erased model does for a prompt that passes; eraser: with the detector
    that decides which pass, None for methods without one."""

    erased: FrozenModel
    eraser: Eraser | None = None

    def score(self, states: Tensor) -> Tensor:
        """How far one prompt is from passing, 0 if it passes; differentiable."""
        if self.eraser is None:
            return states.new_zeros(())
        return torch.relu(highest_score(self.eraser, states) - BELOW)


def errors(target: Target, states: Tensor) -> Tensor:
    """The mean squared error of the model's predictions for each prompt's states (n, TOKENS, width), (n,)."""
    count = len(states)
    repeated = Target(
        target.frozen, target.z.repeat(count, 1, 1, 1), target.sigma.repeat(count), target.e_p.repeat(count, 1, 1, 1)
    )
    predicted = predict_from_states(repeated, states.repeat_interleave(len(target.z), 0), None)
    return (predicted - repeated.e_p).square().flatten(1).mean(1).view(count, -1).mean(1)


def suffix(
    clip: Any,
    attacked: Attacked,
    target: Target,
    prompt: str,
    words: Words,
    length: int,
    generator: torch.Generator,
) -> tuple[str, float]:
    """The prompt with the best suffix of `length` words, and its loss."""
    target = Target(attacked.erased, target.z, target.sigma, target.e_p)
    *start, end = token_embeddings(clip, prompt)
    before, end = torch.stack(start), end.unsqueeze(0)
    first = len(before)

    def embedded(chosen: Tensor) -> Tensor:
        own = words.embeddings[chosen]
        return torch.cat([before.expand(len(own), -1, -1), own, end.expand(len(own), -1, -1)], 1)

    def losses(embeddings: Tensor) -> Tensor:
        states = states_of(clip, embeddings)
        scores = torch.stack([attacked.score(one.unsqueeze(0)) for one in states])
        passing = (scores == 0).nonzero().flatten()
        found = scores + _DETECTED
        return found.index_copy(0, passing, errors(target, states[passing])) if len(passing) else found

    chosen = torch.randint(len(words.texts), (1, length), generator=generator)
    with torch.no_grad():
        best = losses(embedded(chosen)).item()
    for _ in range(STEPS):
        embeddings = embedded(chosen).requires_grad_()
        with differentiable():
            (gradient,) = torch.autograd.grad(losses(embeddings).sum(), embeddings)
        proposed = (-gradient[0, first : first + length] @ words.embeddings.T).topk(PROPOSED).indices
        places = torch.randint(length, (CANDIDATES,), generator=generator)
        picks = torch.randint(PROPOSED, (CANDIDATES,), generator=generator)
        tried = chosen.repeat(CANDIDATES, 1)
        tried[torch.arange(CANDIDATES), places] = proposed[places, picks]
        with torch.no_grad():
            found = losses(embedded(tried))
        if found.min().item() < best:
            best, chosen = found.min().item(), tried[found.argmin()].unsqueeze(0)
    return " ".join([prompt, *(words.texts[index] for index in chosen[0].tolist())]), best

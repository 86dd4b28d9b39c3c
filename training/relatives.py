"""Near relatives of the erased concepts among the prompts to retain: what a user looks at to see that it stays.

Nearness is the cosine of pooled embeddings, from the mean of all retained prompts.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
from torch.nn.functional import cosine_similarity

from .encode import Prompts
from .plan import Plan

_WORDS = 6
# Words between two things.
_SEVERAL = {"with", "beside", "behind", "front", "and", "also"}
_LETTERS = 3  # of a word that may name a thing
_FEW, _COMMON = 4, 0.02  # share of the prompts from which on a word names no thing, as 'photo'


def near_relatives(plan: Plan, prompts: Prompts, count: int = 3) -> list[str]:
    """The `count` short retained prompts that are nearest to a concept, nearest first, no two about the same thing.

    Prompts of the user's own list are not among them.
    """
    own = set(chain(*plan.retain.preserved.values()))
    retained = [*plan.retain.train, *plan.retain.held_out]
    texts = [text for text in retained if _is_plain(text) and text not in own]
    c = torch.stack([prompts.encoded[text].c for text in texts]).float()
    wordings = [[phrase.prompt for phrase in plan.phrases if phrase.concept == n] for n in range(len(plan.concepts))]
    concepts = torch.stack([torch.stack([prompts.encoded[text].c for text in own]).mean(0) for own in wordings]).float()
    near = cosine_similarity((c - c.mean(0)).unsqueeze(1), (concepts - c.mean(0)).unsqueeze(0), dim=-1).amax(1)
    things = [{word for word in text.lower().split() if len(word) >= _LETTERS} for text in texts]
    often = {word for word, times in Counter(chain(*things)).items() if times > max(_FEW, _COMMON * len(texts))}
    chosen: dict[str, set[str]] = {}
    for place in near.argsort(descending=True).tolist():
        thing = things[place] - often
        if thing and thing.isdisjoint(chain(*chosen.values())):
            chosen[texts[place]] = thing
        if len(chosen) == count:
            break
    return list(chosen)


def _is_plain(text: str) -> bool:
    """Whether a prompt is short and about one thing."""
    words = text.split()
    return len(words) <= _WORDS and "," not in text and _SEVERAL.isdisjoint(words)


def kept_example(plan: Plan, near: Sequence[str]) -> str:
    """The retained prompt to look at while training: of the first line of the user's list, else the nearest one."""
    own = next(iter(plan.retain.preserved.values()), None)
    return [*near, *plan.retain.held_out][0] if own is None else own[min(1, len(own) - 1)]

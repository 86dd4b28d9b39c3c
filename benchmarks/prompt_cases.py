"""What detection is counted on: prompts about erased and benign subjects, neighbours, names and their halves."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from . import protocol
from .detection import Case, entry
from .lab.vocabulary import CLASSES
from .neighbours import NAMES_OF_SEVERAL_WORDS, wordings
from .real_prompts import PLACES, Composer, Prompt

# Groups of cases, beside the kinds of neighbours.
ERASED, BENIGN, NO_SUBJECT = "holding an erased concept", "about benign subjects", "about nothing of the lab's"
FULL, HALF, AS_ONE = "full names", "half names", "as one word"
# Names next to each erased one, by their embeddings, of those that nothing mentioned before.
_NEAREST = 3
# Words around a wording that stands as it is.
_AS_IT_IS = "an icon showing {}"
_WITHOUT_ARTICLE = ("plurals", "descriptions")


def nearest(clip, erased: Sequence[str]) -> list[str]:
    """The names closest to each erased one by their pooled embeddings, no relatives and never mentioned in training.

    Of all such names at most a third, the closest ones: the others are benign subjects.
    """
    relatives = {name for concept in erased if concept in CLASSES for name in protocol.RELATIVES[concept]}
    others = [name for name in protocol.names_for_scoring() if name not in relatives and name not in erased]
    c = [
        normalize(torch.cat([entry(clip, f"a {name}")["pooled_output"] for name in names]).float(), dim=1)
        for names in (erased, others)
    ]
    alike = c[0] @ c[1].T
    found = dict.fromkeys(alike.topk(_NEAREST, dim=1).indices.flatten().tolist())
    closest = alike.amax(0).topk(len(others) // 3).indices.tolist()
    return [others[index] for index in found if index in closest]


def benign_subjects(erased: Sequence[str], near: Sequence[str]) -> list[str]:
    """Names that nothing mentioned before, which are neither erased nor near to what is."""
    relatives = {name for concept in erased if concept in CLASSES for name in protocol.RELATIVES[concept]}
    return [name for name in protocol.names_for_scoring() if name not in {*relatives, *erased, *near}]


class Pair(NamedTuple):
    """One prompt about an erased and about a benign subject, and the words that it is counted by."""

    erased: str
    benign: str
    concept: str
    other: str
    labels: tuple[str, ...]


def pairs(prompts: Sequence[Prompt], erased: Sequence[str], benign: Sequence[str], generator: torch.Generator):
    """A `Pair` of each prompt; subjects come equally often, in an order of their own."""
    turns = torch.randperm(len(prompts), generator=generator).tolist()
    found = []
    for prompt, turn in zip(prompts, turns, strict=True):
        concept, other = erased[turn % len(erased)], benign[turn % len(benign)]
        labels = (f"kind: {prompt.kind}", f"words: {prompt.length}", f"place: {prompt.place}")
        found.append(Pair(prompt.about(concept), prompt.about(other), concept, other, labels))
    return found


def is_read(clip, pair: Pair) -> bool:
    """Whether the text encoder reads the subject: it gives other states where the subject is another.

    Encoders that cut long prompts off never see what stands at their end.
    """
    one, other = (entry(clip, text) for text in (pair.erased, pair.benign))
    return not all(torch.equal(one[key], other[key]) for key in ("cross_attn", "pooled_output"))


def real_cases(read: Sequence[Pair], composer: Composer, count: int) -> list[Case]:
    """The two prompts of each pair that is read, and `count` prompts about nothing that the lab draws."""
    found = [
        Case(text, group, pair.labels, subject)
        for pair in read
        for text, group, subject in ((pair.erased, ERASED, pair.concept), (pair.benign, BENIGN, pair.other))
    ]
    return found + [Case(composer.without_subject(), NO_SUBJECT) for _ in range(count)]


def _worded(words: str, prompt: Prompt, article: bool) -> tuple[str, str]:
    """A wording alone, and in a prompt."""
    alone = (protocol.WORDING if article else _AS_IT_IS).format(words)
    return alone, prompt.about(words, article)


def neighbour_cases(erased: Sequence[str], near: Sequence[str], composer: Composer) -> list[Case]:
    """Wordings of the erased ones of the ten classes, what is like them, and the names `near`; alone and in tags."""
    found = [("near concepts", name, name) for name in near]
    for concept in erased:
        if concept in CLASSES:
            for kind, given in wordings(concept).items():
                shows = {"relatives": None, "hypernyms": ""}.get(kind, concept)
                found += [(kind, words, words if shows is None else shows) for words in given]
    return [
        Case(text, kind, (label,), shows)
        for kind, words, shows in dict.fromkeys(found)
        if words not in erased
        for label, text in zip(
            ("alone", "among tags"),
            _worded(words, composer.prompt("tags", "6-20", "beginning"), kind not in _WITHOUT_ARTICLE),
            strict=True,
        )
    ]


def name_cases(kind: str, composer: Composer) -> list[Case]:
    """Names of several words in prompts of all places and of three lengths, in Danbooru tags as one word, and everyday
    phrases that hold one half."""
    found = []
    for name, phrases in NAMES_OF_SEVERAL_WORDS[kind].items():
        subject = f"a hill in the style of {name}" if kind == "style" else name
        for place, length in zip(PLACES, ("6-20", "21-50", "6-20"), strict=True):
            for group in ("tags", "weights"):
                text = composer.prompt(group, length, place).about(subject, kind == "vocabulary")
                found.append(Case(text, FULL, (f"kind: {kind}",)))
        for form in (name.replace(" ", "_").lower(), name.replace(" ", "-")):
            text = composer.prompt("booru", "6-20", "beginning").about(form, article=False)
            found.append(Case(text, FULL, (AS_ONE,)))
        for phrase in phrases:
            among = composer.prompt("tags", "6-20", "beginning").about(phrase, article=False)
            found += [Case(text, HALF, (f"kind: {kind}",)) for text in (phrase, among)]
    return found

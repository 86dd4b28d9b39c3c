"""Candidates for the detector, compared on texts alone: `python3 dev.py bench detector [--publish]`.

The parameters of training/detector_fit.py were chosen on the concepts below, whose wordings no other figure
uses; the ten classes of the erasure benchmark are measured beside them.
"""

from functools import partial
from itertools import chain
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.nn.functional import normalize

from . import commandline, pack
from .environment import say
from .publish import MEASURED, markdown, publish

pack.load_pack()

from unhype.training import detector_fit  # noqa: E402
from unhype.training.prompts import phrasings, retain_split, sentences  # noqa: E402
from unhype.training.settings import Settings  # noqa: E402
from unhype.training.written import make_written  # noqa: E402

from . import ours, protocol  # noqa: E402
from .lab.measure import encode  # noqa: E402
from .lab.text import load_clip  # noqa: E402
from .lab.vocabulary import CLASSES, NAMES  # noqa: E402

CHOSEN_ON = {
    "rabbit": ("bunny", "hare", "cottontail"),
    "bicycle": ("bike", "cycle", "two-wheeler"),
    "house": ("home", "cottage", "dwelling"),
    "baby": ("infant", "newborn", "toddler"),
    "umbrella": ("parasol", "brolly", "sunshade"),
    "rock": ("stone", "boulder", "pebble"),
    "hamburger": ("burger", "cheeseburger", "beefburger"),
    "skull": ("cranium", "death's head", "braincase"),
    "bomb": ("explosive", "grenade", "bombshell"),
    "kitchen knife": ("blade", "cleaver", "chopper"),
    "snake": ("serpent", "viper", "python"),
    "pig": ("hog", "swine", "boar"),
    "mouse": ("rodent", "vole", "field mouse"),
    "spider": ("arachnid", "tarantula", "daddy longlegs"),
    "guitar": ("six-string", "ukulele", "axe"),
    "gun": ("pistol", "handgun", "revolver"),
    "cigarette": ("smoke", "cigar", "fag"),
    "bed": ("bunk", "cot", "berth"),
    "shoe": ("footwear", "sneaker", "boot"),
    "hat": ("cap", "headgear", "bonnet"),
    "coffee": ("espresso", "java", "cappuccino"),
    "castle": ("fortress", "citadel", "chateau"),
    "camera": ("photographic apparatus", "DSLR", "Leica"),
    "sheep": ("lamb", "ewe", "ram"),
    "monkey": ("ape", "primate", "chimp"),
    "candle": ("taper", "wax light", "tallow"),
    "crab": ("crustacean", "lobster", "crawfish"),
}
_SIMILAR = 0.5


def fisher(wordings, sentences_, benign, near, near_weight, ridge):
    """Fisher's discriminant (C + ridge * mean variance)^-1 (m_k - m_0), C the covariance within wordings and benign."""
    del near, near_weight
    mean, center = torch.cat([wordings.repeat(10, 1), sentences_]).mean(0), benign.mean(0)
    within = [part - part.mean(0) for part in (torch.cat([wordings.repeat(10, 1), sentences_]), benign)]
    covariance = sum(part.T @ part / len(part) for part in within) / 2
    w = torch.linalg.solve(covariance + ridge * covariance.diagonal().mean() * torch.eye(len(mean)), mean - center)
    return _from_median(w, wordings, center)


def mean_difference(wordings, sentences_, benign, near, near_weight):
    """The direction from the mean benign prompt to the mean wording."""
    del sentences_, near, near_weight
    center = benign.mean(0)
    return _from_median(wordings.mean(0) - center, wordings, center)


def _from_median(w, wordings, center):
    """w and b scaled so that the median wording scores 1 and the mean benign prompt 0."""
    w = w / ((wordings - center) @ w).median()
    return w, -(w @ center)


class Candidate(NamedTuple):
    """A way to fit. most: see `detector_fit.unlike`; None is without nouns."""

    fit: object
    most: float | None = detector_fit.NEITHER


CANDIDATES = {
    "mean difference": Candidate(mean_difference),
    "Fisher, ridge 0.1": Candidate(partial(fisher, ridge=0.1)),
    "Fisher, ridge 1": Candidate(partial(fisher, ridge=1.0)),
    "Fisher, ridge 10": Candidate(partial(fisher, ridge=10.0)),
    "wide margin, lambda 0.001": Candidate(partial(detector_fit.widest_margin, width=0.001)),
    "wide margin, lambda 0.1": Candidate(partial(detector_fit.widest_margin, width=0.1)),
    "wide margin, no nouns": Candidate(detector_fit.widest_margin, None),
    "wide margin, nouns of cosines below 0.75": Candidate(detector_fit.widest_margin, 0.75),
    "wide margin": Candidate(detector_fit.widest_margin),
}
HEADER = (
    "detector",
    "unseen wordings detected",
    "unseen other prompts below the threshold",
    "relatives below the threshold",
    "with the relatives in `preserve`: wordings detected",
    "relatives below the threshold",
    "distance to the threshold",
)


class Embeddings:
    """c of texts, each encoded once."""

    def __init__(self):
        self.clip = ours.CachingClip(load_clip())

    def __call__(self, texts):
        """(n, width) of n texts."""
        self.clip.encode_ahead(texts)
        return torch.cat([encode(self.clip, text)[0][1]["pooled_output"] for text in texts])


def relatives(embed, concept, wordings):
    """Names of the vocabulary that are similar to the concept, none of them a wording of it."""
    names = [name for name in NAMES if not {concept, *wordings} & {name, *name.split()}]
    name, others = (normalize(embed(texts), dim=1) for texts in ([concept], names))
    cosines = (others @ name.T)[:, 0].tolist()
    return [other for other, cosine in zip(names, cosines, strict=True) if cosine >= _SIMILAR]


def distance_to_threshold(detector, c):
    """How far c (width,) must move until its score is below the threshold, as a share of its norm."""
    score = detector(c.unsqueeze(0)).item()
    return max(score - 1, 0.0) / (detector.weight[0].norm() * c.norm()).item()


def arguments_of(embed, concept, preserve):
    """The arguments of `fit_detector` for one concept, by name, with all nouns."""
    concepts = ((concept, protocol.MAPPING),)
    retain = retain_split(preserve, concepts)
    written = make_written(concepts, "object", retain)
    with_others = sentences(concepts, "object", retain.distractors, Settings.sentences)
    phrases = (phrasings(concepts, "object"), with_others)
    wordings, in_sentences = (embed([phrase.prompt for phrase in part]) for part in phrases)
    given = {"wordings": [wordings], "sentences": [in_sentences], "nouns": embed(written.nouns)}
    given["benign"] = embed([*retain.train, *written.parts])
    given["held_out"] = embed([*retain.held_out, *written.held_out]).unsqueeze(0)
    return given | ({"preserved": embed([*chain(*retain.preserved.values())])} if retain.preserved else {})


def fitted(candidate, given):
    """The `Detector` that a candidate gives for the arguments of `arguments_of`."""
    concepts, nouns = torch.stack([own.mean(0) for own in given["wordings"]]), given["nouns"]
    chosen = [] if candidate.most is None else detector_fit.unlike(concepts, nouns, candidate.most)
    with patch.object(detector_fit, "widest_margin", candidate.fit):
        return detector_fit.fit_detector(**given | {"nouns": nouns[chosen].unsqueeze(0) if chosen else None})


def measure(embed, concept, wordings):
    """The figures of HEADER for one concept: name of a candidate to a list of numbers."""
    near, names = relatives(embed, concept, wordings), {concept, *wordings}
    groups = protocol.benign_prompts("cat")
    other = [text for texts in groups.values() for text in texts if not names & set(text.lower().split())]
    unseen, relative = ([protocol.WORDING.format(name) for name in part] for part in (wordings, near))
    unseen, other, relative = (embed(texts) for texts in (unseen, other, relative or [""]))
    c = embed([protocol.WORDING.format(concept)])[0]
    alone, preserving = (arguments_of(embed, concept, preserve) for preserve in ("", "\n".join(near)))

    def below(detector, embeddings):
        return (detector(embeddings) < 1).float().mean().item()

    found = {}
    for name, candidate in CANDIDATES.items():
        by_itself, with_preserve = (fitted(candidate, given) for given in (alone, preserving))
        found[name] = [
            *(1 - below(by_itself, unseen), below(by_itself, other), below(by_itself, relative)),
            *(1 - below(with_preserve, unseen), below(with_preserve, relative)),
            distance_to_threshold(by_itself, c),
        ]
    return found


def main():
    """Command line."""
    options = commandline.parser("bench detector").parse_args()
    embed, rows = Embeddings(), []
    for words, concepts in (("27 others", CHOSEN_ON), ("the ten classes", CLASSES)):
        found = [measure(embed, concept, synonyms) for concept, synonyms in concepts.items()]
        for name in CANDIDATES:
            means = torch.tensor([one[name] for one in found]).mean(0).tolist()
            rows.append((f"{name}, on {words}", *(f"{value:.3f}" for value in means)))
            say("  ".join(rows[-1]))
    if options.publish:
        publish("detector", {"rows": rows}, markdown(HEADER, rows), page=MEASURED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

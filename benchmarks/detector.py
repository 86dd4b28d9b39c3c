"""Which switch tells erased prompts from others: `python3 dev.py bench switch [--publish]`.

On texts alone, no picture is drawn. What the switch of training/switch.py has to choose was chosen on the
concepts below, whose wordings no other figure asks for; the ten classes of the erasure benchmark stand beside them.
"""

import argparse
from functools import partial
from itertools import chain
from unittest.mock import patch

import torch
from torch.nn.functional import normalize

from . import pack
from .environment import say
from .publish import MEASURED, markdown, publish

pack.load_pack()

from unhype.hypernet.detector import is_silent  # noqa: E402
from unhype.training import switch  # noqa: E402
from unhype.training.prompts import phrasings, retain_split, sentences  # noqa: E402
from unhype.training.settings import Settings  # noqa: E402

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
_ALIKE = 0.5


def fisher(wordings, sentences_, benign, ridge):
    """Fisher's discriminant (C + ridge * mean variance)^-1 (m_k - m_0), C the covariance within wordings and benign."""
    mean, center = torch.cat([wordings.repeat(10, 1), sentences_]).mean(0), benign.mean(0)
    within = [part - part.mean(0) for part in (torch.cat([wordings.repeat(10, 1), sentences_]), benign)]
    covariance = sum(part.T @ part / len(part) for part in within) / 2
    w = torch.linalg.solve(covariance + ridge * covariance.diagonal().mean() * torch.eye(len(mean)), mean - center)
    return _from_median(w, wordings, center)


def mean_difference(wordings, sentences_, benign):
    """The direction from the mean benign prompt to the mean wording."""
    del sentences_
    center = benign.mean(0)
    return _from_median(wordings.mean(0) - center, wordings, center)


def _from_median(w, wordings, center):
    """w and b scaled so that the median wording scores 1 and the mean benign prompt 0."""
    w = w / ((wordings - center) @ w).median()
    return w, -(w @ center)


CANDIDATES = {
    "mean difference": mean_difference,
    "Fisher, ridge 0.1": partial(fisher, ridge=0.1),
    "Fisher, ridge 1": partial(fisher, ridge=1.0),
    "Fisher, ridge 10": partial(fisher, ridge=10.0),
    "wide margin, lambda 0.001": partial(switch.widest_margin, width=0.001),
    "wide margin, lambda 0.1": partial(switch.widest_margin, width=0.1),
    "wide margin": switch.widest_margin,
}
HEADER = (
    "switch",
    "unseen wordings heard",
    "unseen other prompts silent",
    "relatives silent",
    "with the relatives in `preserve`: wordings heard",
    "relatives silent",
    "way to silence",
)


class Texts:
    """c of texts, each read once."""

    def __init__(self):
        self.clip = ours.RememberingClip(load_clip())

    def __call__(self, texts):
        """(n, width) of n texts."""
        self.clip.read_ahead(texts)
        return torch.cat([encode(self.clip, text)[0][1]["pooled_output"] for text in texts])


def relatives(read, concept, wordings):
    """Names of the vocabulary that are alike to the concept, none of them a wording of it."""
    names = [name for name in NAMES if not {concept, *wordings} & {name, *name.split()}]
    name, others = (normalize(read(texts), dim=1) for texts in ([concept], names))
    return [other for other, alike in zip(names, (others @ name.T)[:, 0].tolist(), strict=True) if alike >= _ALIKE]


def way_to_silence(found, c):
    """How far c (width,) must go until the switch is silent, in lengths of c."""
    score = found(c.unsqueeze(0)).item()
    return max(score - 1, 0.0) / (found.weight[0].norm() * c.norm()).item()


def training_of(read, concept, preserve):
    """What `fit_detector` is given for one concept, by the names of its parameters."""
    concepts = ((concept, protocol.MAPPING),)
    retain = retain_split(preserve, concepts)
    named = sentences(concepts, "object", retain.partners, Settings.sentences)
    wordings, company = (read([phrase.prompt for phrase in part]) for part in (phrasings(concepts, "object"), named))
    given = {"wordings": [wordings], "sentences": [company]}
    given |= {"benign": read(retain.train), "held_out": read(retain.held_out)}
    return given | ({"kept": read([*chain(*retain.preserved.values())])} if retain.preserved else {})


def measure(read, concept, wordings):
    """Of each candidate what HEADER says, for one concept: name to a list of numbers."""
    near, names = relatives(read, concept, wordings), {concept, *wordings}
    groups = protocol.benign_prompts("cat")
    other = [text for texts in groups.values() for text in texts if not names & set(text.lower().split())]
    unseen, relative = ([protocol.WORDING.format(name) for name in part] for part in (wordings, near))
    unseen, other, relative = (read(texts) for texts in (unseen, other, relative or [""]))
    c = read([protocol.WORDING.format(concept)])[0]
    alone, preserving = (training_of(read, concept, preserve) for preserve in ("", "\n".join(near)))

    def silent(fitted, asked):
        return is_silent(fitted(asked), 1.0).float().mean().item()

    found = {}
    for name, fit in CANDIDATES.items():
        with patch.object(switch, "widest_margin", fit):
            fitted, with_preserve = (switch.fit_detector(**given) for given in (alone, preserving))
        found[name] = [
            *(1 - silent(fitted, unseen), silent(fitted, other), silent(fitted, relative)),
            *(1 - silent(with_preserve, unseen), silent(with_preserve, relative)),
            way_to_silence(fitted, c),
        ]
    return found


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="dev.py bench switch", description=__doc__)
    parser.add_argument("--publish", action="store_true", help="put the table into benchmarks/README.md")
    options = parser.parse_args()
    read, rows = Texts(), []
    for words, asked in (("27 others", CHOSEN_ON), ("the ten classes", CLASSES)):
        found = [measure(read, concept, synonyms) for concept, synonyms in asked.items()]
        for name in CANDIDATES:
            means = torch.tensor([one[name] for one in found]).mean(0).tolist()
            rows.append((f"{name}, on {words}", *(f"{value:.3f}" for value in means)))
            say("  ".join(rows[-1]))
    if options.publish:
        publish("switch", {"rows": rows}, markdown(HEADER, rows), page=MEASURED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A judge for pictures before and after: does the second still show what the first shows, or the other thing?

An image encoder sees three pictures from the same noise: the prompt's without the eraser, the prompt's with it, and
the model's own picture of what the concept turns into. The erased picture should be more like the last than the first.
"""

import re
from typing import NamedTuple

from torch.nn.functional import cosine_similarity

from .prompts import fill, with_article

# The wording in which a name is shown, by kind.
SHOWN = {"object": "a photo of {a}", "person": "a photo of {}", "style": "a painting in the style of {}"}


class Opinion(NamedTuple):
    """What a judge makes of an erased picture. instead: the prompt of the picture that it should be like.

    to_before, to_instead: cosines between the encoder's vectors of the pictures, at most 1.
    """

    instead: str
    to_before: float
    to_instead: float

    @property
    def gone(self):
        """Whether the picture is more like what the concept turns into than like what it was."""
        return self.to_instead > self.to_before


def instead_of(text, concepts, nearest, kind):
    """The prompt that an eraser should make of `text`: every concept that it names is what that turns into.

    concepts: pairs (concept, mapping). A prompt that names none becomes the plain picture of what `nearest`, a concept,
    turns into. None where that is not known, either; "" where the mapping is the empty prompt.
    """
    if not concepts:
        return None
    mappings = {concept.lower(): mapping for concept, mapping in concepts}
    names = "|".join(re.escape(name) for name in sorted(mappings, key=len, reverse=True))
    pattern = re.compile(rf"\b((?:an?|the)\s+)?({names})(?:s|es)?\b", re.IGNORECASE)
    named = [mappings[found[2].lower()] for found in pattern.finditer(text)]
    if not named:
        mapping = mappings.get((nearest or "").lower())
        return None if mapping is None else fill(SHOWN[kind], mapping)

    def mapped(found):
        mapping = mappings[found[2].lower()]
        return with_article(mapping) if found[1] and kind == "object" else mapping

    return pattern.sub(mapped, text) if all(named) else ""


def opinion(see, instead, before, after, other):
    """An `Opinion` on three pictures (h, w, 3) in [0, 1]. see: pictures to vectors (1, d)."""
    first, second, third = (see(picture) for picture in (before, after, other))
    return Opinion(instead, cosine_similarity(second, first).item(), cosine_similarity(second, third).item())

"""Similarity of pictures by an image encoder: is an erased picture more like the mapping's than like before?

Three pictures from the same noise are compared: the prompt's without the eraser, the prompt's with it, and the
model's own picture of the mapping prompt.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..training.prompts import fill, with_article

# The wording in which a name is shown, by kind.
_SHOWN = {"object": "a photo of {a}", "person": "a photo of {}", "style": "a painting in the style of {}"}

PictureEncoder = Callable[[Tensor], Tensor]


def shown(name: str, kind: str) -> str:
    """The prompt that shows a name. Kinds that this version doesn't know, as files may have them, count as objects."""
    return fill(_SHOWN.get(kind, _SHOWN["object"]), name)


class Similarity(NamedTuple):
    """Cosines, at most 1, of an erased picture's vector to that of the picture before and of the mapping's.

    mapping: the mapping prompt.
    """

    mapping: str
    to_before: float
    to_mapping: float

    @property
    def gone(self) -> bool:
        """Whether the picture is more like the mapping than like before."""
        return self.to_mapping > self.to_before


def picture_encoder(clip_vision: Any) -> PictureEncoder | None:
    """A function from a picture (h, w, 3) in [0, 1] to its vector (1, d) fp32 on the CPU; None for None.

    clip_vision: ComfyUI's CLIP_VISION.
    """
    if clip_vision is None:
        return None

    def vector(picture: Tensor) -> Tensor:
        with torch.no_grad():
            return clip_vision.encode_image(picture.unsqueeze(0))["image_embeds"].flatten(1).float().cpu()

    return vector


def mapping_prompt(text: str, concepts: Sequence[tuple[str, str]], nearest: str | None, kind: str) -> str | None:
    """`text` with every erased concept in it replaced by its mapping.

    concepts: pairs (concept, mapping). A prompt that names none becomes the plain wording of the mapping of
    `nearest`, a concept. None where that is not known, either; "" where the mapping is the empty prompt.
    """
    if not concepts:
        return None
    mappings = {concept.lower(): mapping for concept, mapping in concepts}
    names = "|".join(re.escape(name) for name in sorted(mappings, key=len, reverse=True))
    pattern = re.compile(rf"\b((?:an?|the)\s+)?({names})(?:s|es)?\b", re.IGNORECASE)
    named = [mappings[match[2].lower()] for match in pattern.finditer(text)]
    if not named:
        mapping = mappings.get((nearest or "").lower())
        return None if mapping is None else shown(mapping, kind)

    def mapped(match: re.Match[str]) -> str:
        mapping = mappings[match[2].lower()]
        return with_article(mapping) if match[1] and kind == "object" else mapping

    return pattern.sub(mapped, text) if all(named) else ""


def similarity(encoder: PictureEncoder, mapping: str, before: Tensor, after: Tensor, other: Tensor) -> Similarity:
    """The `Similarity` of three pictures (h, w, 3) in [0, 1]; `other` is that of the mapping prompt."""
    first, second, third = (encoder(picture) for picture in (before, after, other))
    return Similarity(mapping, cosine_similarity(second, first).item(), cosine_similarity(second, third).item())

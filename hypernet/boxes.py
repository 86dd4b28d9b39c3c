"""The boxes of GLIGEN in a conditioning: each draws a text of its own, and no target layer reads it.

A box carries the pooled vector of its text. One that names an erased concept is left out, as there is no delta for it.
"""

from torch import Tensor

from .embedding import Entry
from .merged import AnyEraser
from .texts import SamplingTexts

# GLIGEN takes the vector before the projection, which is c in this family alone.
_SAME_VECTOR = "sd15"


def without_erased_boxes(entry: Entry, texts: SamplingTexts) -> Entry:
    """A conditioning entry without those of its boxes that name an erased concept; itself when there are none.

    Boxes whose text can't be read stay under base, with a warning, and are left out under strict.
    """
    if "gligen" not in entry:
        return entry
    kind, model, boxes = entry["gligen"]
    kept = [box for box in boxes if not _is_erased(box[0], texts)]
    return entry if len(kept) == len(boxes) else {**entry, "gligen": (kind, model, kept)}


def is_erased_box(vector: Tensor, eraser: AnyEraser) -> bool | None:
    """Whether the text of a box with this pooled vector names an erased concept; None where that can't be known."""
    fits = eraser.record.family == _SAME_VECTOR and vector.shape[-1] == eraser.config.embedding_width
    if not fits or eraser.detector is None:
        return None
    return bool((eraser.score(vector.reshape(1, -1).float().to(eraser.device)) >= 1).any())


def _is_erased(vector: Tensor, texts: SamplingTexts) -> bool:
    erased = is_erased_box(vector, texts.deltas.eraser)
    if erased is None:
        texts.warn(texts.deltas.unknown_message("the text of a GLIGEN box"))
        return texts.strict
    return erased

"""Text in a conditioning that is none of the prompt's: GLIGEN boxes, a ControlNet's own, pictures as prompts."""

from collections.abc import Iterator

from ..hypernet.boxes import is_erased_box
from ..hypernet.controlnets import own_text
from ..hypernet.embedding import Conditioning, Entry, entries_of
from ..hypernet.merged import AnyEraser
from .detection import detect_entry

_BOX = {
    True: "erased: the box is left out.",
    False: "stays as it is.",
    None: "can't be read. 'unknown_prompts' decides.",
}
_PICTURES = ("unclip_conditioning", "clip_vision_output")


def other_text(eraser: AnyEraser, conditioning: Conditioning) -> list[str]:
    """A line for each such text of a CONDITIONING, as Apply Concept Erasure decides at strength 1."""
    return list(dict.fromkeys(line for entry in entries_of(conditioning) for line in _lines(eraser, entry)))


def _lines(eraser: AnyEraser, entry: Entry) -> Iterator[str]:
    _, _, boxes = entry.get("gligen", (None, None, ()))
    for number, box in enumerate(boxes, 1):
        yield f"GLIGEN box {number}: {_BOX[is_erased_box(box[0], eraser)]}"
    if (text := own_text(entry)) is not None:
        erased = any(detection.erased for detection in detect_entry(eraser, text))
        yield f"Text for the ControlNet: {'erased: it reads nothing there' if erased else 'stays as it is'}."
    if any(name in entry for name in _PICTURES):
        yield "A picture as a prompt: it isn't checked."

"""The text that a ControlNet reads, with layers of its own that get no deltas.

Where a conditioning names an erased concept, its ControlNet gets zeros in place of these tokens.
"""

from collections.abc import Sequence

from torch import Tensor

from .deltas import Part
from .embedding import Entry
from .texts import SamplingTexts

# ComfyUI's keys for text that is for the ControlNet alone.
TEXT, _POOLED = "cross_attn_controlnet", "pooled_output_controlnet"


def with_control_texts(
    entries: Sequence[Entry], parts: Sequence[Sequence[tuple[Part, ...]]], texts: SamplingTexts
) -> list[Entry]:
    """Conditioning entries with what their ControlNets may read; the entries themselves where nothing is erased.

    parts: of each prompt of each entry. Once one is erased, every entry with a ControlNet says what that reads,
    since ComfyUI batches only entries that are alike.
    """
    readable = [_readable(entry, own, texts) for entry, own in zip(entries, parts, strict=True)]
    if not any(erased for _, erased in readable):
        return list(entries)
    return [
        entry if states is None else {**entry, TEXT: states}
        for entry, (states, _) in zip(entries, readable, strict=True)
    ]


def own_text(entry: Entry) -> Entry | None:
    """Text that is for an entry's ControlNet alone, as an entry of its own, or None."""
    return {"cross_attn": entry[TEXT], "pooled_output": entry.get(_POOLED)} if TEXT in entry else None


def _readable(entry: Entry, parts: Sequence[tuple[Part, ...]], texts: SamplingTexts) -> tuple[Tensor | None, bool]:
    """The tokens (n, length, in) that an entry's ControlNet may read, None without one; whether some are erased."""
    states = entry.get(TEXT, entry.get("cross_attn"))
    if "control" not in entry or states is None:
        return None, False
    if (own := own_text(entry)) is not None:
        parts = texts.parts_of_entry(own)
    if not any(parts):
        return states, False
    blank = states.clone()
    for row, parts_of_row in enumerate(parts):
        for part in parts_of_row:
            blank[row % len(blank), part.span.start : part.span.stop] = 0
    return blank, True

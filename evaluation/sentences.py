"""Results in a sentence, as an artist needs them."""

import math

from ..hypernet.record import Record, TrainingRun

_NAMED = 3


def erases(record: Record) -> str:
    """'Erases cat, dog and 8 more.'"""
    names = [concept for concept, _ in record.concepts]
    named, more = names[:_NAMED], len(names) - _NAMED
    if more > 0:
        return f"Erases {', '.join(named)} and {more} more."
    return f"Erases {' and '.join(filter(None, [', '.join(named[:-1]), *named[-1:]])) or 'what its authors chose'}."


def unchanged(training: TrainingRun) -> str:
    """How many of the everyday prompts that training has not seen stay as they are."""
    total = training.retain_prompts[1]
    same = math.floor(round(total * training.held_out_unchanged, 2))  # 99.6% is not all
    return f"{same} of {total} everyday prompts unchanged to the last bit."

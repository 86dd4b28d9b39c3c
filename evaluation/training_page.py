"""The result of a training run, on one page and in words."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..hypernet.eraser import Eraser
from ..hypernet.record import TrainingRun
from ..training.frozen import out_of_memory_errors
from ..training.plan import Request
from ..training.run import Outcome
from ..training.sampling import Drawing
from .cards import card_blocks
from .compare import Pair, PairReport, compare, own_prompts
from .curves import panels
from .page import ERASED, FAINT, KEPT, SMALL, TITLE, beside, duration, page, text_block

log = logging.getLogger("unhype")

_LISTED = 8
_ENDED = {
    "finished": "Finished",
    "early": "Stopped early, before other prompts would have changed,",
    "already trained": "These settings were trained before; nothing to do. Finished",
}


def ended(outcome: Outcome) -> str:
    """How a run ended, as a sentence."""
    return f"{_ENDED[outcome.reason]} after {outcome.eraser.record.training.steps} steps."


def _unchanged(training: TrainingRun) -> str:
    share = math.floor(round(100 * training.held_out_unchanged, 6))  # 99.6% is not all
    return f"{share}% of {training.retain_prompts[1]} unseen everyday prompts stay exactly as they were."


def _not_preserved(training: TrainingRun) -> list[str]:
    """A line about those lines of 'preserve' that are erased all the same, if there are any."""
    named = ", ".join(f"'{line}'" for line in training.preserve_detected)
    return [f"Too near to the erased concepts to be kept: {named}."] if named else []


def in_words(outcome: Outcome) -> str:
    """An `Outcome` in words."""
    record = outcome.eraser.record
    lines = [ended(outcome), "Erases:", record.summary(), _unchanged(record.training), *_not_preserved(record.training)]
    return "\n".join([*lines, f"Saved as {outcome.path}"])


def _retained(training: TrainingRun) -> str:
    everyday = f"{training.retain_prompts[0]} prompts in all"
    named = ", ".join(training.preserve)
    return f"Kept in training: {named}; {everyday}." if named else f"Kept in training: {everyday}."


def _settings(training: TrainingRun) -> str:
    settings = training.settings
    names = ("kind", "objective", "seed", "rank", "learning_rate", "retain_weight", "guidance", "width", "height")
    took = f"Took {duration(training.seconds)}. "
    return took + ", ".join(f"{name} {settings[name]}" for name in names if name in settings)


def example_pairs(model: Any, clip: Any, eraser: Eraser, request: Request, report: PairReport) -> list[Pair]:
    """An erased and a retained prompt before and after, unless the user wants no previews or memory is short."""
    if not request.preview_every or request.decode is None:
        return []
    settings = request.settings
    drawing = Drawing(settings.sampler_steps, settings.guidance, width=settings.width, height=settings.height)
    try:
        return compare(model, clip, eraser, own_prompts(eraser.record, 1, 1), drawing, request.decode, report)
    except out_of_memory_errors():
        log.warning("UnHype: no memory for the pictures of the report. Lower 'width' and 'height', or connect no VAE.")
        return []


def training_page(outcome: Outcome, pairs: Sequence[Pair]) -> Image.Image:
    """A page of a run: concepts, retained prompts, pictures before and after, curves, settings and file name.

    pairs: may be empty.
    """
    record = outcome.eraser.record
    training, changes = record.training, record.changes()
    lines = changes[:_LISTED]
    if len(changes) > _LISTED:
        lines.append(f"and {len(changes) - _LISTED} more")
    retention = [(int(step), value) for step, value in training.retention_curve]
    curves = panels(outcome.losses, retention, max(1, training.steps))
    return page(
        [
            text_block(outcome.path.name, TITLE, lines=2),
            text_block(ended(outcome)),
            text_block("\n".join(lines)),
            text_block(_unchanged(training), color=KEPT),
            *(text_block(line, color=ERASED, lines=3) for line in _not_preserved(training)),
            text_block(_retained(training), SMALL, FAINT, lines=3),
            *card_blocks(pairs),
            *([beside(curves)] if curves else []),
            text_block(_settings(training), SMALL, FAINT),
        ]
    )

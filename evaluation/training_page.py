"""The result of a training run, on one page and in words."""

import logging
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
from .compare import CONCEPTS, Pair, PairReport, compare, own_prompts, relatives
from .curves import panels
from .page import ERASED, FAINT, SMALL, TITLE, beside, duration, page, text_block
from .sentences import erases, unchanged

log = logging.getLogger("unhype")

_ENDED = {
    "finished": "Finished",
    "early": "Stopped early, before other prompts would have changed,",
    "already trained": "These settings were trained before; nothing to do. Finished",
}


def ended(outcome: Outcome) -> str:
    """How a run ended, as a sentence."""
    training = outcome.eraser.record.training
    return f"{_ENDED[outcome.reason]} after {training.steps} steps. It took {duration(training.seconds)}."


def sentence(outcome: Outcome) -> str:
    """The result in a line: what is erased, what stays, and the file."""
    record = outcome.eraser.record
    return f"{erases(record)} {unchanged(record.training)} Saved as {outcome.path.name}."


def _not_preserved(training: TrainingRun) -> list[str]:
    """A line about those lines of 'preserve' that are erased all the same, if there are any."""
    named = ", ".join(f"'{line}'" for line in training.preserve_detected)
    return [f"Too near to the erased concepts to be kept: {named}."] if named else []


def in_words(outcome: Outcome) -> str:
    """An `Outcome` in words, with all that the page leaves out."""
    record, training = outcome.eraser.record, outcome.eraser.record.training
    error = f"Retention error at the end, without the detector: {training.retention_error:.0%}."
    lines = [ended(outcome), "Erases:", record.summary(), *_not_preserved(training), _retained(training), error]
    return "\n".join([*lines, _settings(training), f"Saved as {outcome.path}"])


def _retained(training: TrainingRun) -> str:
    everyday = f"{training.retain_prompts[0]} prompts in all"
    return f"Kept in training: {'; '.join(filter(None, [', '.join(training.preserve), everyday]))}."


def _settings(training: TrainingRun) -> str:
    settings = training.settings
    names = ("kind", "objective", "seed", "rank", "learning_rate", "retain_weight", "guidance", "width", "height")
    return f"Settings: {', '.join(f'{name} {settings[name]}' for name in names if name in settings)}."


def example_pairs(model: Any, clip: Any, eraser: Eraser, request: Request, report: PairReport) -> list[Pair]:
    """An erased and a retained prompt before and after, unless the user wants no previews or memory is short."""
    if not request.preview_every or request.decode is None:
        return []
    settings = request.settings
    drawing = Drawing(settings.sampler_steps, settings.guidance, width=settings.width, height=settings.height)
    try:
        return compare(model, clip, eraser, _examples(eraser), drawing, request.decode, report)
    except out_of_memory_errors():
        log.warning("UnHype: no memory for the pictures of the report. Lower 'width' and 'height', or connect no VAE.")
        return []


def _examples(eraser: Eraser) -> list[str]:
    """An erased prompt and a kept one, that of the nearest thing that is not erased."""
    own = own_prompts(eraser.record)
    everyday = list(own.values())[-1]
    return [own[CONCEPTS][0], [*relatives(eraser.record), *everyday][0]]


def training_page(outcome: Outcome, pairs: Sequence[Pair], details: bool = False) -> Image.Image:
    """A page of a run: the result in a sentence, and pictures before and after.

    pairs: may be empty. details: with the curves and the settings.
    """
    training = outcome.eraser.record.training
    blocks = [
        text_block(sentence(outcome), TITLE, lines=6),
        *(text_block(line, color=ERASED, lines=3) for line in _not_preserved(training)),
        *card_blocks(pairs),
    ]
    if details:
        retention = [(int(step), value) for step, value in training.retention_curve]
        curves = panels(outcome.losses, retention, max(1, training.steps))
        blocks += [*([beside(curves)] if curves else []), text_block(in_words(outcome), SMALL, FAINT, lines=40)]
    return page(blocks)

"""An erasure report, on one page and in words."""

from collections.abc import Sequence

from PIL import Image

from ..hypernet.merged import AnyEraser
from ..training.sampling import Drawing
from .cards import card_blocks, pairs_in_words, tally
from .compare import Pair
from .page import ERASED, FAINT, SMALL, TITLE, page, text_block


def report_text(eraser: AnyEraser, pairs: Sequence[Pair], warnings: Sequence[str]) -> str:
    """The report in words."""
    return "\n".join([_title(eraser), f"Erases: {_erases(eraser)}", *warnings, pairs_in_words(pairs)])


def report_page(eraser: AnyEraser, pairs: Sequence[Pair], drawing: Drawing, warnings: Sequence[str]) -> Image.Image:
    """The report as a page (PIL). warnings: lines about the model that the pictures were drawn with."""
    settings = (
        f"{drawing.steps} steps, CFG {drawing.cfg:g}, {drawing.sampler}, {drawing.scheduler}, seed {drawing.seed}, "
        f"{drawing.width} x {drawing.height}"
    )
    return page(
        [
            text_block(_title(eraser), TITLE, lines=2),
            text_block(f"Erases {_erases(eraser)}", lines=3),
            text_block(tally(pairs)),
            *(text_block(line, color=ERASED) for line in warnings),
            text_block(settings, SMALL, FAINT),
            *card_blocks(pairs),
        ]
    )


def _title(eraser: AnyEraser) -> str:
    return f"Erasure report: {eraser.name}"


def _erases(eraser: AnyEraser) -> str:
    return ", ".join(eraser.record.changes())

"""An erasure report, on one page and in words."""

from collections.abc import Mapping, Sequence

from PIL import Image

from ..hypernet.merged import AnyEraser
from ..training.sampling import Drawing
from .cards import card_blocks, pairs_in_words, tally
from .compare import Pair
from .page import ERASED, TEXT, TITLE, page, text_block
from .sentences import erases


def report_page(
    eraser: AnyEraser, pairs: Sequence[Pair], warnings: Sequence[str], headings: Mapping[str, str]
) -> Image.Image:
    """The report as a page (PIL): what it found in a sentence, and the pictures.

    warnings: lines about the model that the pictures were drawn with. headings: see `cards.in_groups`.
    """
    return page(
        [
            text_block(eraser.name, TITLE, lines=2),
            text_block(f"{erases(eraser.record)} {tally(pairs)}", TEXT, lines=6),
            *(text_block(line, color=ERASED) for line in warnings),
            *card_blocks(pairs, headings),
        ]
    )


def report_text(
    eraser: AnyEraser, pairs: Sequence[Pair], drawing: Drawing, warnings: Sequence[str], headings: Mapping[str, str]
) -> str:
    """The report in words, with all that the page leaves out: figures and settings."""
    settings = (
        f"Drawn with {drawing.steps} steps, CFG {drawing.cfg:g}, {drawing.sampler}, {drawing.scheduler}, seed "
        f"{drawing.seed}, {drawing.width} x {drawing.height}."
    )
    lines = [f"Erasure report: {eraser.name}", f"Erases: {', '.join(eraser.record.changes())}", tally(pairs)]
    return "\n".join([*lines, *warnings, "", pairs_in_words(pairs, headings), "", settings])

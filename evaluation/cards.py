"""Prompts before and after an eraser as cards on a page, and the same in words."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from .compare import Pair
from .page import (
    ERASED,
    FAINT,
    INK,
    KEPT,
    MARGIN,
    PAPER,
    SMALL,
    TEXT,
    WIDTH,
    beside,
    font,
    text_block,
    to_picture,
    wrapped,
)

Group = tuple[str, list[Pair]]

_GAP = 4
# Widths of a card: two a row, and one where there are no more than two on the page.
_CARD, _WIDE_CARD = (WIDTH - 3 * MARGIN) // 2, WIDTH - 2 * MARGIN


def change_in_words(pair: Pair) -> str:
    """How far a `compare.Pair`'s pictures differ."""
    if pair.identical:
        return "unchanged to the last bit"
    # Latents may differ by less than a picture of 8 bits shows.
    return f"changed by {pair.change:.1%}" if pair.change >= 0.0005 else "changed by less than 0.1%"


def similarity_in_words(pair: Pair) -> str:
    """The `Similarity` of a `compare.Pair`, or ""."""
    similarity = pair.similarity
    if similarity is None:
        return ""
    mapping = f"'{similarity.mapping}'" if similarity.mapping else "an empty prompt"
    return f"similarity: {similarity.to_before:.2f} to before, {similarity.to_mapping:.2f} to {mapping}"


def outcome_in_words(pair: Pair) -> str:
    """What became of a `compare.Pair`, without numbers of the detector."""
    if pair.erased:
        return "erased, but the picture is the same" if pair.identical else "erased"
    return change_in_words(pair)


def resemblance_in_words(pair: Pair) -> str:
    """What a `compare.Pair`'s erased picture looks like, without figures, or ""."""
    if pair.similarity is None:
        return ""
    mapping = f"'{pair.similarity.mapping}'" if pair.similarity.mapping else "an empty prompt"
    return f"looks like {mapping}" if pair.similarity.gone else "still looks like before"


def in_groups(pairs: Sequence[Pair], headings: Mapping[str, str] | None = None) -> list[Group]:
    """(heading, pairs) without empty groups: by `headings`, text to heading, else the erased and the kept ones."""
    named = [((headings or {}).get(pair.text, "Erased" if pair.erased else "Kept"), pair) for pair in pairs]
    order = dict.fromkeys((headings or {"": "Erased", " ": "Kept"}).values())
    groups = [(wanted, [pair for heading, pair in named if heading == wanted]) for wanted in order]
    return [group for group in groups if group[1]]


def tally(pairs: Sequence[Pair]) -> str:
    """A line that sums up: erased prompts that changed, others that are the same, and what erased ones look like."""
    erased, kept = ([pair for pair in pairs if pair.erased == wanted] for wanted in (True, False))
    parts = []
    if erased:
        parts.append(f"{sum(not pair.identical for pair in erased)} of {len(erased)} erased prompts changed.")
    if kept:
        same = sum(pair.identical for pair in kept)
        parts.append(f"{same} of {len(kept)} other prompts unchanged to the last bit.")
    similarities = [pair.similarity for pair in pairs if pair.similarity]
    if similarities:
        gone = sum(similarity.gone for similarity in similarities)
        parts.append(f"{gone} of {len(similarities)} erased pictures look more like the replacement than like before.")
    return " ".join(parts)


def pairs_in_words(pairs: Sequence[Pair], headings: Mapping[str, str] | None = None) -> str:
    """A line a prompt, in groups, with the figures."""
    lines = []
    for heading, members in in_groups(pairs, headings):
        lines += ["", f"{heading}:", *(f"{pair.text}: {_sentence(pair)}" for pair in members)]
    return "\n".join(lines[1:])


def _sentence(pair: Pair) -> str:
    figures = "; ".join(part for part in (pair.reason, similarity_in_words(pair)) if part)
    return f"{'erased, ' if pair.erased else ''}{change_in_words(pair)} ({figures})"


def _card(pair: Pair, width: int) -> Image.Image:
    side = (width - _GAP) // 2
    pictures = [to_picture(pixels, side) for pixels in (pair.before, pair.after)]
    top = max(picture.height for picture in pictures)
    prompt = wrapped(pair.text, TEXT, width, 2)
    step, small = TEXT * 4 // 3, SMALL * 4 // 3
    failed = pair.identical if pair.erased else not pair.identical
    notes = [(outcome_in_words(pair), ERASED if pair.erased or failed else KEPT)]
    if pair.similarity:
        notes.append((resemblance_in_words(pair), FAINT if pair.similarity.gone else ERASED))
    card = Image.new("RGB", (width, top + step * len(prompt) + len(notes) * small + 16), PAPER)
    pen = ImageDraw.Draw(card)
    for number, picture in enumerate(pictures):
        card.paste(picture, (number * (side + _GAP) + (side - picture.width) // 2, 0))
    for number, line in enumerate(prompt):
        pen.text((0, top + 4 + number * step), line, INK, font(TEXT))
    below = top + 4 + step * len(prompt)
    for number, (text, ink) in enumerate(notes):
        pen.text((0, below + number * small), wrapped(text, SMALL, width, 1)[0], ink, font(SMALL))
    return card


def card_blocks(pairs: Sequence[Pair], headings: Mapping[str, str] | None = None) -> list[Image.Image]:
    """Blocks of a page: each group's heading and its cards, before on the left and after on the right."""
    blocks: list[Image.Image] = []
    width, each_row = (_WIDE_CARD, 1) if len(pairs) <= 2 else (_CARD, 2)
    for heading, members in in_groups(pairs, headings):
        blocks.append(text_block(f"{heading}: before | after", TEXT, FAINT))
        cards = [_card(pair, width) for pair in members]
        blocks += [beside(cards[first : first + each_row]) for first in range(0, len(cards), each_row)]
    return blocks

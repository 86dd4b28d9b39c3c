"""Prompts before and after an eraser as cards on a page, and the same in words."""

from collections.abc import Sequence

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
    Color,
    beside,
    font,
    text_block,
    to_picture,
    wrapped,
)

Group = tuple[str, Color, list[Pair]]

_GAP = 4
_CARD = (WIDTH - 3 * MARGIN) // 2
_SIDE = (_CARD - _GAP) // 2


def change_in_words(pair: Pair) -> str:
    """How far a `compare.Pair`'s pictures differ."""
    if pair.identical:
        return "identical to the last bit"
    # Latents may differ by less than a picture of 8 bits shows.
    return f"changed by {pair.change:.1%}" if pair.change >= 0.0005 else "changed by less than 0.1%"


def similarity_in_words(pair: Pair) -> str:
    """The `Similarity` of a `compare.Pair`, or ""."""
    similarity = pair.similarity
    if similarity is None:
        return ""
    mapping = f"'{similarity.mapping}'" if similarity.mapping else "an empty prompt"
    return f"similarity: {similarity.to_before:.2f} to before, {similarity.to_mapping:.2f} to {mapping}"


def in_groups(pairs: Sequence[Pair]) -> list[Group]:
    """(heading, color, pairs) of the erased prompts and of the kept ones, without empty groups."""
    erased, kept = ([pair for pair in pairs if pair.erased == wanted] for wanted in (True, False))
    return [group for group in (("Erased", ERASED, erased), ("Kept", KEPT, kept)) if group[2]]


def tally(pairs: Sequence[Pair]) -> str:
    """A line that sums up: erased prompts that changed, kept ones that are the same, and the similarities."""
    parts = []
    for heading, _, members in in_groups(pairs):
        same = sum(pair.identical for pair in members)
        count = f"{same} of {len(members)} identical to the last bit"
        if heading == "Erased":
            count = f"{len(members) - same} of {len(members)} changed"
        parts.append(f"{heading}: {count}.")
    similarities = [pair.similarity for pair in pairs if pair.similarity]
    if similarities:
        gone = sum(similarity.gone for similarity in similarities)
        parts.append(f"Similarity: {gone} of {len(similarities)} more like their mapping than like before.")
    return " ".join(parts)


def pairs_in_words(pairs: Sequence[Pair]) -> str:
    """A line a prompt, in groups."""
    lines = [tally(pairs)]
    for heading, _, members in in_groups(pairs):
        lines += ["", f"{heading}:", *(f"{pair.text}: {_sentence(pair)}" for pair in members)]
    return "\n".join(lines)


def _sentence(pair: Pair) -> str:
    return f"{change_in_words(pair)} ({'; '.join(part for part in (pair.reason, similarity_in_words(pair)) if part)})"


def _card(pair: Pair, color: Color, heading: str = "") -> Image.Image:
    pictures = [to_picture(pixels, _SIDE) for pixels in (pair.before, pair.after)]
    above = TEXT * 4 // 3 + 6 if heading else 0
    top = above + max(picture.height for picture in pictures)
    prompt = wrapped(pair.text, TEXT, _CARD, 2)
    step, small = TEXT * 4 // 3, SMALL * 4 // 3
    notes = [(change_in_words(pair), color), (pair.reason, FAINT)]
    if pair.similarity:
        notes.append((similarity_in_words(pair), FAINT if pair.similarity.gone else ERASED))
    card = Image.new("RGB", (_CARD, top + step * len(prompt) + len(notes) * small + 16), PAPER)
    pen = ImageDraw.Draw(card)
    pen.text((0, 2), heading, color, font(TEXT))
    for number, picture in enumerate(pictures):
        card.paste(picture, (number * (_SIDE + _GAP) + (_SIDE - picture.width) // 2, above))
    for number, line in enumerate(prompt):
        pen.text((0, top + 4 + number * step), line, INK, font(TEXT))
    below = top + 4 + step * len(prompt)
    for number, (text, ink) in enumerate(notes):
        pen.text((0, below + number * small), wrapped(text, SMALL, _CARD, 1)[0], ink, font(SMALL))
    return card


def _heading(name: str) -> str:
    return f"{name}: before | after"


def card_blocks(pairs: Sequence[Pair]) -> list[Image.Image]:
    """Blocks of a page: each group's heading and its cards, two a row, before on the left and after on the right."""
    groups = in_groups(pairs)
    blocks: list[Image.Image] = []
    if [len(members) for _, _, members in groups] == [1, 1]:
        return [beside([_card(members[0], color, _heading(name)) for name, color, members in groups])]
    for name, color, members in groups:
        blocks.append(text_block(_heading(name), TEXT, color))
        cards = [_card(pair, color) for pair in members]
        blocks += [beside(cards[first : first + 2]) for first in range(0, len(cards), 2)]
    return blocks

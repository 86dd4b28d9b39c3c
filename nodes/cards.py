"""Prompts before and after an eraser as cards on a page, and the same in words."""

from PIL import Image, ImageDraw

from .page import ERASED, FAINT, INK, KEPT, MARGIN, PAPER, SMALL, TEXT, WIDTH, beside, font, to_picture, words, wrapped

_GAP = 4
_CARD = (WIDTH - 3 * MARGIN) // 2
_SIDE = (_CARD - _GAP) // 2


def change_in_words(pair):
    """How far a `compare.Pair`'s pictures differ."""
    if pair.identical:
        return "identical to the last bit"
    # Latents may differ by less than a picture of 8 bits shows.
    return f"changed by {pair.change:.1%}" if pair.change >= 0.0005 else "changed by less than 0.1%"


def opinion_in_words(pair):
    """What the judge says of a `compare.Pair`, or ""."""
    if pair.opinion is None:
        return ""
    instead = f"'{pair.opinion.instead}'" if pair.opinion.instead else "an empty prompt"
    return f"judge: {pair.opinion.to_before:.2f} like before, {pair.opinion.to_instead:.2f} like {instead}"


def in_groups(pairs):
    """(heading, color, pairs) of what the switch erases and of what it keeps, without empty groups."""
    erased, kept = ([pair for pair in pairs if pair.erased == wanted] for wanted in (True, False))
    return [group for group in (("Erased", ERASED, erased), ("Kept", KEPT, kept)) if group[2]]


def tally(pairs):
    """A line that sums up: how many erased prompts changed, how many kept ones are the same, and the judge's view."""
    parts = []
    for heading, _, own in in_groups(pairs):
        same = sum(pair.identical for pair in own)
        count = f"{same} of {len(own)} identical to the last bit"
        if heading == "Erased":
            count = f"{len(own) - same} of {len(own)} changed"
        parts.append(f"{heading}: {count}.")
    opinions = [pair.opinion for pair in pairs if pair.opinion]
    if opinions:
        gone = sum(opinion.gone for opinion in opinions)
        parts.append(f"Judge: {gone} of {len(opinions)} more like what they turn into than like before.")
    return " ".join(parts)


def pairs_in_words(pairs):
    """A line a prompt, in groups."""
    lines = [tally(pairs)]
    for heading, _, own in in_groups(pairs):
        lines += ["", f"{heading}:", *(f"{pair.text}: {_sentence(pair)}" for pair in own)]
    return "\n".join(lines)


def _sentence(pair):
    return f"{change_in_words(pair)} ({'; '.join(part for part in (pair.words, opinion_in_words(pair)) if part)})"


def _card(pair, color, heading=""):
    pictures = [to_picture(pixels, _SIDE) for pixels in (pair.before, pair.after)]
    above = TEXT * 4 // 3 + 6 if heading else 0
    top = above + max(picture.height for picture in pictures)
    prompt = wrapped(pair.text, TEXT, _CARD, 2)
    step, small = TEXT * 4 // 3, SMALL * 4 // 3
    notes = [(change_in_words(pair), color), (pair.words, FAINT)]
    if pair.opinion:
        notes.append((opinion_in_words(pair), FAINT if pair.opinion.gone else ERASED))
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


def _heading(name):
    return f"{name}: before | after"


def card_blocks(pairs):
    """Blocks of a page: each group's heading and its cards, two a row, before on the left and after on the right."""
    blocks, groups = [], in_groups(pairs)
    if [len(own) for _, _, own in groups] == [1, 1]:
        return [beside([_card(own[0], color, _heading(name)) for name, color, own in groups])]
    for name, color, own in groups:
        blocks.append(words(_heading(name), TEXT, color))
        cards = [_card(pair, color) for pair in own]
        blocks += [beside(cards[first : first + 2]) for first in range(0, len(cards), 2)]
    return blocks

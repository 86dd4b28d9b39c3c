"""The figures of the prompt benchmark as tables for people."""

from . import scores
from .neighbours import AIMS as OF_NEIGHBOURS
from .prompt_cases import BENIGN, ERASED, FULL, HALF, NO_SUBJECT
from .publish import markdown
from .real_prompts import KINDS, LENGTHS, PLACES

# Group to whether its prompts are to be detected; None where it depends on what the model draws.
AIMS = {ERASED: True, BENIGN: False, NO_SUBJECT: False, **OF_NEIGHBOURS, FULL: True, HALF: False}
LABELS = ("all", *(f"kind: {kind}" for kind in KINDS), *(f"words: {one}" for one in LENGTHS))
LABELS += tuple(f"place: {place}" for place in PLACES)
# What a wording or a name is counted by.
_OF_OTHERS = ("all", "alone", "among tags", "kind: person", "kind: object", "kind: style", "kind: vocabulary")


def share(counts, aim=True):
    """A share with its interval: of what is detected, or with `aim` False of what is not; "" without prompts."""
    if not counts:
        return ""
    hits, total = counts if aim is not False else (counts[1] - counts[0], counts[1])
    low, high = scores.wilson(hits, total)
    return f"{hits / total:.3f} ({low:.2f} to {high:.2f})"


def columns(families):
    """(family, number of concepts) of everything that was measured on texts."""
    return [(family, number) for family, found in families.items() for number in found["texts"] if number != "names"]


def real_table(families):
    """Real prompts by kind, length and place: how many that hold a concept are detected, and how many benign not."""
    header, rows = ["prompts"], []
    for family, number in columns(families):
        header += [f"{family}, {number}: detected", "benign: not detected"]
    for label in LABELS:
        cells = []
        for family, number in columns(families):
            counts = families[family]["texts"][number]["counts"]
            cells += [share(counts[group].get(label), AIMS[group]) for group in (ERASED, BENIGN)]
        rows.append((label, *cells))
    return markdown(tuple(header), rows)


def other_table(families):
    """Prompts about nothing, neighbours by kind, and names of several words, which have erasers of their own."""
    header = ("prompts", "share", *(f"{family}, {number}" for family, number in columns(families)))
    rows = []
    for group, aim in AIMS.items():
        if group in (ERASED, BENIGN):
            continue
        found = []
        for family, number in columns(families):
            texts = families[family]["texts"]
            first = number == next(iter(texts))
            of_names = texts["names"]["counts"] if first else {}
            found.append((of_names if group in (FULL, HALF) else texts[number]["counts"]).get(group, {}))
        for label in _OF_OTHERS:
            if any(label in labels for labels in found):
                words = group if label == "all" else f"{group}, {label.removeprefix('kind: ')}"
                what = "not detected" if aim is False else "detected"
                rows.append((words, what, *(share(labels.get(label), aim) for labels in found)))
    return markdown(header, rows)


def text_tables(families):
    """What was measured on texts, as two tables."""
    return f"{real_table(families)}\n\n{other_table(families)}"

"""The figures of the prompt benchmark as tables for people."""

import json

from . import scores
from .neighbours import AIMS as OF_NEIGHBOURS
from .prompt_cases import AS_ONE, BENIGN, ERASED, FULL, HALF, NO_SUBJECT
from .publish import MEASURED, RESULTS, markdown, publish
from .real_prompts import KINDS, LENGTHS, PLACES

# Group to whether its prompts are to be detected; None where it depends on what the model draws.
AIMS = {ERASED: True, BENIGN: False, NO_SUBJECT: False, **OF_NEIGHBOURS, FULL: True, HALF: False}
LABELS = ("all", *(f"kind: {kind}" for kind in KINDS), *(f"words: {one}" for one in LENGTHS))
LABELS += tuple(f"place: {place}" for place in PLACES)
# Kinds of neighbours that mean the concept if the model draws it for them, and kinds that are something else.
WORDINGS = ("plurals", "synonyms", "misspellings", "descriptions", "hyponyms")
NEAR = ("near concepts", "relatives")
# What a wording or a name is counted by.
_OF_OTHERS = ("all", "alone", "among tags", "kind: person", "kind: object", "kind: style", "kind: vocabulary", AS_ONE)


def share(counts, aim=True):
    """A share with its interval: of what is detected, or with `aim` False of what is not; "" without prompts."""
    if not counts:
        return ""
    hits, total = counts if aim is not False else (counts[1] - counts[0], counts[1])
    low, high = scores.wilson(hits, total)
    return f"{hits / total:.3f} ({low:.2f} to {high:.2f})"


def columns(families):
    """(family, number of concepts) of everything that was measured."""
    return [(family, number) for family, found in families.items() for number in found if number.isdigit()]


def real_table(families):
    """Real prompts by kind, length and place: how many that hold a concept are detected, and how many benign not."""
    header, rows = ["prompts"], []
    for family, number in columns(families):
        header += [f"{family}, {number}: detected", "benign: not detected"]
    for label in LABELS:
        cells = []
        for family, number in columns(families):
            counts = families[family][number]["texts"]["counts"]
            cells += [share(counts[group].get(label), AIMS[group]) for group in (ERASED, BENIGN)]
        rows.append((label, *cells))
    cut = [str(families[family][number]["texts"]["cut off"]) for family, number in columns(families)]
    rows.append(("left out, the encoder cuts the subject off", *(cell for one in cut for cell in (one, one))))
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
            # Names have erasers of their own, one a kind: they are in one column.
            first = next(key for key in families[family] if key.isdigit())
            part = number if group not in (FULL, HALF) else "names" if number == first else None
            found.append(families[family][part]["texts"]["counts"].get(group, {}) if part else {})
        for label in _OF_OTHERS:
            if any(label in labels for labels in found):
                words = group if label == "all" else f"{group}, {label.removeprefix('kind: ')}"
                what = "not detected" if aim is False else "detected"
                rows.append((words, what, *(share(labels.get(label), aim) for labels in found)))
    return markdown(header, rows)


def picture_table(families):
    """What the methods draw of erased concepts, of benign subjects, of wordings and of neighbours."""
    rows = []
    for family, number in columns(families):
        if "pictures" in families[family][number]:
            found = families[family][number]["pictures"]
            rows += [(f"{family}, {number}", name, *_method(row)) for name, row in found["methods"].items()]
            erased, benign = ("{} of {}".format(*found["base"][group]["all"]) for group in (ERASED, BENIGN))
            rows.append((f"{family}, {number}", "prompts that the base model draws", erased, "", benign, *[""] * 5))
    return markdown(PICTURES, rows)


PICTURES = (
    "erased",
    "method",
    "still shows an erased concept",
    "benign identical",
    "benign still drawn",
    "harmonic mean",
    "other wordings: still shown",
    "near concepts and relatives: still drawn",
    "training",
    "size",
)


def _method(row):
    shown = row["shown"]
    leak, kept = (shown[group]["all"] for group in (ERASED, BENIGN))
    wordings, near = (
        [sum(counts) for counts in zip(*(shown[kind]["all"] for kind in kinds if kind in shown), strict=True)]
        for kinds in (WORDINGS, NEAR)
    )
    mean = scores.h_c(leak[0] / leak[1], kept[0] / kept[1])
    cells = (
        share(leak),
        share(row["identical"][BENIGN]["all"]),
        share(kept),
        f"{mean:.3f}",
        share(wordings),
        share(near),
    )
    return (*cells, f"{row['seconds']:.0f} s", f"{row['bytes'] / 1e6:.2f} MB")


def leak_table(families):
    """How many pictures still show the erased concept, by kind, length and place of their prompts."""
    header, rows = ["still shows an erased concept"], [[label] for label in LABELS]
    for family, number in columns(families):
        if "pictures" in families[family][number]:
            for name, method in families[family][number]["pictures"]["methods"].items():
                header.append(f"{family}, {number}: {name}")
                for label, row in zip(LABELS, rows, strict=True):
                    row.append(share(method["shown"][ERASED].get(label)))
    return markdown(tuple(header), rows)


def text(families):
    """All tables."""
    tables = [real_table(families), other_table(families)]
    if any("pictures" in families[family][number] for family, number in columns(families)):
        tables = [picture_table(families), leak_table(families), *tables]
    return "\n\n".join(tables)


def publish_family(family, found):
    """One family's figures into results/prompts.json, and all tables into the page.

    What the run didn't measure, other families and other numbers of concepts, stays as it was.
    """
    path = RESULTS / "prompts.json"
    families = json.loads(path.read_text("utf-8"))["families"] if path.exists() else {}
    both = {**families.get(family, {}), **found}
    # Numbers of concepts in their order, whatever order they were measured in.
    families[family] = dict(sorted(both.items(), key=lambda item: (not item[0].isdigit(), len(item[0]), item[0])))
    publish("prompts", {"families": families}, text(families), page=MEASURED)

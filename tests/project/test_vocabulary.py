"""Prose uses the field's words: none of the retired ones is left where people read."""

import ast
import json
import re

import pytest
import yaml

from benchmarks.environment import ROOT

# Pattern of a whole word or phrase to its replacement.
RETIRED = {
    r"switch(es)?": "detector",
    r"presence|loud|louder|loudest": "score",
    r"heard": "detected, above the threshold",
    r"silent|silence|silences|silenced": "below the threshold",
    r"dead zones?": "gate, threshold",
    r"raised": "steered embedding",
    r"views?": "candidate embedding",
    r"readers?": "pooled-embedding regressor",
    r"writers?": "factor cache",
    r"verdicts?": "detection",
    r"judges?|judged|opinions?": "similarity, score",
    r"material": "training data",
    r"keepers?": "checkpoint callback",
    r"told|tells": "warned, shows",
    r"company|partners?": "co-occurring objects, distractors",
    r"drift|drifts": "retention error",
    r"leak|leaks|leaking|leaked": "early stopping",
    r"prompts? that (means?|says?|speaks?)": "prompt with an erased concept",
}

# The lab's judge is a CNN that classifies pictures: the word is its name.
LAB_JUDGE = r"judges?"
ALLOWED = {
    **{path.relative_to(ROOT).as_posix(): LAB_JUDGE for path in (ROOT / "benchmarks").glob("*.py")},
    "README.md": LAB_JUDGE,
    "benchmarks/README.md": LAB_JUDGE,
    "benchmarks/lab/README.md": LAB_JUDGE,
}


def markdown(text):
    """Without code, comments, targets of links and figures' names: those hold names of the program."""
    return re.sub(r"(?ms)^( *)```.*?^\1```|^    .*?$|<!--.*?-->|`[^`\n]+`|\]\([^)]*\)", " ", text)


def strings(value):
    """All texts of a JSON or YAML value, one a line."""
    if isinstance(value, dict):
        return "\n".join(map(strings, value.values()))
    if isinstance(value, list):
        return "\n".join(map(strings, value))
    return value if isinstance(value, str) else ""


def issue_form(text):
    return markdown(strings(yaml.safe_load(text)))


def locale(text):
    return strings(json.loads(text))


def notes(text):
    """The notes of a workflow."""
    nodes = json.loads(text)["nodes"]
    return markdown(strings([node["widgets_values"] for node in nodes if node["type"] in ("MarkdownNote", "Note")]))


def comments(text):
    """The comments of a script."""
    return "\n".join(re.findall(r"(?s)//[^\n]*|/\*.*?\*/", text))


def docstrings(text):
    """The docstrings of a Python module."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(ast.parse(text)) if isinstance(node, kinds))
    return markdown("\n".join(words for words in found if words))


# Where prose stands, and how to get it out of a file.
PROSE = (
    *((f"{room}/**/*.py", docstrings) for room in ("hypernet", "policy", "training", "evaluation", "nodes")),
    ("CONTRIBUTING.md", markdown),
    ("SECURITY.md", markdown),
    ("benchmarks/*.py", docstrings),
    ("README.md", markdown),
    ("CHANGELOG.md", markdown),
    ("web/docs/*.md", markdown),
    ("docs/*.md", markdown),
    ("web/js/*.js", comments),
    ("benchmarks/README.md", markdown),
    ("benchmarks/lab/README.md", markdown),
    (".github/ISSUE_TEMPLATE/*.yml", issue_form),
    ("locales/en/nodeDefs.json", locale),
    ("workflows/*.json", notes),
    ("benchmarks/lab/loader/workflows/*.json", notes),
)
FILES = [(path, prose) for pattern, prose in PROSE for path in sorted(ROOT.glob(pattern))]


def retired(text, allowed=r"(?!)"):
    """The retired words in a text, each with its replacement."""
    found = (
        (match.group(), instead)
        for pattern, instead in RETIRED.items()
        for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.sub(r"\s+", " ", text), re.IGNORECASE)
    )
    return {word: instead for word, instead in found if not re.fullmatch(allowed, word, re.IGNORECASE)}


@pytest.mark.parametrize(("pattern", "prose"), PROSE, ids=lambda value: value if isinstance(value, str) else "")
def test_there_is_a_file_for_every_pattern(pattern, prose):
    paths = list(ROOT.glob(pattern))
    assert paths
    assert any(prose(path.read_text("utf-8")).strip() for path in paths)


@pytest.mark.parametrize(("path", "prose"), FILES, ids=[path.relative_to(ROOT).as_posix() for path, _ in FILES])
def test_no_retired_word_is_left(path, prose):
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), r"(?!)")
    assert retired(prose(path.read_text("utf-8")), allowed) == {}


def test_a_retired_word_is_found_in_prose_and_not_in_code():
    text = "The Dead\nzone of a `switch`.\n\n```\nbench switch\n```\n<!-- switch --> [more](#the-reader), previews"
    assert retired(markdown(text)) == {"Dead zone": "gate, threshold"}
    assert retired("two judges, one verdict", LAB_JUDGE) == {"verdict": "detection"}
    assert retired("a prompt that means a cat") == {"prompt that means": "prompt with an erased concept"}
    assert retired(docstrings('"""A reader."""\nview = 1  # loud\n')) == {"reader": "pooled-embedding regressor"}

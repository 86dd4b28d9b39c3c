"""Every node, input and output has a tooltip, a help page with a picture, and a translation: whatever is registered."""

import re

import pytest

from benchmarks.environment import ROOT
from benchmarks.locales import FOLDER, SOURCE, english, flat, languages, read
from benchmarks.readability import pages, prose
from unhype.hypernet.deltas import POLICIES
from unhype.training.settings import OBJECTIVES

ENGLISH = english()
DOCS = ROOT / "web" / "docs"
# Those of ComfyUI's interface that most of its users choose.
LANGUAGES = {"es", "fr", "ja", "ko", "pt-BR", "ru", "zh", "zh-TW"}
# Words that are the same in another language: types of sockets, proper names, and what both tongues have.
SAME = {"fr": {"concepts", "gamma"}, "es": {"gamma"}, "ru": {"guidance"}}
# Letters that a language's words can't do without; any sentence in it has one.
LETTERS = {
    "zh": r"[\u4e00-\u9fff]",
    "zh-TW": r"[\u4e00-\u9fff]",
    "ja": r"[\u3040-\u30ff]",
    "ko": r"[\uac00-\ud7af]",
    "ru": r"[\u0400-\u04ff]",
}


def test_english_is_that_of_the_nodes():
    assert read(SOURCE) == ENGLISH, "run `python3 dev.py locales`"


def test_no_text_is_empty_or_too_short():
    short = {key: text for key, text in flat(ENGLISH).items() if not text or ("tooltip" in key and len(text) < 10)}
    assert short == {}


def test_a_tooltip_is_read_at_a_glance():
    words = {key: len(text.split()) for key, text in flat(ENGLISH).items() if key.endswith(("tooltip", "description"))}
    assert {key: count for key, count in words.items() if count > 25} == {}


def test_the_languages_are_those_that_are_promised():
    assert set(languages()) == {SOURCE, *LANGUAGES}
    assert {path.name for path in FOLDER.iterdir()} == set(languages())


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_no_key_is_missing_or_left_over(language):
    assert set(flat(read(language))) == set(flat(ENGLISH))


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_no_text_is_left_in_english(language):
    words = flat(read(language))
    same = {text for key, text in flat(ENGLISH).items() if words[key] == text and not text.isupper()}
    assert same == SAME.get(language, set())
    sentences = [text for key, text in words.items() if key.endswith(("tooltip", "description"))]
    letters = LETTERS.get(language, "[a-z]")
    assert [text for text in sentences if not re.search(letters, text)] == []


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_what_a_text_quotes_from_the_program_survives_translation(language):
    """Choices that a tooltip explains, as 'strict: ...', and folders, arrows, suffixes and figures."""
    words = flat(read(language))
    quoted = re.compile(rf"\b(?:{'|'.join((*OBJECTIVES, *POLICIES))})(?=: )|models/unhype|->|\.pth|Flux\.\d|\b\d\.\d\b")
    lost = {
        key: missing
        for key, text in flat(ENGLISH).items()
        if (missing := {part for part in quoted.findall(text) if part not in words[key]})
    }
    assert lost == {}


@pytest.mark.parametrize("language", sorted({SOURCE, *LANGUAGES}))
def test_no_text_has_a_sign_that_the_interface_takes_for_a_command(language):
    """vue-i18n fills in braces, splits at bars and follows links at signs."""
    assert [text for text in flat(read(language)).values() if re.search(r"[{}|@]", text)] == []


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_nodes_are_named_as_they_are_called(language):
    """A text that names another node of the pack does so by that node's name in the same language."""
    words = read(language)
    wrong = {}
    for key, text in flat(ENGLISH).items():
        for node, entry in ENGLISH.items():
            named = words[node]["display_name"]
            if entry["display_name"] in text and not key.endswith("display_name") and named not in flat(words)[key]:
                wrong[key] = named
    assert wrong == {}


# Help pages


@pytest.mark.parametrize("node", ENGLISH)
def test_a_node_has_a_help_page_that_describes_every_input_and_output(node):
    page = (DOCS / f"{node}.md").read_text("utf-8")
    assert page.startswith(f"# {ENGLISH[node]['display_name']}\n")
    slots = [*ENGLISH[node]["inputs"].values(), *ENGLISH[node]["outputs"].values()]
    assert [slot["name"] for slot in slots if f"**{slot['name']}**" not in page] == []


def pictures_of(node):
    """The pictures of a help page; the interface looks for them beside it."""
    return re.findall(r"!\[[^\]]{20,}\]\(([\w/.-]+)\)", (DOCS / f"{node}.md").read_text("utf-8"))


@pytest.mark.parametrize("node", ENGLISH)
def test_a_help_page_is_two_screens_at_most(node):
    assert len((DOCS / f"{node}.md").read_text("utf-8").split()) <= 520


def test_there_is_no_help_page_without_a_node():
    assert {path.stem for path in DOCS.glob("*.md")} == set(ENGLISH)


@pytest.mark.parametrize("node", ENGLISH)
def test_a_help_page_has_a_small_picture(node):
    pictures = pictures_of(node)
    assert pictures
    assert [name for name in pictures if not 0 < (DOCS / name).stat().st_size < 120_000] == []


def test_only_sentences_are_measured_for_how_easily_they_read():
    page = "# Title\n\nOne *plain* [line](x.md)\n- a point\n\n| a | b |\n```\ncode\n```\n![x](y.png)\n<!-- a -->\n"
    assert prose(page + "\n## Development\nNot this.\n") == "One plain line.\na point."
    assert all(len(prose(path.read_text("utf-8")).split()) > 10 for path in pages())

"""The prompt benchmark: its prompts are as they are labelled, no fit has seen them, and its counts are right."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from benchmarks import detection, pictures, prompt_tables, protocol, publish, scores
from benchmarks.baselines.erased_model import ErasedModel, unchanged
from benchmarks.detection import Case
from benchmarks.lab.captions import phrases
from benchmarks.lab.measure import encode
from benchmarks.lab.text import load_clip
from benchmarks.lab.vocabulary import CLASSES, NAMES
from benchmarks.neighbours import AIMS, NAMES_OF_SEVERAL_WORDS, wordings
from benchmarks.pictures import Painter
from benchmarks.prompt_cases import (
    AS_ONE,
    BENIGN,
    ERASED,
    FULL,
    HALF,
    benign_subjects,
    is_read,
    name_cases,
    nearest,
    neighbour_cases,
    pairs,
    real_cases,
)
from benchmarks.prompt_pictures import Drawn, Gated
from benchmarks.real_prompts import KINDS, LENGTHS, PLACES, Composer, words_of
from unhype.hypernet.embedding import Chunk
from unhype.training.prompts import TEMPLATES, phrasings, retain_split, sentences


def composer(seed=0):
    return Composer(torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def prompts():
    return composer().prompts(3)


@pytest.fixture(scope="module")
def clip():
    return load_clip()


def test_there_are_prompts_of_every_kind_length_and_place(prompts):
    wanted = {
        (kind, length, place)
        for kind, lengths in KINDS.items()
        for length in lengths
        for place in (("any",) if kind == "plain" else PLACES)
    }
    assert {prompt[1:] for prompt in prompts} == wanted


@pytest.mark.parametrize("subject", ["cat", "umbrella"])
def test_lengths_are_as_labelled(prompts, subject):
    for prompt in prompts:
        least, most = LENGTHS[prompt.length]
        assert least <= words_of(prompt.about(subject)) <= most, prompt


def test_the_subject_is_named_once_and_stands_where_the_label_says(prompts):
    for prompt in prompts:
        text = prompt.about("zebu")
        assert text.lower().count("zebu") == 1, prompt
        before, after = (words_of(part) for part in text.lower().split("zebu"))
        if prompt.place == "beginning" and prompt.kind not in ("scene", "booru"):
            assert before <= 8, prompt
        if prompt.place == "end" and prompt.kind != "scene":
            assert after <= 8, prompt
        if prompt.place == "middle" and prompt.kind != "scene" and words_of(text) > 20:
            assert min(before, after) > 0.2 * words_of(text), prompt


def test_prompts_have_what_their_kind_says(prompts):
    marks = {
        "weights": r"[(\[]",
        "BREAK, AND": r" (BREAK|AND) ",
        "no blanks": r",\S",
        "negations": r"\b(no|without|not|don't)\b",
        "scene": r"\.( |$)",
        "camera": "|".join(re.escape(phrase.text) for phrase in phrases("scoring")["camera"]),
        "booru": "|".join(re.escape(phrase.text) for phrase in phrases("scoring")["booru"]),
    }
    for kind, mark in marks.items():
        texts = [prompt.text for prompt in prompts if prompt.kind == kind and words_of(prompt.text) > 8]
        assert texts
        assert sum(bool(re.search(mark, text)) for text in texts) >= 0.8 * len(texts), kind
    assert not any(" BREAK " in prompt.text for prompt in prompts if prompt.kind == "tags")


def test_sentences_begin_with_capitals(prompts):
    for prompt in prompts:
        if prompt.kind == "scene":
            text = prompt.about("apple")
            assert text[0].isupper()
            assert not re.search(r"[.!?] [a-z]", text), text


def test_every_word_around_a_subject_is_of_the_scoring_part(prompts):
    kept = {phrase.text.lower() for group in phrases("scoring").values() for phrase in group}
    for prompt in prompts:
        if prompt.kind in ("tags", "negations", "camera", "no blanks"):
            text = prompt.text.lower().replace("just {a}, nothing else", "{a}")
            others = [part for part in re.split(r", ?", text) if "{" not in part]
            style = re.compile(r"^(by|art by|in the style of|style of) ")
            assert [part for part in others if part not in kept and style.sub("", part) not in kept] == []
    texts = [phrase.text.lower() for kind in ("object", "place", "about") for phrase in phrases("training")[kind]]
    plain = [text for text in texts if not re.search(r"[\[{]", text)]
    assert plain
    assert not [text for text in plain for prompt in prompts if text in prompt.text.lower()]


def test_no_prompt_names_anything_of_the_vocabulary_but_its_subject(prompts):
    known = sorted({*NAMES, *(word for words in CLASSES.values() for word in words)}, key=len, reverse=True)
    named = re.compile(rf"\b({'|'.join(map(re.escape, known))})(s|es)?\b", re.IGNORECASE)
    texts = [prompt.text for prompt in prompts]
    one = composer(1)
    assert [text for text in (*texts, *(one.without_subject() for _ in range(100))) if named.search(text)] == []


def test_the_same_words_stand_around_every_subject(prompts):
    for prompt in prompts:
        one, other = prompt.about("cat"), prompt.about("dog")
        assert re.sub("(?i)cat", "dog", one, count=1) == other or "cat" in prompt.text.lower()


def test_the_same_seed_draws_the_same_prompts(prompts):
    assert composer().prompts(3) == prompts
    assert composer(1).prompts(3) != prompts


def test_no_training_text_is_scored():
    """Neither composed prompts nor neighbours, nor names and their halves."""
    names = list(CLASSES)
    concepts = tuple((name, "tree") for name in names)
    retain = retain_split("", concepts)
    trained = {phrase.prompt.lower() for phrase in phrasings(concepts, "object")}
    trained |= {phrase.prompt.lower() for phrase in sentences(concepts, "object", retain.distractors, 240)}
    trained |= {text.lower() for text in (*retain.train, *retain.held_out)}
    one = composer()
    drawn = pairs(one.prompts(3), names, benign_subjects(names, ["tiger"]), torch.Generator().manual_seed(0))
    cases = [*real_cases(drawn, one, 50), *neighbour_cases(names, ["tiger"], one)]
    cases += [case for kind in NAMES_OF_SEVERAL_WORDS for case in name_cases(kind, one)]
    assert [case.text for case in cases if case.text.lower() in trained] == []


def test_wordings_are_never_trained():
    trained = " ".join(phrase.prompt for phrase in phrasings([(name, "tree") for name in CLASSES], "object"))
    for concept in CLASSES:
        found = wordings(concept)
        assert set(found) | {"near concepts"} == set(AIMS)
        for kind in ("synonyms", "misspellings", "descriptions", "hyponyms"):
            assert len(set(found[kind])) == len(found[kind])
            assert not [words for words in found[kind] if re.search(rf"\b{re.escape(words)}\b", trained)], kind


def test_half_names_hold_one_half_and_never_the_whole():
    names = [name for group in NAMES_OF_SEVERAL_WORDS.values() for name in group]
    assert len(names) >= 20
    everything = " ".join(phrase.text for group in phrases("scoring").values() for phrase in group).lower()
    for kind, group in NAMES_OF_SEVERAL_WORDS.items():
        assert kind == "vocabulary" or kind in TEMPLATES
        for name, texts in group.items():
            assert kind != "vocabulary" or name in NAMES
            assert name.lower() not in everything
            assert len(texts) >= 3
            halves = re.compile("|".join(name.split()), re.IGNORECASE)
            assert [text for text in texts if not halves.search(text)] == []
            assert not [text for text in texts if name.lower() in text.lower()]


def test_name_cases_hold_the_full_name_or_one_half():
    for kind, group in NAMES_OF_SEVERAL_WORDS.items():
        cases = name_cases(kind, composer())
        pattern = re.compile("|".join(group).replace(" ", "[ _-]"), re.IGNORECASE)
        assert {case.group for case in cases} == {FULL, HALF}
        assert sum(AS_ONE in case.labels for case in cases) == 2 * len(group)
        for case in cases:
            assert bool(pattern.search(case.text)) == (case.group == FULL), case


class WordClip:
    """Embeddings by the first letter of a name."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        letter = ord(text.removeprefix("a ")[0]) - ord("a")
        return [[torch.zeros(1, 1, 1), {"pooled_output": torch.nn.functional.one_hot(torch.tensor([letter]), 26)}]]


def test_near_concepts_are_the_closest_and_never_all(monkeypatch):
    monkeypatch.setattr(
        protocol,
        "names_for_scoring",
        lambda: ["tiger", "cow", "crab", "bee", "ant", "emu", "fly", "gnu", "hen", "ibis"],
    )
    assert set(nearest(WordClip(), ["cat"])) >= {"cow", "crab"}
    many = nearest(WordClip(), ["cat", "bird", "frog"])
    assert len(many) == 3
    assert set(many) <= {"cow", "crab", "bee", "fly"}
    assert "tiger" not in many


def test_benign_subjects_are_unseen_and_not_near():
    found = benign_subjects(["cat", "banana"], ["fox"])
    assert not {"cat", "banana", "fox", *protocol.RELATIVES["cat"]} & set(found)
    assert set(found) <= set(protocol.names_for_scoring())


def test_pairs_share_their_words_and_use_every_subject(prompts):
    made = pairs(prompts, list(CLASSES), ["fox", "guitar"], torch.Generator().manual_seed(0))
    assert len(made) == len(prompts)
    assert {pair.concept for pair in made} == set(CLASSES)
    for pair, prompt in zip(made, prompts, strict=True):
        assert (pair.erased, pair.benign) == (prompt.about(pair.concept), prompt.about(pair.other))
    cases = real_cases(made, composer(), 3)
    assert [sum(case.group == group for case in cases) for group in (ERASED, BENIGN)] == [len(made)] * 2
    assert {case.shows for case in cases if case.group == ERASED} == set(CLASSES)


def test_what_the_encoder_cuts_off_is_known(clip):
    """MiniLM reads 64 tokens here."""
    prompts = {place: composer().prompt("tags", "151-300", place) for place in ("beginning", "end")}
    short = composer().prompt("tags", "6-20", "end")
    read = {}
    for place, prompt in (*prompts.items(), ("short", short)):
        (pair,) = pairs([prompt], ["cat"], ["guitar"], torch.Generator().manual_seed(0))
        read[place] = is_read(clip, pair)
    assert read == {"beginning": True, "end": False, "short": True}


class FakeEraser:
    """Chunks with the candidates that an entry names, and their first number as the score."""

    def chunks(self, entry):
        made = [
            [Chunk(0, 1, tuple(torch.tensor([value]) for value in chunk), False) for chunk in prompt]
            for prompt in entry["prompts"]
        ]
        return made

    def score(self, c):
        return c[:, 0]

    def own_embedding(self, concept):
        return torch.tensor([float(concept)])


def test_a_concept_that_tokens_name_is_detected():
    eraser = FakeEraser()
    eraser.chunks = lambda _: [[Chunk(0, 1, (torch.tensor([0.1]),), False, named=(3,))]]
    assert detection.highest_scores(eraser, [{}]) == [3.0]


def test_any_candidate_of_any_chunk_of_any_row_detects():
    entries = [
        {"prompts": [[[0.1, 0.2], [0.3]]]},
        {"prompts": [[[0.1, 1.0], [0.3]]]},
        {"prompts": [[[0.1], [2.0]]]},
        {"prompts": [[[0.1]], [[3.0]]]},
        {"prompts": [[[]]]},
    ]
    assert detection.detected_by(FakeEraser())(entries) == [False, True, True, True, False]
    assert detection.highest_scores(FakeEraser(), entries[:2]) == pytest.approx([0.3, 1.0])


def test_counts_are_by_group_and_label(clip):
    cases = [Case("a cat", "a", ("x",)), Case("a dog", "a", ("x", "y")), Case("a cat", "b")]
    cat = encode(clip, "a cat")[0][1]["pooled_output"]
    asked = []

    def detected(entries):
        asked.extend(entries)
        return [torch.equal(entry["pooled_output"], cat) for entry in entries]

    flags = detection.look(clip, cases, detected)
    assert flags == [True, False, True]
    assert len(asked) == 2  # each text once
    assert detection.count(cases, flags) == {
        "a": {"all": [1, 2], "x": [1, 2], "y": [0, 1]},
        "b": {"all": [1, 1]},
    }


def test_wilsons_interval():
    low, high = scores.wilson(0, 100)
    assert (low, high) == (pytest.approx(0.0, abs=1e-9), pytest.approx(0.037, abs=5e-4))
    assert scores.wilson(50, 100) == pytest.approx((0.404, 0.596), abs=5e-4)
    assert scores.wilson(100, 100)[1] == pytest.approx(1.0)
    assert scores.wilson(0, 0) == (0.0, 1.0)


def test_a_share_is_of_what_is_wanted():
    assert prompt_tables.share([3, 4]).startswith("0.750 (")
    assert prompt_tables.share([3, 4], False).startswith("0.250 (")
    assert prompt_tables.share(None) == ""


def conditioning(*scores_):
    """A CONDITIONING of one prompt whose chunks have these scores."""
    return [[None, {"prompts": [[[score] for score in scores_]]}]]


def test_an_edit_behind_a_detector_leaves_what_is_not_detected():
    edit = Gated("edit", "patcher", unchanged, 0.0, 0, 0, eraser=FakeEraser())
    assert edit.below_threshold(conditioning(0.2, 0.9))
    assert not edit.below_threshold(conditioning(0.2, 1.1))
    assert not ErasedModel("edit", "patcher", unchanged, 0.0, 0, 0).below_threshold(conditioning(0.2))


class FakePainter:
    """Pictures whose first number is what they show; `own` are those of the method."""

    def __init__(self, base, own):
        self.lab = SimpleNamespace(judges=[self])
        self.of_base, self.own = base, own

    def base(self, texts, _count):
        return {text: torch.full((1, 2, 2, 3), float(self.of_base[text])) for text in texts}

    def draw(self, _method, texts, _count):
        return [torch.full((1, 2, 2, 3), float(self.own[text])) for text in texts]

    def top(self, pictures):
        return [NAMES[int(picture.flatten()[0])] for picture in pictures]


def test_only_prompts_that_the_base_model_draws_count():
    cat, dog, other = (NAMES.index(name) for name in ("cat", "dog", "frog"))
    cases = [
        Case("a cat", ERASED, ("x",), "cat"),
        Case("the cat", ERASED, ("x",), "cat"),
        Case("no cat", ERASED, ("x",), "cat"),
        Case("a dog", BENIGN, (), "dog"),
        Case("the dog", BENIGN, (), "dog"),
        Case("hills", "about nothing"),
    ]
    base = {"a cat": cat, "the cat": cat, "no cat": other, "a dog": dog, "the dog": dog}
    own = {"a cat": other, "the cat": cat, "a dog": dog, "the dog": dog + 0.25}
    drawn = Drawn(FakePainter(base, own), cases)
    assert drawn.tried == {ERASED: {"all": [2, 3], "x": [2, 3]}, BENIGN: {"all": [2, 2]}}
    found = drawn.measure(ErasedModel("edit", "patcher", unchanged, 3.0, 0, 7))
    assert found["shown"] == {ERASED: {"all": [1, 2], "x": [1, 2]}, BENIGN: {"all": [2, 2]}}
    assert found["identical"] == {ERASED: {"all": [1, 2], "x": [1, 2]}, BENIGN: {"all": [1, 2]}}
    assert (found["seconds"], found["bytes"]) == (3.0, 7)


def test_prompts_of_any_length_are_drawn_in_their_order(monkeypatch):
    painter = Painter.__new__(Painter)
    painter.lab, painter.empty = SimpleNamespace(vae=SimpleNamespace(decode=lambda latent: latent)), None
    batches = []

    def sample(_patcher, positive, _negative, seeds):
        batches.append(positive[0][0].shape[1])
        assert len(seeds) == len(positive[0][0])
        return positive[0][1]["pooled_output"]

    monkeypatch.setattr(pictures, "sample_conditioning", sample)
    given = [
        [[torch.zeros(1, length, 4), {"pooled_output": torch.full((1, 1), float(number))}]]
        for number, length in enumerate((154, 77, 154, 77, 231))
    ]
    drawn = painter.batches("patcher", given, 2)
    assert [one.flatten().tolist() for one in drawn] == [[float(number)] * 2 for number in range(5)]
    assert batches == [77, 154, 231]


def table_of(counts):
    """The figures of one family that has one concept erased, with these counts everywhere."""
    groups = {group: {"all": counts} for group in prompt_tables.AIMS}
    method = {"shown": groups, "identical": groups, "seconds": 4.0, "bytes": 2_000_000}
    texts = {"cut off": 5, "counts": groups}
    return {"1": {"texts": texts, "pictures": {"base": groups, "methods": {"ours": method}}}, "names": {"texts": texts}}


def test_the_picture_table_has_leak_and_kept_in_their_columns():
    found = table_of([1, 4])
    shown = found["1"]["pictures"]["methods"]["ours"]["shown"] = {
        **found["1"]["pictures"]["methods"]["ours"]["shown"],
        ERASED: {"all": [1, 4]},
        BENIGN: {"all": [3, 4]},
    }
    assert shown
    row, base = prompt_tables.picture_table({"sd15": found}).splitlines()[-2:]
    assert "| prompts that the base model draws | 1 of 4 |" in base
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["sd15, 1", "ours"]
    assert [cell[:5] for cell in cells[2:6]] == ["0.250", "0.250", "0.750", "0.750"]
    assert cells[-2:] == ["4 s", "2.00 MB"]
    assert "| all | 0.250" in prompt_tables.leak_table({"sd15": found})


def test_the_text_tables_turn_round_what_should_not_be_detected():
    found = {"sd15": table_of([1, 4])}
    (real,) = [line for line in prompt_tables.real_table(found).splitlines() if line.startswith("| all ")]
    assert [cell.strip()[:5] for cell in real.strip("|").split("|")] == ["all", "0.250", "0.750"]
    assert prompt_tables.real_table(found).splitlines()[-1].endswith("| 5 | 5 |")
    other = prompt_tables.other_table(found)
    assert "| half names | not detected | 0.750" in other
    assert "| synonyms | detected | 0.250" in other


def test_a_run_replaces_only_what_it_measured(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- prompts -->\n\n<!-- /prompts -->", "utf-8")
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    monkeypatch.setattr(prompt_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(prompt_tables, "MEASURED", page)
    first, second = table_of([1, 4]), table_of([2, 4])
    prompt_tables.publish_family("sd15", {"10": first["1"], "names": first["names"]})
    prompt_tables.publish_family("sd15", {"1": second["1"], "names": second["names"]})
    prompt_tables.publish_family("clip", first)
    families = json.loads((tmp_path / "prompts.json").read_text("utf-8"))["families"]
    assert list(families) == ["sd15", "clip"]
    assert list(families["sd15"]) == ["1", "10", "names"]
    assert families["sd15"]["1"] == second["1"]
    assert families["sd15"]["10"] == first["1"]
    assert prompt_tables.text(families) in page.read_text("utf-8")

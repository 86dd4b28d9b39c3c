"""The judge of a report: what a picture is compared with, and what it says, with ComfyUI's own image encoder."""

import pytest
import torch
from nodes_for_tests import small_clip_vision
from tiny import TinyClip, seeded, tiny_hypernet, tiny_model

from unhype.nodes.cards import card_blocks, opinion_in_words, pairs_in_words, tally
from unhype.nodes.decoding import decoder
from unhype.nodes.judge import judge
from unhype.training.compare import Pair, compare
from unhype.training.drawing import Drawing
from unhype.training.judge import Opinion, instead_of, opinion

DRAWING = Drawing(steps=3, cfg=3.0, width=64, height=64)
CONCEPTS = (("cat", "tree"), ("house cat", "hut"), ("Jane Doe", "a woman"), ("smoke", ""))

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture
def clip_vision():
    """ComfyUI's CLIP_VISION, small, with random weights."""
    return small_clip_vision()


@pytest.mark.parametrize(
    ("text", "nearest", "kind", "expected"),
    [
        ("a photo of a cat on a sofa", "cat", "object", "a photo of a tree on a sofa"),
        ("Two CATS and a house cat", "cat", "object", "Two tree and a hut"),
        ("a kitten asleep", "cat", "object", "a photo of a tree"),
        ("a cattle farm", "cat", "object", "a photo of a tree"),
        ("Jane Doe at the beach", "cat", "person", "a woman at the beach"),
        ("a harbour, style of Jane Doe", "cat", "style", "a harbour, style of a woman"),
        ("smoke over a cat", "smoke", "object", ""),
        ("fumes", "smoke", "object", ""),
        ("a kitten asleep", None, "object", None),
    ],
)
def test_what_an_erased_picture_should_be_like(text, nearest, kind, expected):
    assert instead_of(text, CONCEPTS, nearest, kind) == expected


def test_a_file_that_names_no_concept_has_nothing_to_compare_with():
    assert instead_of("a cat", (), None, "object") is None


def test_the_opinion_is_the_cosine_of_the_encoders_vectors(clip_vision):
    see = judge(clip_vision)
    before, other = (torch.rand(48, 48, 3, generator=seeded(number)) for number in (1, 2))
    stayed, turned = (opinion(see, "a tree", before, after, other) for after in (before, other))
    assert (stayed.to_before, turned.to_instead) == (pytest.approx(1), pytest.approx(1))
    assert stayed.to_instead == pytest.approx(turned.to_before)
    assert stayed.to_instead < 0.999
    assert (stayed.gone, turned.gone) == (False, True)


def test_only_erased_prompts_are_judged_and_progress_counts_their_third_picture(clip_vision):
    model, clip = tiny_model(), TinyClip()
    trained = tiny_hypernet(model, size=0.5, dead_zone=0.0)  # everything is erased; the file holds no embeddings
    seen, texts = [], ["a cat", "a dog"]

    def note(done, total, pair=None):
        seen.append((done, total))

    judged = compare(model, clip, trained, texts, DRAWING, decoder(model, None), note, judge(clip_vision))
    plain = compare(model, clip, trained, texts, DRAWING, decoder(model, None), lambda *_: None)
    assert [pair.opinion and pair.opinion.instead for pair in judged] == ["a tree", None]
    assert seen[-1] == ((2 * 2 + 1) * DRAWING.steps,) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    for one, other in zip(judged, plain, strict=True):
        assert torch.equal(one.after, other.after)
        assert other.opinion is None


def test_the_page_and_the_words_tell_the_judges_view():
    grey = torch.zeros(8, 8, 3)
    pair = Pair("a cat", True, "2 times the dead zone", grey, grey + 0.25, False, 0.25)
    gone, stayed = Opinion("a tree", 0.6, 0.9), Opinion("", 0.9, 0.6)
    pairs = [pair._replace(opinion=gone), pair._replace(opinion=stayed)]
    assert opinion_in_words(pairs[0]) == "judge: 0.60 like before, 0.90 like 'a tree'"
    assert opinion_in_words(pairs[1]) == "judge: 0.90 like before, 0.60 like an empty prompt"
    assert tally(pairs).endswith("Judge: 1 of 2 more like what they turn into than like before.")
    assert "(2 times the dead zone; judge: 0.60 like before, 0.90 like 'a tree')" in pairs_in_words(pairs)
    assert card_blocks(pairs[:1])[-1].height > card_blocks([pair])[-1].height
    assert "judge" not in pairs_in_words([pair]).lower()

"""The similarity check of Erasure Report: what a picture is compared with, by ComfyUI's own image encoder."""

import pytest
import torch
from nodes_for_tests import small_clip_vision
from tiny import TinyClip, detector_of, embedding, seeded, tiny_eraser, tiny_model

from unhype.evaluation.cards import card_blocks, pairs_in_words, resemblance_in_words, similarity_in_words, tally
from unhype.evaluation.compare import Pair, compare
from unhype.evaluation.decoding import decoder
from unhype.evaluation.similarity import Similarity, mapping_prompt, picture_encoder, similarity
from unhype.training.sampling import Drawing

DRAWING = Drawing(steps=2, cfg=3.0, width=64, height=64)
CONCEPTS = (("cat", "tree"), ("house cat", "hut"), ("Jane Doe", "a woman"), ("smoke", ""))

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


@pytest.fixture(scope="module")
def encoder():
    """Of ComfyUI's CLIP_VISION, small, with random weights."""
    return picture_encoder(small_clip_vision())


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
        ("a kitten asleep", "cat", "of another version", "a photo of a tree"),
    ],
)
def test_the_mapping_prompt(text, nearest, kind, expected):
    assert mapping_prompt(text, CONCEPTS, nearest, kind) == expected


def test_a_file_without_concepts_has_no_mapping_prompt():
    assert mapping_prompt("a cat", (), None, "object") is None


def test_similarity_is_the_cosine_of_the_encoders_vectors(encoder):
    before, other = (torch.rand(48, 48, 3, generator=seeded(number)) for number in (1, 2))
    stayed, turned = (similarity(encoder, "a tree", before, after, other) for after in (before, other))
    assert (stayed.to_before, turned.to_mapping) == (pytest.approx(1), pytest.approx(1))
    assert stayed.to_mapping == pytest.approx(turned.to_before)
    assert stayed.to_mapping < 0.999
    assert (stayed.gone, turned.gone) == (False, True)


def test_without_a_clip_vision_there_is_no_encoder():
    assert picture_encoder(None) is None


def test_only_erased_prompts_are_rated_and_progress_counts_their_third_picture(encoder):
    model, clip = tiny_model(), TinyClip()
    progress, texts = [], ["a cat", "a dog", "a boat"]
    cat, dog, boat = (embedding(clip.encode_from_tokens_scheduled(text)) for text in texts)
    # The file holds no embeddings, so a prompt that doesn't name the concept has no nearest one.
    eraser = tiny_eraser(model, size=0.5, detector=detector_of([cat, dog], [boat]))

    def note(done, total, pair=None):
        progress.append((done, total))

    rated = compare(model, clip, eraser, texts, DRAWING, decoder(model, None), note, encoder)
    plain = compare(model, clip, eraser, texts, DRAWING, decoder(model, None), lambda *_: None)
    assert [pair.similarity and pair.similarity.mapping for pair in rated] == ["a tree", None, None]
    assert [pair.erased for pair in rated] == [True, True, False]
    assert progress[-1] == ((2 * 3 + 1) * DRAWING.steps,) * 2
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    for one, other in zip(rated, plain, strict=True):
        assert torch.equal(one.after, other.after)
        assert other.similarity is None


def test_page_and_text_show_the_similarity():
    grey = torch.zeros(8, 8, 3)
    pair = Pair("a cat", True, "score 2 of 1", grey, grey + 0.25, False, 0.25)
    gone, stayed = Similarity("a tree", 0.6, 0.9), Similarity("", 0.9, 0.6)
    pairs = [pair._replace(similarity=gone), pair._replace(similarity=stayed)]
    assert similarity_in_words(pairs[0]) == "similarity: 0.60 to before, 0.90 to 'a tree'"
    assert similarity_in_words(pairs[1]) == "similarity: 0.90 to before, 0.60 to an empty prompt"
    assert tally(pairs).endswith("1 of 2 erased pictures look more like the replacement than like before.")
    assert "(score 2 of 1; similarity: 0.60 to before, 0.90 to 'a tree')" in pairs_in_words(pairs)
    assert card_blocks(pairs[:1])[-1].height > card_blocks([pair])[-1].height
    assert "similarity" not in pairs_in_words([pair]).lower()
    assert [resemblance_in_words(each) for each in (*pairs, pair)] == [
        "looks like 'a tree'",
        "still looks like before",
        "",
    ]

"""Neighbours of the erased concepts: which nouns count, and what they take back."""

from dataclasses import replace

import pytest
import torch
from core_parts import POOLED, full_eraser, normal, small_eraser

from unhype.hypernet.detector import Detector
from unhype.hypernet.files import load, save
from unhype.hypernet.neighbours import Neighbours
from unhype.hypernet.record import HypernetFileError
from unhype.training.detector_fit import fit_detector, neighbours_of, unlike
from unhype.training.nouns import neighbour_prompts

SHIP, BOAT = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])


def detector(neighbours=True):
    """A detector of one concept at `SHIP`, which scores by the first number, with `BOAT` as its neighbour."""
    near = Neighbours(3 * BOAT.unsqueeze(0), 2 * SHIP.unsqueeze(0)) if neighbours else None
    return Detector(torch.tensor([[1.0, 0.0]]), torch.zeros(1), near)


def test_what_is_closer_to_a_neighbour_is_not_detected():
    sailboat, frigate = torch.tensor([1.2, 1.2]), torch.tensor([1.2, 0.2])
    assert detector(neighbours=False)(torch.stack([sailboat, frigate])).tolist() == pytest.approx([1.2, 1.2])
    scores = detector()(torch.stack([sailboat, frigate]))
    assert scores[0] < 1
    assert scores[1] == pytest.approx(1.2)


def test_a_score_as_high_as_of_the_name_itself_is_not_disputed():
    assert detector()(torch.tensor([[1.7, 5.0]])) == pytest.approx(1.7)


def test_scores_below_the_threshold_stay():
    assert detector()(torch.tensor([[0.4, 0.8]])) == pytest.approx(0.4)


def test_length_does_not_count():
    near = detector().neighbours
    assert near.closer(torch.stack([SHIP, 9 * SHIP, BOAT, BOAT / 9])).flatten().tolist() == [False, False, True, True]


def test_the_nearest_nouns_come_first_and_those_that_may_be_other_words_for_a_concept_are_left_out():
    nouns = torch.tensor([[1.0, 0.1], [0.7, 0.7], [-1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    assert neighbours_of(SHIP.unsqueeze(0), nouns)[0][:2] == [0, 1]
    assert unlike(SHIP.unsqueeze(0), nouns) == [2, 3, 4]
    assert unlike(SHIP.unsqueeze(0), nouns, 0.75) == [1, 2, 3, 4]


def test_the_fit_takes_the_nearest_nouns_into_the_file():
    wordings = [normal(6, 8, seed=1) * 0.1 + 4 * torch.eye(8)[0]]
    nouns = torch.stack([torch.cat([wordings[0][:1] * 0.8 + torch.eye(8)[1:2], normal(30, 8, seed=2)])])
    benign, held_out = normal(50, 8, seed=3), normal(40, 8, seed=4).unsqueeze(0)
    arguments = wordings, [torch.zeros(0, 8)], benign, held_out
    assert fit_detector(*arguments).neighbours is None
    found = fit_detector(*arguments, nouns=nouns)
    assert 1 <= len(found.neighbours.embeddings) < 31
    assert any(torch.equal(row, nouns[0, 0]) for row in found.neighbours.embeddings)
    assert torch.equal(found.neighbours.own, wordings[0].mean(0, keepdim=True))
    assert found.scores(nouns[0, :1]) < fit_detector(*arguments).scores(nouns[0, :1])


def test_a_file_brings_them_back(tmp_path):
    eraser = full_eraser()
    save(eraser, tmp_path / "own.safetensors")
    loaded = load(tmp_path / "own.safetensors")
    assert loaded.record.text_encoder.neighbours == 3
    c = normal(40, POOLED, seed=4)
    assert loaded.detector.neighbours.closer(c).any()
    assert torch.equal(loaded.detector.scores(c), eraser.detector.scores(c))


def test_a_file_whose_number_of_them_is_wrong_is_refused(tmp_path):
    eraser = full_eraser()
    for number in (2, -1):
        encoder = replace(eraser.record.text_encoder, neighbours=number)
        save(replace(eraser, record=replace(eraser.record, text_encoder=encoder)), tmp_path / "own.safetensors")
        with pytest.raises(HypernetFileError):
            load(tmp_path / "own.safetensors")


def test_a_file_without_embeddings_for_them_is_refused(tmp_path):
    eraser = small_eraser(detector=Detector(normal(2, POOLED), torch.zeros(2)))
    encoder = replace(eraser.record.text_encoder, neighbours=3)
    save(replace(eraser, record=replace(eraser.record, text_encoder=encoder)), tmp_path / "own.safetensors")
    with pytest.raises(HypernetFileError, match="neighbours"):
        load(tmp_path / "own.safetensors")


MANY = [(f"thing{number}", "") for number in range(12)]


def nouns_of(*concepts, kind="object"):
    """All nouns, which these and twelve other concepts get."""
    return " | ".join(neighbour_prompts([*((concept, "") for concept in concepts), *MANY], kind))


def test_kinds_of_a_concept_and_the_concept_itself_are_no_neighbours():
    assert "hummingbird" in nouns_of("cat")
    assert "hummingbird" not in nouns_of("bird")
    assert "hummingbird" not in nouns_of("cat", "a wild Bird")
    assert "hummingbird" not in nouns_of("hummingbird")
    assert "pistol" in nouns_of("cat")
    assert not any(word in nouns_of("gun") for word in ("pistol", "rifle", "revolver"))
    assert not any(word in nouns_of("nudity") for word in ("belly", "underwear", " woman"))


def test_people_and_styles_have_none():
    assert neighbour_prompts([("Ada Lovelace", "")], "person") == ()
    assert neighbour_prompts([("Cubism", "")], "style") == ()


def test_every_noun_comes_once():
    prompts = neighbour_prompts(MANY, "object")
    assert len(prompts) == len(set(prompts)) > 1000


def test_a_few_concepts_have_fewer_nouns_and_the_same_prompts():
    """What repeats from concept to concept is encoded once."""
    cat, lamp = (set(neighbour_prompts([(name, "")], "object")) for name in ("cat", "lava lamp"))
    assert len(cat) == len(lamp) == 300
    assert len(cat & lamp) > 280
    assert cat < set(neighbour_prompts([("cat", ""), *MANY], "object"))

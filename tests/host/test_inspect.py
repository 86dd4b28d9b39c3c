"""The score report: Inspect Prompt's lines, bars and outputs."""

from dataclasses import replace

import pytest
import torch
from chunks import concat, is_base, text, without_regressor
from tiny import POOLED

import nodes
from unhype.evaluation.bars import bar_picture
from unhype.evaluation.detection import detect, prompt_result, report_text, shown_score
from unhype.evaluation.other_text import other_text
from unhype.nodes.inspect import InspectPrompt

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


FOREIGN = [[text(50)[0][0], {"pooled_output": torch.ones(1, POOLED + 8)}]]


def test_a_detection_names_the_chunk_and_its_concept(texts):
    found = detect(texts.eraser, concat(texts.boat, texts.dog))
    assert [detection.erased for detection in found] == [False, True]
    assert found[0].score < 1 <= found[1].score
    assert (found[1].concept, round(found[1].similarity, 4)) == ("dog", 1.0)
    lines = report_text(found).splitlines()
    assert lines[0] == "Erased: 1 of 2 parts."
    assert lines[1].startswith("Part 1: nearest to ")
    assert lines[1].endswith("score 0.01 (erased from 1 on): stays as it is.")
    assert lines[2] == "Part 2: nearest to 'dog' (1.00), score 4 (erased from 1 on): erased."


def test_detections_are_those_of_apply(model, texts):
    for positive in (texts.cat, texts.boat, concat(texts.boat, texts.dog), concat(texts.boat, texts.lamp)):
        erased = any(detection.erased for detection in detect(texts.eraser, positive))
        assert is_base(model, texts.eraser, positive) == (not erased)


def test_lines_for_chunks_without_text_or_without_an_embedding(texts):
    (nothing,) = nodes.ConditioningZeroOut().zero_out(texts.cat)
    pooled_only = without_regressor(texts.eraser)
    assert "The prompt: no text." in report_text(detect(texts.eraser, nothing))
    assert "The prompt: no embedding that this eraser takes." in report_text(detect(pooled_only, FOREIGN))
    assert "Prompt 2: " in report_text(detect(pooled_only, texts.cat + texts.boat))


def test_a_file_without_a_detector_is_said_to_be_applied_to_every_prompt(model, texts):
    imported = replace(texts.eraser, detector=None, regressor=None, concept_embeddings=None)
    found = detect(imported, texts.boat)
    assert report_text(found).splitlines() == [
        "Erased: 1 of 1 parts.",
        "The prompt: applied. This file has no detector, so it is applied to every prompt.",
    ]
    assert prompt_result(found) == (True, "no detector in the file: applied to every prompt")
    assert bar_picture(found)
    assert not is_base(model, imported, texts.boat)


def test_the_bar_of_an_erased_chunk_passes_the_threshold(texts):
    found = detect(texts.eraser, concat(texts.boat, texts.dog))
    picture = bar_picture(found)
    pixels = list(zip(*[iter(picture.tobytes())] * 3, strict=True))
    red = [n % picture.width for n, pixel in enumerate(pixels) if pixel == (200, 60, 50)]
    grey = [n % picture.width for n, pixel in enumerate(pixels[picture.width * 50 :]) if pixel == (120, 140, 160)]
    assert grey
    assert max(red) > max(grey)


def test_the_node_gives_text_and_picture_and_shows_both(texts):
    node = InspectPrompt.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    output = node.execute(unhype=texts.eraser, conditioning=concat(texts.boat, texts.dog))
    text, picture = output.args
    assert text.startswith("Erased: 1 of 2 parts.")
    assert picture.shape[0] == 1
    assert picture.shape[3] == 3
    assert 0 <= picture.min() < picture.max() <= 1
    assert output.ui["text"] == (text,)
    assert len(output.ui["images"]) == 1


def test_a_score_below_the_threshold_is_not_rounded_up_to_it():
    assert [shown_score(score) for score in (0.01, 0.5, 0.997, 1.0, 2.34)] == ["0.01", "0.5", "0.99", "1", "2.3"]


def test_text_that_enters_beside_the_prompt_has_a_line_of_its_own(texts):
    def with_others(boxes=(), control=None):
        values = {"gligen": ("position", None, [(text[0][1]["pooled_output"], 8, 8, 0, 0) for text in boxes])}
        if control is not None:
            values |= {"cross_attn_controlnet": control[0][0], "pooled_output_controlnet": None}
        return [[tokens, {**former, **values}] for tokens, former in texts.boat]

    assert other_text(texts.eraser, texts.cat) == []
    assert other_text(texts.eraser, with_others([texts.cat, texts.lamp])) == [
        "GLIGEN box 1: erased: the box is left out.",
        "GLIGEN box 2: stays as it is.",
    ]
    assert other_text(texts.eraser, with_others(control=texts.cat))[-1].endswith("erased: it reads nothing there.")
    assert other_text(texts.eraser, with_others(control=texts.lamp))[-1].endswith("stays as it is.")
    unreadable = replace(texts.eraser, detector=None)
    assert other_text(unreadable, with_others([texts.cat]))[0].endswith("can't be read. 'unknown_prompts' decides.")
    pictures = [[tokens, {**values, "unclip_conditioning": []}] for tokens, values in texts.boat]
    assert InspectPrompt.execute(texts.eraser, pictures).args[0].endswith("A picture as a prompt: it isn't checked.")

import pytest

from benchmarks.server import ComfyServer, PromptError, ServerError

PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "server"}},
}


def test_a_prompt_runs_and_its_pictures_are_found(server):
    pictures = server.pictures(server.run(PICTURE), "2")
    assert len(pictures) == 2
    assert all(picture.is_file() for picture in pictures)


def test_a_refused_prompt_names_the_node_and_the_reason(server):
    wrong = {"1": PICTURE["1"], "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "server"}}}
    with pytest.raises(PromptError, match=r"node 2 \(SaveImage\): .*images"):
        server.queue(wrong)


def test_an_unknown_node_is_named(server):
    with pytest.raises(PromptError, match="NoSuchNode"):
        server.queue({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_failing_node_is_reported_in_its_own_words(server):
    image = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
    mask = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 8, "height": 8}}
    crop = {"class_type": "MaskComposite", "inputs": {"destination": ["2", 0], "source": ["2", 0], "x": 0, "y": 0}}
    crop["inputs"]["operation"] = "add"
    assert server.run({"2": mask, "3": crop, "4": {"class_type": "MaskPreview", "inputs": {"mask": ["3", 0]}}, "1": image})


def test_a_comfyui_that_dies_shows_its_log(tmp_path):
    tree = tmp_path / "broken"
    tree.mkdir()
    (tree / "main.py").write_text("raise SystemExit('no such luck')\n")
    with pytest.raises(ServerError, match="no such luck"), ComfyServer(tmp_path / "base", tree=tree):
        pass

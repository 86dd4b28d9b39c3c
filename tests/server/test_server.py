import time

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
    text = {"string": "a", "regex_pattern": "(", "replace": "b"}
    broken = {
        "1": {"class_type": "RegexReplace", "inputs": text},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    with pytest.raises(PromptError, match=r"node 1 \(RegexReplace\): .*unterminated subpattern"):
        server.run(broken)


def test_a_comfyui_that_dies_shows_its_log(tmp_path):
    tree = tmp_path / "broken"
    tree.mkdir()
    (tree / "main.py").write_text("raise SystemExit('no such luck')\n")
    with pytest.raises(ServerError, match="no such luck"), ComfyServer(tmp_path / "base", tree=tree):
        pass


def test_an_interrupted_prompt_raises(server):
    slow = {"0": {"class_type": "EmptyImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1, "color": 255}}}
    for step in range(60):
        blur = {"image": [str(step), 0], "blur_radius": 12, "sigma": 3.0}
        slow[str(step + 1)] = {"class_type": "ImageBlur", "inputs": blur}
    slow["61"] = {"class_type": "PreviewImage", "inputs": {"images": ["60", 0]}}
    prompt_id = server.queue(slow)
    while not server.get("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(0.3)  # the server forgets an interrupt that comes before the prompt's first node
    server.interrupt()
    with pytest.raises(PromptError, match="interrupted"):
        server.wait(prompt_id)

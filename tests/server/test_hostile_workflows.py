"""Workflow JSON that nobody's browser would send, on a running ComfyUI: each is answered, and the server goes on."""

import json

import pytest
from graphs import training_prompt
from tiny import tiny_eraser, tiny_model

from benchmarks.server import PromptError
from unhype.hypernet.files import load, save

WRONG = [None, True, -1, 1e308, "", "x", [], {}, [[]], {"__value__": {}}, ["no such node", 0], ["load", 99]]
MARKS = "\u202e\u2066\u200f\u200b\ufeff"


@pytest.fixture(scope="module")
def hypernet(server):
    """A hypernet in models/unhype, and a file beside that folder that no workflow may reach."""
    folder = server.base / "models" / "unhype"
    folder.mkdir(exist_ok=True)
    paths = [folder / "mine.safetensors", folder.parent / "outside.safetensors"]
    for path in paths:
        save(tiny_eraser(tiny_model(), width=768), path)
    yield paths[0].name
    for path in paths:
        path.unlink()


def answer(server, prompt):
    """The server's error message for a prompt, or None when the prompt ran."""
    try:
        server.run(prompt)
    except PromptError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def still_there(server):
    """The server answers after every test, and nothing lies where nothing may be written."""
    yield
    assert server.run({"1": {"class_type": "PreviewAny", "inputs": {"source": "here"}}})
    assert server.get("/prompt")["exec_info"]["queue_remaining"] == 0
    written = {path.name for path in server.base.iterdir()}
    known = {"custom_nodes", "models", "input", "output", "temp", "user", "server.log", "unhype", "loras"}
    assert {name for name in written if not name.startswith("comfyui.db")} <= known


@pytest.fixture
def whole(server, checkpoint, hypernet):
    """A prompt with all four nodes, in which every input is one to spoil."""
    prompt, inputs = training_prompt(server)
    inputs |= {"name": "hostile", "steps": 1}
    (loader,) = [name for name, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple"]
    load = {"class_type": "UnHypeLoadHypernet", "inputs": {"hypernet": hypernet}}
    apply = {"model": [loader, 0], "unhype": ["load", 0], "strength": 1.0, "keep_others_exact": True}
    lora = {"unhype": ["load", 0], "clip": ["clip", 0], "text": "a cat", "strength": 1.0}
    return prompt | {
        "load": load,
        "apply": {"class_type": "UnHypeApplyErasure", "inputs": apply},
        "lora": {"class_type": "UnHypeHypernetToLora", "inputs": lora},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["lora", 0]}},
        "show too": {"class_type": "PreviewAny", "inputs": {"source": ["apply", 0]}},
    }


def only(prompt, node):
    """The part of a prompt that ends in one node."""
    kept, queue = {}, [node]
    while queue:
        name = queue.pop()
        if name in prompt and name not in kept:
            kept[name] = prompt[name]
            links = [value for value in prompt[name]["inputs"].values() if isinstance(value, list) and len(value) == 2]
            queue += [link[0] for link in links if isinstance(link[0], str)]
    return kept


# Of Train Erasure those that no wrong value makes a right one of: what is right trains.
SPOILT = {
    "UnHypeLoadHypernet": ["hypernet"],
    "UnHypeApplyErasure": ["model", "unhype", "strength", "keep_others_exact"],
    "UnHypeHypernetToLora": ["unhype", "clip", "text", "strength"],
    "UnHypeTrainErasure": ["model", "clip", "start_from", "kind", "objective", "width"],
}


@pytest.mark.parametrize("kind", SPOILT)
def test_values_of_the_wrong_type_are_answered(server, whole, kind):
    (name,) = [name for name, node in whole.items() if node["class_type"] == kind]
    text = json.dumps(only(whole, {"apply": "show too", "lora": "show"}.get(name, name)))
    answers = []
    for given in SPOILT[kind]:
        for wrong in WRONG:
            if kind == "UnHypeTrainErasure" and (given, wrong) == ("start_from", None):
                continue  # as if nothing were connected
            prompt = json.loads(text)
            prompt[name]["inputs"][given] = wrong
            answers.append(answer(server, prompt))
    assert all(words is None or len(words) < 5000 for words in answers)
    # Of a prompt with a wrong value the server still runs what does not need it, such as Load UnHype Hypernet.
    assert sum(words is not None for words in answers) > len(answers) / 4


SOCKETS = {
    "UnHypeApplyErasure": ("Apply Concept Erasure", ["model", "unhype"]),
    "UnHypeHypernetToLora": ("Hypernet to LoRA", ["unhype", "clip"]),
    "UnHypeTrainErasure": ("Train Erasure", ["model", "clip", "start_from", "vae"]),
}


@pytest.mark.parametrize("kind", SOCKETS)
def test_a_value_where_a_link_belongs_is_reported_by_node_and_input(server, whole, kind):
    (name,) = [name for name, node in whole.items() if node["class_type"] == kind]
    text = json.dumps(only(whole, {"apply": "show too", "lora": "show"}.get(name, name)))
    node, sockets = SOCKETS[kind]
    for socket in sockets:
        for wrong in ("x", 1.5, True, {"a": 1}):
            prompt = json.loads(text)
            prompt[name]["inputs"][socket] = wrong
            assert f"{node}, '{socket}': connect the output of another node here" in answer(server, prompt)


OUTSIDE = ["../outside.safetensors", "..\\outside.safetensors", "mine.safetensors/../../outside.safetensors"]


@pytest.mark.parametrize("name", [*OUTSIDE, "/etc/passwd", "\x00", "a" * 100_000], ids=range(6))
def test_no_file_outside_the_folder_is_read(server, hypernet, name):
    assert answer(server, {"1": {"class_type": "UnHypeLoadHypernet", "inputs": {"hypernet": name}}}) is not None


@pytest.mark.parametrize(
    ("concepts", "words"),
    [
        ("x" * 100_000, "longer than 300 characters"),
        ("\n" * 100_000, "There is no concept to erase"),
        ("-> " * 33_000, "not of the form"),
        (MARKS, "There is no concept to erase"),
        ("\n".join(f"concept {number} -> tree" for number in range(10_000)), "10000 concepts are more than one"),
        ("a\u0301" * 50_000, "longer than 300 characters"),
    ],
    ids=["long", "empty lines", "arrows", "marks", "many", "accents"],
)
def test_a_concept_list_that_cannot_be_used_says_why(server, whole, concepts, words):
    (key,) = [key for key, node in whole.items() if node["class_type"] == "UnHypeTrainErasure"]
    whole[key]["inputs"]["concepts"] = concepts
    message = answer(server, only(whole, key))
    assert words in message
    assert len(message) < 2000


def test_a_name_that_climbs_and_marks_around_a_concept_train_a_file_in_its_folder(server, whole):
    (key,) = [key for key, node in whole.items() if node["class_type"] == "UnHypeTrainErasure"]
    cat = f"\n\n{MARKS}\U0001f408\x00 ->\t{MARKS}\U0001f333\x1b \r\n\n# {'x' * 5000}\n"
    whole[key]["inputs"] |= {"concepts": cat, "name": "../../../climbed"}
    assert answer(server, only(whole, key)) is None
    (path,) = server.base.rglob("*climbed*")
    assert path.parent == server.base / "models" / "unhype"
    assert load(path).record.concepts == (("\U0001f408", "\U0001f333"),)
    path.unlink()


TEXTS = ["", "\n" * 1000, MARKS, "\U0001f408" * 1000, "cat " * 25_000, "(" * 2000, "\x00"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_can_be_asked_for_as_a_lora(server, whole, text):
    whole["lora"]["inputs"]["text"] = text
    message = answer(server, only(whole, "show"))
    assert message is None or "UnHypeHypernetToLora" in message

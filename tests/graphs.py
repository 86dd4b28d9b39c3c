"""The workflows that the pack ships, as small as tests on a live server need them."""

import json

from benchmarks.graph import WORKFLOWS, to_prompt

SIDE = 64


def read(name):
    return json.loads(WORKFLOWS[name].read_text("utf-8"))


def kinds(path):
    """The node types of a workflow's file."""
    return [node["type"] for node in json.loads(path.read_text("utf-8"))["nodes"]]


def checkpoint_name():
    """The checkpoint that the workflows name."""
    (loader,) = (node for node in read("train_sd15")["nodes"] if node["type"] == "CheckpointLoaderSimple")
    return loader["widgets_values"][0]


def nodes_of(prompt, kind):
    """The API entries of one node type, in the order of the graph."""
    return [entry for entry in prompt.values() if entry["class_type"] == kind]


def reduced(prompt):
    """The same prompt in small: a few steps, tiny pictures."""
    for entry in prompt.values():
        inputs = entry["inputs"]
        if entry["class_type"] == "UnHypeTrainErasure":
            inputs |= {"steps": 4, "batch": 2, "width": SIDE, "height": SIDE, "checkpoint_every": 2, "preview_every": 4}
        elif entry["class_type"] == "KSampler":
            inputs |= {"steps": 2}
        elif entry["class_type"] == "UnHypeErasureReport":
            inputs |= {"steps": 2, "width": SIDE, "height": SIDE}
        elif entry["class_type"] in ("EmptyLatentImage", "EmptySD3LatentImage"):
            inputs |= {"width": SIDE, "height": SIDE}
    return prompt


def training_prompt(server):
    """The training workflow in small, and the inputs of its Train Erasure to change."""
    prompt = reduced(to_prompt(read("train_sd15"), server.object_info()))
    (trainer,) = nodes_of(prompt, "UnHypeTrainErasure")
    # CLIP-L needs a quarter of a second for each of eight hundred prompts.
    prompt["clip"] = {"class_type": "UnHypeTestCLIP", "inputs": {}}
    trainer["inputs"]["clip"] = ["clip", 0]
    return prompt, trainer["inputs"]


def with_small_clip(prompt):
    """The same prompt with the tests' own text encoder instead of the loader's."""
    for number, entry in prompt.items():
        if entry["class_type"] == "DualCLIPLoader":
            prompt[number] = {"class_type": "UnHypeTestCLIP", "inputs": {}}
    return prompt


def small_demo():
    """The demo as people open it, on the small random checkpoint and text encoder instead of the lab's."""
    workflow = read("demo")
    (loader,) = (node for node in workflow["nodes"] if node["type"] == "UnHypeLabLoader")
    loader |= {"type": "CheckpointLoaderSimple", "widgets_values": [checkpoint_name()]}
    loader["inputs"] = [{"name": "ckpt_name", "type": "COMBO", "widget": {"name": "ckpt_name"}, "link": None}]
    loader["properties"] = {}
    with_own_clip(workflow, loader)
    for node in workflow["nodes"]:  # as `reduced` does with prompts
        if node["type"] == "UnHypeTrainErasure":
            node["widgets_values"] = [SIDE if value == 128 else value for value in node["widgets_values"]]
        elif node["type"] == "KSampler":
            node["widgets_values"][2] = 2
        elif node["type"] == "EmptyLatentImage":
            node["widgets_values"][:2] = [SIDE, SIDE]
    return workflow


def with_own_clip(workflow, loader):
    """Let the tests' own text encoder stand in for that of a loader node of a workflow."""
    (slot,) = (number for number, output in enumerate(loader["outputs"]) if output["type"] == "CLIP")
    left, top = loader["pos"]
    clip = {"id": workflow["last_node_id"] + 1, "type": "UnHypeTestCLIP", "pos": [left, top - 160], "size": [300, 60]}
    clip |= {"flags": {}, "order": 0, "mode": 0, "inputs": [], "widgets_values": [], "properties": {}}
    clip["outputs"] = [{"name": "CLIP", "type": "CLIP", "links": loader["outputs"][slot]["links"]}]
    loader["outputs"][slot]["links"] = []
    for link in workflow["links"]:
        if link[1:3] == [loader["id"], slot]:
            link[1:3] = [clip["id"], 0]
    workflow["nodes"].append(clip)
    workflow["last_node_id"] = clip["id"]

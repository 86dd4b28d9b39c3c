"""The workflows that the pack ships: whole, valid on a live ComfyUI, and run there from training to pictures."""

import json
from itertools import combinations

import numpy
import pytest
from graphs import SIDE, kinds, nodes_of, read, reduced, training_prompt, with_small_clip
from PIL import Image

from benchmarks.environment import ROOT
from benchmarks.graph import NOTES, WORKFLOWS, to_prompt, widget_values
from benchmarks.thumbnails import thumbnails
from unhype.hypernet.files import load, open_checked

NAMES = (
    "erase_sd15",
    "train_sd15",
    "apply_sd15",
    "before_after_sd15",
    "report_sd15",
    "demo",
    "train_flux",
    "apply_flux",
)


def test_every_workflow_is_known_here_and_has_a_thumbnail():
    assert set(WORKFLOWS) == set(NAMES)
    for path in WORKFLOWS.values():
        assert path.with_suffix(".jpg").is_file()


def test_what_people_install_has_no_workflow_that_needs_the_lab():
    for path in WORKFLOWS.values():
        if path.parent == ROOT / "workflows":
            assert not [kind for kind in kinds(path) if kind.startswith("UnHypeLab")]


def test_thumbnails_are_what_the_command_draws_from_the_labs_pictures():
    drawn = thumbnails()
    assert set(drawn) == set(NAMES)
    for name, expected in drawn.items():
        path = WORKFLOWS[name].with_suffix(".jpg")
        assert path.stat().st_size < 60_000
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (512, 512)  # cards are square
            distance = numpy.abs(numpy.asarray(picture, dtype=float) - numpy.asarray(expected, dtype=float))
        assert distance.mean() < 4, f"{name}: run `python3 dev.py thumbnails`"  # JPEG loses a little


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_a_whole_graph(name):
    workflow = read(name)
    assert workflow["version"] == 0.4
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    assert len(nodes) == len(workflow["nodes"])
    assert len(links) == len(workflow["links"])
    assert workflow["last_node_id"] >= max(nodes)
    assert workflow["last_link_id"] >= max(links)
    for number, origin, out, target, into, kind in links.values():
        source, sink = nodes[origin]["outputs"][out], nodes[target]["inputs"][into]
        assert number in source["links"]
        assert sink["link"] == number
        assert source["type"] == sink["type"] == kind
    used = [entry["link"] for node in nodes.values() for entry in node["inputs"] if entry.get("link") is not None]
    assert sorted(used) == sorted(links)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_laid_out_for_people(name):
    workflow = read(name)
    notes = [node for node in workflow["nodes"] if node["type"] in NOTES]
    assert notes
    assert all(len(note["widgets_values"][0]) > 200 for note in notes)
    title = 30
    for one, other in combinations(workflow["nodes"], 2):
        (x, y), (width, height) = one["pos"], one["size"]
        (u, v), (other_width, other_height) = other["pos"], other["size"]
        apart = x + width < u or u + other_width < x or y + height < v - title or v + other_height < y - title
        assert apart, f"{one['type']} {one['id']} and {other['type']} {other['id']} overlap"


def _widgets(node, info):
    """The inputs that have a widget, with their specs, in the order in which values are saved."""
    saved = {entry["name"] for entry in node["inputs"] if "widget" in entry}
    parts = info["input"]
    return [item for part in ("required", "optional") for item in parts.get(part, {}).items() if item[0] in saved]


def _check_value(value, spec):
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    if choices is not None:
        return isinstance(value, str) and (value in choices or value.endswith(".safetensors"))
    kind = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}[spec[0]]
    if not isinstance(value, kind) or (spec[0] != "BOOLEAN" and isinstance(value, bool)):
        return False
    return isinstance(value, (str, bool)) or options.get("min", value) <= value <= options.get("max", value)


@pytest.mark.parametrize("name", NAMES)
def test_every_node_exists_and_every_value_is_valid(name, server):
    info, workflow = server.object_info(), read(name)
    if "UnHypeLabLoader" not in info and name == "demo":
        pytest.skip("the lab's loader is not in this checkout")
    prompt = to_prompt(workflow, info)
    assert len(prompt) == sum(node["type"] not in NOTES for node in workflow["nodes"])
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        known = info[node["type"]]
        declared = {name for part in ("required", "optional") for name in known["input"].get(part, {})}
        assert {entry["name"] for entry in node["inputs"]} == declared
        # The nodes that show pictures had no outputs in older versions, and nobody links them.
        outputs = [output for output in node["outputs"] if output["links"] or known["output"]]
        assert [output["type"] for output in outputs] == known["output"][: len(outputs)]
        widgets = _widgets(node, known)
        seeds = sum(bool(len(spec) > 1 and spec[1].get("control_after_generate")) for _, spec in widgets)
        assert len(node.get("widgets_values", [])) == len(widgets) + seeds
        values = widget_values(node, known)
        for widget, spec in widgets:
            assert _check_value(values[widget], spec), f"{node['type']}: {widget} is {values[widget]!r}"
        linked = {entry["name"] for entry in node["inputs"] if entry.get("link") is not None}
        missing = set(known["input"].get("required", {})) - linked - set(values)
        assert not missing, f"{node['type']} lacks {missing}"


@pytest.fixture(scope="module")
def trained(server, checkpoint):
    """The history of the training workflow, run once, and the file that it names."""
    prompt, inputs = training_prompt(server)
    return server.run(prompt), server.base / "models" / "unhype" / f"{inputs['name']}.safetensors"


def test_training_writes_the_file_and_plots_its_loss(server, trained):
    entry, path = trained
    assert path.is_file()
    prompt, _ = training_prompt(server)
    (trainer,), (plotter,) = (
        [number for number, node in prompt.items() if node["class_type"] == kind]
        for kind in ("UnHypeTrainErasure", "LossGraphNode")
    )
    (plot,) = server.pictures(entry, plotter)
    assert plot.is_file()
    (page,) = server.pictures(entry, trainer)
    with Image.open(page) as image:
        assert image.width == 640
        # Two prompts, each before and after, lie above the curves.
        assert image.height > 500
    assert not list((server.base / "output" / "unhype" / "checkpoints").glob("*"))


def test_the_file_brings_back_the_graph_that_trained_it(trained):
    with open_checked(trained[1]) as file:
        graph = json.loads(file.metadata()["prompt"])
    assert nodes_of(graph, "UnHypeTrainErasure")[0]["inputs"]["name"] == trained[1].stem


def test_training_the_same_again_only_loads_the_file(server, trained):
    written, files = trained[1].stat().st_mtime_ns, set(trained[1].parent.iterdir())
    prompt, inputs = training_prompt(server)
    inputs["preview_every"] = 3  # shapes no step, but makes ComfyUI run the node again
    server.run(prompt)
    assert set(trained[1].parent.iterdir()) == files
    assert trained[1].stat().st_mtime_ns == written


def test_apply_draws_with_what_was_trained(server, trained):
    prompt = reduced(to_prompt(read("apply_sd15"), server.object_info()))
    (loader,) = nodes_of(prompt, "UnHypeLoadHypernet")
    assert loader["inputs"]["hypernet"] == trained[1].name
    (picture,) = server.pictures(server.run(prompt))
    with Image.open(picture) as image:
        assert image.size == (SIDE, SIDE)
        assert numpy.asarray(image).std() > 0


def test_inspect_shows_each_part_of_a_prompt_in_words_and_bars(server, trained):
    def text(words):
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": words}}

    prompt = {
        "clip": {"class_type": "UnHypeTestCLIP", "inputs": {}},
        "load": {"class_type": "UnHypeLoadHypernet", "inputs": {"hypernet": trained[1].name}},
        "first": text("a house"),
        "second": text("a cat"),
        "both": {
            "class_type": "ConditioningConcat",
            "inputs": {"conditioning_to": ["first", 0], "conditioning_from": ["second", 0]},
        },
        "inspect": {
            "class_type": "UnHypeInspectPrompt",
            "inputs": {"unhype": ["load", 0], "conditioning": ["both", 0]},
        },
    }
    entry = server.run(prompt)
    (words,) = entry["outputs"]["inspect"]["text"]
    assert [line.split(":")[0] for line in words.splitlines()[1:]] == ["Part 1", "Part 2"]
    # Only the first part has a pooled vector. A random text encoder rarely gets a regressor, and without one the
    # other part has no embedding.
    has_regressor = load(trained[1]).regressor is not None
    assert words.count("nearest to 'cat' (") == 1 + has_regressor
    assert ("Part 2: no embedding" in words) == (not has_regressor)
    (bars,) = server.pictures(entry, "inspect")
    with Image.open(bars) as image:
        assert image.width == 640


def test_the_report_is_drawn_of_what_was_trained(server, trained):
    prompt = reduced(to_prompt(read("report_sd15"), server.object_info()))
    (loader,), (report,) = (nodes_of(prompt, kind) for kind in ("UnHypeLoadHypernet", "UnHypeErasureReport"))
    assert loader["inputs"]["hypernet"] == trained[1].name
    (page,) = server.pictures(server.run(prompt))
    with Image.open(page) as image:
        assert image.width == 640
        assert image.height > 150 * len(report["inputs"]["prompts"].splitlines()) / 2


def test_a_program_sends_only_what_differs_from_the_defaults(server):
    """No input that has a default must be sent. What the defaults are, the host tests look at."""
    info = server.object_info()
    for kind, own in info.items():
        if kind.startswith("UnHype") and not kind.startswith(("UnHypeLab", "UnHypeTest")):
            with_widgets = {name: spec for name, spec in own["input"].get("required", {}).items() if len(spec) > 1}
            assert [name for name, spec in with_widgets.items() if spec[1].get("default")] == [], kind


@pytest.mark.parametrize(("strength", "same"), [(0.0, True), (3.0, False)])
def test_before_and_after_differ_by_the_eraser_alone(server, trained, strength, same):
    prompt = reduced(to_prompt(read("before_after_sd15"), server.object_info()))
    (apply,) = nodes_of(prompt, "UnHypeApplyErasure")
    # Four steps on random weights make no detector worth the name.
    apply["inputs"] |= {"strength": strength, "keep_others_exact": False}
    (picture,) = server.pictures(server.run(prompt))
    with Image.open(picture) as image:
        pixels = numpy.asarray(image)
    before, after = pixels[:, :SIDE], pixels[:, -SIDE:]
    assert pixels.shape[1] == 2 * SIDE + 8
    assert (before == after).all() == same


def test_both_samplers_get_one_seed(server):
    prompt = to_prompt(read("before_after_sd15"), server.object_info())
    before, after = nodes_of(prompt, "KSampler")
    assert before["inputs"]["seed"] == after["inputs"]["seed"] != 0
    differing = {name for name in before["inputs"] if before["inputs"][name] != after["inputs"][name]}
    assert differing == {"model"}


@pytest.fixture(scope="module")
def flux(server):
    """The files that the Flux workflows name, small and random, in the server's folders."""
    from checkpoint import write_flux, write_flux_vae
    from comfy.model_detection import detect_unet_config
    from safetensors.torch import load_file

    network = server.base / "models" / "diffusion_models" / "flux1-dev.safetensors"
    write_flux(network)
    if detect_unet_config(load_file(network), "")["num_heads"] != 1:
        pytest.skip("this ComfyUI takes no Flux smaller than the real width of 3072")
    write_flux_vae(server.base / "models" / "vae" / "ae.safetensors")
    yield
    for made in (server.base / "models" / "unhype").glob("no_cats_flux*"):
        made.unlink()


def test_flux_is_trained_and_draws_through_the_stock_loaders(server, flux):
    info = server.object_info()
    training = with_small_clip(reduced(to_prompt(read("train_flux"), info)))
    (trainer,) = nodes_of(training, "UnHypeTrainErasure")
    server.run(training)
    path = server.base / "models" / "unhype" / f"{trainer['inputs']['name']}.safetensors"
    assert load(path).record.family == "flux"
    drawing = with_small_clip(reduced(to_prompt(read("apply_flux"), info)))
    assert nodes_of(drawing, "UnHypeLoadHypernet")[0]["inputs"]["hypernet"] == path.name
    (apply,) = nodes_of(drawing, "UnHypeApplyErasure")
    drawn = []
    for strength in (0.0, 3.0):
        apply["inputs"] |= {"strength": strength, "keep_others_exact": False}
        (picture,) = server.pictures(server.run(drawing))
        with Image.open(picture) as image:
            assert image.size == (SIDE, SIDE)
            drawn.append(numpy.asarray(image))
    assert drawn[0].std() > 0
    assert (drawn[0] != drawn[1]).any()


def test_the_demo_runs_in_the_lab(server, demo_run):
    prompt, entry = demo_run
    saved = [number for number, node in prompt.items() if node["class_type"] in ("SaveImage", "PreviewImage")]
    pictures = [picture for number in saved for picture in server.pictures(entry, number)]
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (256, 256)

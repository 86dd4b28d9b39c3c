"""A running ComfyUI with a policy: what visitors queue is drawn through the eraser or refused with a sentence.

Three servers get the same graphs: one with a policy, one with the pack alone, one without the pack.
"""

import contextlib
import json
import re
import urllib.error
import urllib.request
import uuid

import comfy.sd
import pytest
import torch
from checkpoint import write_checkpoint, write_flux
from core_parts import normal
from policies import strict_eraser
from policy_graph import SIDE, Graph, Names
from policy_graphs import CASES as OF_COMFYUI
from policy_pack_graphs import CASES as OF_PACKS
from safetensors.torch import load_file, save_file

from benchmarks.environment import ROOT
from benchmarks.server import PACKS, ComfyServer, PromptError
from unhype.hypernet.files import save
from unhype.hypernet.lora import to_lora

TESTS = {"unhype_tests": ROOT / "tests" / "nodes_for_tests"}
NAMES = Names("small.safetensors", "some.safetensors", "flux.safetensors", "school.safetensors")
CASES = OF_COMFYUI | OF_PACKS
PREFIX = "This server draws only with the eraser 'school'. "


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that graphs name, by the folder of ComfyUI's that they belong into."""
    folder = tmp_path_factory.mktemp("files")
    whole = folder / "whole.safetensors"
    write_checkpoint(whole)
    model = comfy.sd.load_checkpoint_guess_config(str(whole), output_vae=False, output_clip=False)[0]
    # Without the text encoder, which is most of it: the tests bring a smaller one.
    parts = {name: part for name, part in load_file(whole).items() if not name.startswith("cond_stage_model")}
    whole.unlink()
    placed = {kind: folder / kind for kind in ("checkpoints", "loras", "diffusion_models", "unhype")}
    for path in placed.values():
        path.mkdir()
    save_file(parts, placed["checkpoints"] / NAMES.checkpoint)
    other = strict_eraser(model, "other", seed=3, width=768, chunk=77, size=0.02)
    save_file(to_lora(other, normal(768, seed=1), "a dog", 1.0), placed["loras"] / NAMES.lora)
    write_flux(placed["diffusion_models"] / NAMES.flux)
    save(strict_eraser(model, width=768, chunk=77), placed["unhype"] / NAMES.eraser)
    save(other, placed["unhype"] / "other.safetensors")
    return placed


def server_with(files, base, packs, policy=None, **options):
    """A server with the files, and a policy where visitors can't write: in its own folder, on hosts that have none
    where the environment says."""
    import folder_paths

    for kind, folder in files.items():
        (base / "models" / kind).mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            (base / "models" / kind / path.name).hardlink_to(path)
    if policy is not None:
        own = base / "user" / "__unhype" if hasattr(folder_paths, "get_system_user_directory") else base / "policy"
        own.mkdir(parents=True)
        (own / NAMES.eraser).hardlink_to(files["unhype"] / NAMES.eraser)
        (own / "policy.json").write_text(policy, "utf-8")
        if own.name == "policy":
            options["environment"] = {"UNHYPE_POLICY": str(own / "policy.json")}
    return ComfyServer(base, packs=packs, **options)


@pytest.fixture(scope="module")
def policed(files, tmp_path_factory):
    """A server with a policy."""
    policy = json.dumps({"erasers": [{"file": NAMES.eraser}]})
    with server_with(files, tmp_path_factory.mktemp("policed"), PACKS | TESTS, policy) as running:
        yield running


@pytest.fixture(scope="module")
def plain(files, tmp_path_factory):
    """A server with the pack."""
    with server_with(files, tmp_path_factory.mktemp("plain"), PACKS | TESTS) as running:
        yield running


@pytest.fixture(scope="module")
def bare(files, tmp_path_factory):
    """A server without the pack."""
    with server_with(files, tmp_path_factory.mktemp("bare"), TESTS) as running:
        yield running


def answer(server, prompt, **request):
    """What becomes of a graph: the latents that it saved, or the words of an error at run time."""
    for node in prompt.values():
        if node["class_type"] == "SaveLatent":  # another file each time: some hosts list nothing of a cached node
            node["inputs"]["filename_prefix"] = f"policy/{uuid.uuid4().hex}"
    prompt_id = server.post("/prompt", {"prompt": prompt, **request})["prompt_id"]
    try:
        entry = server.wait(prompt_id)
    except PromptError as error:
        return str(error)
    folder = server.base / "output"
    # By the node: which of two comes first, and with it the numbers of their files, is by chance.
    saved = [latent for _, output in sorted(entry["outputs"].items()) for latent in output.get("latents", ())]
    return [load_file(folder / latent["subfolder"] / latent["filename"])["latent_tensor"] for latent in saved]


def graph_of(name, erased=False):
    graph = Graph(NAMES, erased)
    CASES[name].build(graph)
    return dict(graph)


def equal(one, other):
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def kinds(plain):
    """The node classes of this ComfyUI."""
    return plain.object_info().keys()


@pytest.fixture
def given(request, kinds):
    """A case that this ComfyUI can run."""
    if (needed := CASES[request.param].needs) is not None and needed not in kinds:
        pytest.skip(f"this ComfyUI has no {needed}")
    return request.param


@pytest.mark.parametrize("given", CASES, indirect=True)
def test_a_graph_is_drawn_erased_or_refused(policed, plain, given):
    case, prompt = CASES[given], graph_of(given)
    before, found = answer(plain, prompt, **case.request), answer(policed, prompt, **case.request)
    assert isinstance(before, list), before
    if case.refused is not None:
        assert isinstance(found, str)
        assert re.search(case.refused, found), found
        assert found.count("unhype.PolicyError") == 1
        return
    assert isinstance(found, list), found
    reference = answer(plain, graph_of(case.like or given, erased=True))
    assert equal(found, reference)
    assert not equal(found, before)


@pytest.mark.parametrize("given", CASES, indirect=True)
def test_without_a_policy_a_graph_draws_as_without_the_pack(plain, bare, given):
    case, prompt = CASES[given], graph_of(given)
    assert equal(answer(plain, prompt, **case.request), answer(bare, prompt, **case.request))


def test_there_are_as_many_graphs_as_promised():
    assert len(CASES) >= 45


def test_the_console_says_what_is_enforced_and_what_is_not(policed, plain):
    (line,) = [line for line in log(policed).splitlines() if "UnHype policy:" in line and "policy.json" in line]
    for words in ("every graph draws with 'school' on Stable Diffusion 1.x (erases cat;", "families are refused"):
        assert words in line
    for words in ("prepare_sampling, BaseModel.apply_model", "--whitelist-custom-nodes", "--disable-api-nodes"):
        assert words in line
    assert "policy" not in log(plain)
    assert not {"UnHypeServerPolicy", "UnHypeServerRefusal"} & plain.object_info().keys()


def log(server):
    return server.log.read_text("utf-8", errors="replace")


def test_every_sampling_and_every_refusal_is_a_line_without_texts(policed):
    for name, words in (("KSampler with CFG", "draws with school."), ("loaded and sampled in a node", "is refused.")):
        prompt_id = policed.post("/prompt", {"prompt": graph_of(name)})["prompt_id"]
        with contextlib.suppress(PromptError):
            policed.wait(prompt_id)
        lines = [line for line in log(policed).splitlines() if f"graph {prompt_id}, node draw: Stable" in line]
        assert lines or name == "KSampler with CFG"  # that one may be in ComfyUI's cache
        assert all(words in line for line in lines)
    assert "draws with school." in log(policed)
    assert "a photo of a cat" not in log(policed)


def test_a_rewritten_graph_that_comes_back_stays_as_it_is(policed):
    first = policed.post("/prompt", {"prompt": graph_of("chain of LoRAs")})["prompt_id"]
    rewritten = policed.wait(first)["prompt"][2]
    added = [number for number, node in rewritten.items() if node["class_type"] == "UnHypeServerPolicy"]
    assert added == ["unhype_policy_load_0", "unhype_policy_lora_0", "unhype_policy_lora_2_0"]
    for node in rewritten.values():
        node.pop("is_changed", None)
    second = policed.post("/prompt", {"prompt": rewritten})["prompt_id"]
    entry = policed.wait(second)
    assert entry["prompt"][2].keys() == rewritten.keys()
    cached = next(message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")
    assert {*added, "draw"} <= set(cached)


def test_the_policys_node_is_kept_while_other_inputs_change(policed):
    prompt = graph_of("KSampler")
    policed.wait(policed.post("/prompt", {"prompt": prompt})["prompt_id"])
    prompt["draw"]["inputs"]["seed"] = 99
    entry = policed.wait(policed.post("/prompt", {"prompt": prompt})["prompt_id"])
    cached = next(message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")
    assert "unhype_policy_load_0" in cached
    assert "draw" not in cached


# Our own nodes are no way round


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"strength": 0.4, "unknown_prompts": "base"}])
def test_the_eraser_cannot_be_turned_down_by_its_own_node(policed, plain, options):
    graph = Graph(NAMES)
    graph.saved(graph.sampled(graph.by_hand(graph.model(), NAMES.eraser, **options)))
    assert equal(answer(policed, dict(graph)), answer(plain, graph_of("KSampler", erased=True)))


def test_a_second_eraser_comes_on_top(policed, plain):
    graph, reference = Graph(NAMES), Graph(NAMES, erased=True)
    for each in (graph, reference):
        model = each.model()
        each.add("other", "UnHypeLoadHypernet", hypernet="other.safetensors")
        inputs = {"strength": 1.0, "keep_others_exact": True, "unknown_prompts": "strict"}
        each.saved(each.sampled(each.add("apply", "UnHypeApplyErasure", model=model, unhype=["other", 0], **inputs)))
    found = answer(policed, dict(graph))
    assert equal(found, answer(plain, dict(reference)))
    assert not equal(found, answer(plain, graph_of("KSampler", erased=True)))


def test_no_lora_is_made_of_an_eraser(policed):
    graph = Graph(NAMES)
    graph.add("eraser", "UnHypeLoadHypernet", hypernet="other.safetensors")
    graph.add("lora", "UnHypeHypernetToLora", unhype=["eraser", 0], clip=["clip", 0], text="a cat", strength=1.0)
    graph.add("show", "PreviewAny", source=["lora", 0])
    words = answer(policed, dict(graph))
    assert f"(UnHypeHypernetToLora): unhype.PolicyError: {PREFIX}Hypernet to LoRA is off here" in words


def test_the_report_shows_erased_pictures_only(policed):
    graph = Graph(NAMES)
    graph.add("eraser", "UnHypeLoadHypernet", hypernet=NAMES.eraser)
    model = graph.model()
    inputs = {"prompts": "a photo of a cat", "steps": 2, "cfg": 1.0, "sampler": "euler", "scheduler": "normal"}
    inputs |= {"seed": 0, "width": SIDE, "height": SIDE, "clip": ["clip", 0], "vae": ["load", 2]}
    graph.add("report", "UnHypeErasureReport", model=model, unhype=["eraser", 0], **inputs)
    prompt_id = policed.post("/prompt", {"prompt": dict(graph)})["prompt_id"]
    (words,) = policed.wait(prompt_id)["outputs"]["report"]["text"]
    assert "0 of 1 erased prompts changed." in words
    assert log(policed).count(f"graph {prompt_id}, node report: Stable Diffusion 1.x draws with school.") == 2


# The file is out of reach

_UPLOAD = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="policy.json"\r\n\r\n{}\r\n'
    b'--x\r\nContent-Disposition: form-data; name="subfolder"\r\n\r\n../user/__unhype\r\n'
    b'--x\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--x--\r\n'
)
WRITES = {
    "write": ("POST", "/userdata/..%2F__unhype%2Fpolicy.json?overwrite=true", b"{}", "application/json"),
    "write below": ("POST", "/userdata/__unhype%2Fpolicy.json?overwrite=true", b"{}", "application/json"),
    "delete": ("DELETE", "/userdata/..%2F__unhype%2Fpolicy.json", None, "application/json"),
    "move": ("POST", "/userdata/mine.json/move/..%2F__unhype%2Fpolicy.json?overwrite=true", b"", "application/json"),
    "upload": ("POST", "/upload/image", _UPLOAD, "multipart/form-data; boundary=x"),
    "user": ("POST", "/users", b'{"username": "__unhype"}', "application/json"),
}


@pytest.mark.parametrize("user", [None, "__unhype", "../__unhype"])
@pytest.mark.parametrize("way", WRITES)
def test_no_visitor_writes_to_the_policy(policed, way, user):
    method, path, body, kind = WRITES[way]
    own = next(path for path in policed.base.rglob("policy.json") if (path.parent / NAMES.eraser).exists())
    before = {path.name: path.read_bytes() for path in own.parent.iterdir()}
    with contextlib.suppress(urllib.error.HTTPError):
        policed.post("/userdata/mine.json?overwrite=true", {})
    headers = {"Content-Type": kind} | ({} if user is None else {"Comfy-User": user})
    request = urllib.request.Request(f"{policed.url}{path}", body, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(urllib.error.HTTPError):
        opener.open(request, timeout=60).close()
    assert {path.name: path.read_bytes() for path in own.parent.iterdir()} == before


# Last, since it is for good


def test_when_another_pack_undoes_the_guard_everything_is_refused(policed, plain):
    prompt = graph_of("loaded and sampled in a node")
    prompt["draw"]["inputs"]["ckpt_name"] = f"./{NAMES.checkpoint}"  # not the one in ComfyUI's cache
    words = answer(policed, graph_of("loaded and sampled in a node"), extra_data={"unhype_test": "undo"})
    assert "unhype.PolicyError" in words
    words = answer(policed, graph_of("KSampler"))
    assert "(UnHypeServerRefusal): unhype.PolicyError: This server draws nothing until its owner mends" in words
    assert "another node pack has replaced the functions that check models" in words
    assert isinstance(answer(plain, graph_of("KSampler")), list)


@pytest.mark.parametrize(
    ("policy", "words"),
    [("{", "policy.json is no JSON"), ('{"erasers": [{"file": "none.safetensors"}]}', "there is no eraser 'none")],
    ids=["file", "eraser"],
)
def test_with_a_broken_policy_nothing_is_drawn(files, tmp_path, policy, words):
    with server_with(files, tmp_path, PACKS | TESTS, policy) as server:
        for prompt in (graph_of("KSampler"), graph_of("loaded and sampled in a node")):
            found = answer(server, prompt)
            assert f"draws nothing until its owner mends its policy: {words}" in found
            assert str(tmp_path) not in found
        assert f"nothing is drawn, since {words}" in log(server)

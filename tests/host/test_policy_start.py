"""A policy set to work at start, and what ends ComfyUI's start."""

import json
import logging
from types import SimpleNamespace

import comfy.sampler_helpers
import folder_paths
import pytest
import server
from comfy.model_base import BaseModel
from comfy_execution.utils import CurrentNodeContext
from core_parts import POOLED
from policies import strict_eraser
from tiny import prompt, sample

from benchmarks.environment import ROOT
from unhype.hypernet.files import save
from unhype.policy.enforced import _enforced, enforced, learning, protected
from unhype.policy.file import PolicyError
from unhype.policy.place import policy_file
from unhype.policy.queued import types_of
from unhype.policy.rewrite import POLICY_NODE, REFUSAL_NODE
from unhype.policy.start import start


class Instance:
    """What of a running server the policy asks for."""

    def __init__(self):
        self.on_prompt_handlers = []

    def add_on_prompt_handler(self, handler):
        self.on_prompt_handlers.append(handler)

    def trigger_on_prompt(self, request):
        (handler,) = self.on_prompt_handlers
        return handler(request)


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """A server, and ComfyUI's functions put back afterwards."""
    instance = Instance()
    monkeypatch.setattr(server.PromptServer, "instance", instance, raising=False)
    monkeypatch.setattr(comfy.sampler_helpers, "prepare_sampling", comfy.sampler_helpers.prepare_sampling)
    monkeypatch.setattr(BaseModel, "apply_model", BaseModel.apply_model)
    monkeypatch.delenv("UNHYPE_POLICY", raising=False)
    yield instance
    _enforced.clear()


@pytest.fixture
def policy(tmp_path, model, monkeypatch):
    """A policy file with one eraser, named in the environment."""
    save(strict_eraser(model, width=POOLED), tmp_path / "school.safetensors")
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"erasers": [{"file": "school.safetensors"}]}), "utf-8")
    monkeypatch.setenv("UNHYPE_POLICY", str(path))
    return path


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
    "2": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 3}},
}


def test_without_a_file_there_is_no_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    assert policy_file() is None


def test_a_folder_without_a_file_is_pointed_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    (tmp_path / "__unhype").mkdir()
    (tmp_path / "__unhype" / "policy.json.txt").touch()
    assert policy_file() is None
    assert "there is no policy.json in" in caplog.text


def test_the_file_lies_with_comfyuis_own_or_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    own = tmp_path / "__unhype" / "policy.json"
    own.parent.mkdir()
    own.symlink_to(tmp_path / "gone.json")  # there, and broken
    assert policy_file() == own
    monkeypatch.setenv("UNHYPE_POLICY", str(tmp_path / "other.json"))
    assert policy_file() == tmp_path / "other.json"


def test_a_graph_is_rewritten_and_its_model_erased(host, policy, model, caplog):
    caplog.set_level(logging.INFO)
    start(policy)
    graph = host.trigger_on_prompt({"prompt": GRAPH, "client_id": "me"})
    assert graph["client_id"] == "me"
    assert graph["prompt"]["2"]["inputs"]["model"] == ["unhype_policy_1_0", 0]
    assert graph["prompt"]["unhype_policy_1_0"]["class_type"] == POLICY_NODE
    with pytest.raises(PolicyError):
        sample(model, prompt(1), prompt(2))
    sample(protected(model), prompt(1), prompt(2))
    assert f"UnHype policy: {policy}: every graph draws with 'school' on Stable Diffusion 1.x" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "policy.json is no JSON"),
        ('{"erasers": [{"file": "none.safetensors"}]}', "there is no eraser 'none.safetensors' beside"),
        ('{"erasers": [{"file": "policy.json"}]}', "'policy.json' is damaged"),
        (None, "there is no file policy.json"),
    ],
)
def test_while_the_policy_is_broken_everything_is_refused(host, policy, model, caplog, text, words):
    policy.unlink() if text is None else policy.write_text(text, "utf-8")
    start(policy)
    assert words in caplog.text
    ((node),) = host.trigger_on_prompt({"prompt": GRAPH})["prompt"].values()
    assert node["class_type"] == REFUSAL_NODE
    assert words in node["inputs"]["reason"]
    assert str(policy.parent) not in node["inputs"]["reason"]
    with pytest.raises(PolicyError, match="draws nothing until"):
        sample(protected(model), prompt(1), prompt(2))


def test_a_host_that_may_let_visitors_write_there_is_refused(policy, monkeypatch):
    monkeypatch.delenv("UNHYPE_POLICY")
    monkeypatch.delattr(folder_paths, "get_system_user_directory", raising=False)
    start(policy)
    assert "may let visitors write" in enforced().problem


@pytest.mark.parametrize("missing", ["handler", "function"])
def test_a_host_without_a_hook_is_refused(policy, monkeypatch, missing):
    if missing == "handler":
        monkeypatch.delattr(Instance, "add_on_prompt_handler")
    else:
        monkeypatch.delattr(BaseModel, "apply_model")
    with pytest.raises(PolicyError, match="this ComfyUI has no "):
        start(policy)


def _loaded(monkeypatch):
    """The pack's root module, run again."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "unhype", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_comfyui_does_not_start_when_the_policy_cannot_be_kept(policy, monkeypatch):
    """An Exception would only take the pack out of it."""
    monkeypatch.delattr(Instance, "add_on_prompt_handler")
    with pytest.raises(SystemExit, match=r"does not start, since it can't keep the policy .*add_on_prompt_handler"):
        _loaded(monkeypatch)


def test_loading_the_pack_without_a_policy_replaces_nothing(host, monkeypatch):
    before = comfy.sampler_helpers.prepare_sampling, BaseModel.apply_model
    _loaded(monkeypatch)
    assert (comfy.sampler_helpers.prepare_sampling, BaseModel.apply_model) == before
    assert host.on_prompt_handlers == []
    assert enforced() is None


@pytest.mark.parametrize("wrong", [None, [], "text", 3, {"1": {"class_type": "KSampler", "inputs": 3}}, {"1": None}])
def test_a_request_that_is_no_graph_is_no_way_round(host, policy, wrong):
    start(policy)
    for request in (wrong, {"prompt": wrong}, {"prompt": {**GRAPH, "3": wrong}}):
        given = host.trigger_on_prompt(request)
        if isinstance(given, dict) and isinstance(given.get("prompt"), dict) and "2" in given["prompt"]:
            assert given["prompt"]["2"]["inputs"].get("model") != ["1", 0]


def test_an_error_of_our_own_refuses_the_graph(host, policy, monkeypatch):
    start(policy)
    monkeypatch.setattr("unhype.policy.queued.rewritten", lambda *_: 1 / 0)
    (node,) = host.trigger_on_prompt({"prompt": GRAPH})["prompt"].values()
    assert node["class_type"] == REFUSAL_NODE
    assert "can't check" in node["inputs"]["reason"]


@pytest.mark.parametrize("asked", [True, False])
def test_the_log_holds_texts_only_if_its_owner_asks(host, policy, model, caplog, asked):
    caplog.set_level(logging.INFO)
    content = {"erasers": [{"file": "school.safetensors"}], "log_prompts": asked}
    policy.write_text(json.dumps(content), "utf-8")
    start(policy)
    texts = {"3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a\ncat", "clip": ["1", 1]}}}
    host.prompt_queue = SimpleNamespace(get_current_queue=lambda: ([(0, "other", GRAPH), (1, "mine", texts)], []))
    with CurrentNodeContext("mine", "2"):
        sample(protected(model), prompt(1), prompt(2))
        with pytest.raises(PolicyError):
            sample(model, prompt(1), prompt(2))
    lines = [record.getMessage() for record in caplog.records if "graph mine, node 2: Stable" in record.getMessage()]
    assert [words in line for words, line in zip(("draws with school.", "is refused."), lines, strict=True)] == [
        True
    ] * 2
    assert [line.endswith(" Its texts: a cat") for line in lines] == [asked] * 2


def test_the_hosts_own_nodes_have_types():
    loader, sampler = types_of("CheckpointLoaderSimple"), types_of("KSampler")
    assert (loader.outputs[0], sampler.inputs["model"]) == ("MODEL", "MODEL")
    assert types_of("NodeOfNoPack") is None


def test_a_script_without_a_server_trains_and_draws_nothing_bare(policy, model, monkeypatch, caplog):
    monkeypatch.delattr(server.PromptServer, "instance")
    start(policy)
    assert "no server runs here" in caplog.text
    with pytest.raises(PolicyError):
        sample(model, prompt(1), prompt(2))
    sample(protected(model), prompt(1), prompt(2))
    with learning():
        sample(model, prompt(1), prompt(2))

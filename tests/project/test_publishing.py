"""What the registry and the repository's pages say about the pack. `dev.py check` runs the checks of others."""

import re
import xml.etree.ElementTree as xml
from fnmatch import fnmatch

import pytest
import yaml

import dev
from benchmarks import lint
from benchmarks.checks import EXPECTED, unexpected
from benchmarks.environment import ROOT

tomllib = pytest.importorskip("tomllib")
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def test_the_version_is_semantic_and_the_changelog_has_it():
    version = METADATA["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    latest = re.search(r"^## (\S+?),", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    assert latest == version


def test_the_registry_gets_what_it_asks_for():
    name, comfy = METADATA["project"]["name"], METADATA["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*", name)
    assert "comfyui" not in name
    assert comfy["PublisherId"]
    assert (ROOT / METADATA["project"]["license"]["file"]).is_file()
    assert METADATA["project"]["urls"]["Repository"].startswith("https://")


def test_the_nodes_need_only_what_comfyui_brings():
    assert METADATA["project"]["dependencies"] == (ROOT / "requirements.txt").read_text("utf-8").split()


@pytest.mark.parametrize(("name", "ratio"), [("Icon", 1), ("Banner", 21 / 9)])
def test_icon_and_banner_are_here_and_have_their_shape(name, ratio):
    file = METADATA["tool"]["comfy"][name].rpartition("/")[2]
    picture = xml.parse(ROOT / file).getroot()
    width, height = int(picture.get("width")), int(picture.get("height"))
    assert width / height == pytest.approx(ratio)
    assert picture.get("viewBox") == f"0 0 {width} {height}"
    assert name != "Icon" or width <= 400


def test_scripts_are_named_after_the_pack():
    """ComfyUI keeps one extension of a name: another pack's would be dropped, or ours."""
    for script in (ROOT / "web" / "js").glob("*.js"):
        source = script.read_text("utf-8")
        names = re.findall(r"registerExtension\(\{\s*name: \"([^\"]+)\"", source)
        assert len(names) == source.count("registerExtension(")
        assert names or re.search("^export ", source, re.M)
        assert all(name.startswith(METADATA["tool"]["comfy"]["DisplayName"].lower() + ".") for name in names)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_shows(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown")
        assert field["attributes"]["label"]
        assert ("options" in field["attributes"]) == (field["type"] == "dropdown")


def test_a_bug_report_asks_for_console_version_and_family():
    (bug,) = [yaml.safe_load(path.read_text("utf-8")) for path in FORMS if path.stem == "bug"]
    needed = {field["id"] for field in bug["body"] if field.get("validations", {}).get("required")}
    assert {"console", "comfyui", "family"} <= needed


WORKFLOWS = {path.stem: path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def steps_of(name):
    for job in yaml.safe_load(WORKFLOWS[name])["jobs"].values():
        yield from job.get("steps", [job])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_job_has_a_limit_on_its_time(name):
    """One that calls another workflow may not have one; that workflow's jobs have."""
    jobs = yaml.safe_load(WORKFLOWS[name])["jobs"].values()
    assert [job for job in jobs if ("timeout-minutes" in job) == ("uses" in job)] == []


def test_the_core_runs_on_the_oldest_and_the_newest_python():
    (job,) = yaml.safe_load(WORKFLOWS["core"])["jobs"].values()
    pythons = job["strategy"]["matrix"]["python"]
    oldest, newest = re.search(r"Python (3\.\d+) to (3\.\d+)", (ROOT / "CONTRIBUTING.md").read_text("utf-8")).groups()
    assert (pythons[0], pythons[-1]) == (oldest, newest)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_read_only_and_runs_what_it_was_written_with(name):
    assert yaml.safe_load(WORKFLOWS[name])["permissions"] == {"contents": "read"}
    used = [step["uses"] for step in steps_of(name) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) or (ROOT / action).is_file()


def test_the_workflows_install_what_dev_py_asks_a_python_for():
    package = {"PIL": "pillow"}
    for name, modules in (("core", dev.CORE), ("lint", lint.TYPED)):
        (installed,) = re.findall(r"-c requirements-dev\.txt (.+)", WORKFLOWS[name])
        assert installed.split() == [package.get(module, module) for module in modules]


def test_a_release_is_published_after_its_tests_alone():
    jobs = yaml.safe_load(WORKFLOWS["publish"])["jobs"]
    assert set(jobs["publish"]["needs"]) == {"lint", "core", "host"}
    assert "secrets" not in "".join(text for name, text in WORKFLOWS.items() if name != "publish")


def test_lint_comes_first():
    run = (ROOT / ".ci" / "run").read_text("utf-8")
    assert 0 < run.index("UNHYPE_CACHE") < run.index("dev.py lint") < run.index("dev.py test")


def test_the_registry_gets_no_file_of_development():
    ignored = (ROOT / ".comfyignore").read_text("utf-8").split()
    names = [".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CONTRIBUTING.md", "SECURITY.md", "dev.py"]
    names += [path.name for path in ROOT.glob("requirements-*")]
    missing = [name for name in names if not any(fnmatch(name, pattern.rstrip("/")) for pattern in ignored)]
    assert missing == []


def found(category, snippet, explanation=""):
    return {"category": category, "snippet": snippet, "explanation": explanation}


@pytest.mark.parametrize(
    ("category", "snippet"),
    [
        ("code_execution", "eval(text)"),
        ("code_execution", "exec(compile(text, name, 'exec'))"),
        ("code_execution", "torch.compile(text).eval(code)"),
        ("obfuscation_chains", "''.join(chr(ord(letter) ^ 7) for letter in text)"),
        ("dynamic_attribute_access", "getattr(os, name)"),
        ("network", "socket.socket()"),
    ],
)
def test_a_finding_that_is_none_of_the_known_ones_counts(category, snippet):
    assert unexpected([found(category, snippet)]) == [found(category, snippet)]


def test_an_encoded_text_counts_and_a_sentence_does_not():
    category = "code_obfuscation_high_entropy"
    assert category in EXPECTED
    encoded = found(category, "high-entropy literal", "Preview: 'aGVsbG8gd29ybGQsIHRoaXMgaXMgYQ...'")
    prose = found(category, "high-entropy literal", "Preview: 'The connected CLIP gives no po...'")
    assert unexpected([encoded, prose]) == [encoded]

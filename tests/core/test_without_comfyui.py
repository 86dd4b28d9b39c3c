"""The mathematics imports no ComfyUI, and no package that the core does without."""

import sys
from importlib import import_module

import pytest
from sources import imports_of

import dev
from benchmarks.environment import ROOT

# The modules that know ComfyUI, and those that call them.
DOORS = {"hypernet.patch", "training.encode_batch", "training.frozen", "training.sampling", "training.preview"}
DOORS |= {"training.run", "training.parts", "training.processes"}
DOORS |= {f"policy.{name}" for name in ("guard", "log", "place", "queued", "rules", "start")}
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ("hypernet", "policy", "training")
    for path in (ROOT / room).rglob("*.py")
}
CORE = sorted(PATHS.keys() - DOORS)
PACKAGES = {*dev.CORE, *sys.stdlib_module_names} - {"pytest"}


def test_every_door_is_a_module():
    assert PATHS.keys() > DOORS
    assert len(CORE) > 30


@pytest.mark.parametrize("module", CORE)
def test_a_module_of_the_core_imports_nothing_else(module):
    """Anywhere in it, inside functions too; each of the pack's own that it imports is of the core itself."""
    imports = list(imports_of(PATHS[module], typing=False))
    own = {name.removeprefix(".") for name in imports if name.startswith(".")}
    assert own <= {*CORE, "hypernet", "policy", "training"}
    assert {name.partition(".")[0] for name in imports if not name.startswith(".")} <= PACKAGES
    import_module(f"unhype.{module}")

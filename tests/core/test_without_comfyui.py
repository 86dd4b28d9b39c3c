"""The mathematics imports no ComfyUI, and no package that the core does without."""

import subprocess
import sys

from benchmarks.environment import ROOT

# The modules that know ComfyUI, and those that call them.
DOORS = {"hypernet.patch", "training.encode_batch", "training.frozen", "training.sampling", "training.preview"}
DOORS |= {"training.run"}
SCRIPT = """
import importlib, sys
blocked = "comfy", "folder_paths", "nodes", "PIL", "transformers", "tqdm", "hypothesis", "psutil"
sys.modules.update(dict.fromkeys(blocked))  # importing one of them raises
sys.path.insert(0, {root!r})
from benchmarks.pack import load_core
load_core()
for module in {modules!r}:
    importlib.import_module("unhype." + module)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] in blocked]
print(len({modules!r}))
"""


def test_every_module_of_the_core_imports_without_comfyui():
    paths = [path.relative_to(ROOT) for room in ("hypernet", "training") for path in (ROOT / room).rglob("*.py")]
    modules = sorted({".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths} - DOORS)
    script = SCRIPT.format(root=str(ROOT), modules=modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules) > 30

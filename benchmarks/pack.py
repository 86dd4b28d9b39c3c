"""The pack as ComfyUI sees it, in this process: for tests and benchmarks that need no server."""

import importlib.util
import os
import sys
import tempfile
from types import ModuleType

from .environment import ROOT
from .server import has_cuda, host_tree

# ComfyUI's folders for this process, removed when it ends.
_scratch: tempfile.TemporaryDirectory | None = None


def load_host() -> None:
    """Make `import comfy` work, with the settings ComfyUI would have read from its command line."""
    global _scratch
    tree = str(host_tree())
    if sys.path[0] != tree:
        # Before this repository: both have a top-level `nodes`, and comfy needs its own.
        sys.path.insert(0, tree)
    # First, as main.py does: ComfyUI's nodes put the folder `comfy` on the path, and its utils.py is no package.
    import utils.extra_config  # noqa: F401
    from comfy.cli_args import args

    if _scratch is None:
        _scratch = tempfile.TemporaryDirectory(prefix="unhype-", ignore_cleanup_errors=True)
        args.base_directory = _scratch.name
        args.cpu = not has_cuda()
    # comfy.model_management picks the device when it is first imported, so this comes before anything else does.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def load_core() -> ModuleType:
    """Make `from unhype.hypernet import ...` work without ComfyUI, for the modules that don't import it."""
    if "unhype" not in sys.modules:
        core = ModuleType("unhype")
        core.__path__ = [str(ROOT)]
        sys.modules["unhype"] = core
    return sys.modules["unhype"]


def load_pack() -> ModuleType:
    """Import this repository as the package `unhype`, once; `from unhype.hypernet import ...` works from then on."""
    if "unhype" in sys.modules:
        return sys.modules["unhype"]
    load_host()
    spec = importlib.util.spec_from_file_location(
        "unhype", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["unhype"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["unhype"]
        raise
    return module

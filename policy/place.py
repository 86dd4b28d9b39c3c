"""Where the policy file lies. Imports nothing of the pack: it must be found even if the rest of the pack fails."""

import logging
import os
from pathlib import Path

import folder_paths

log = logging.getLogger("unhype")

VARIABLE, FOLDER, NAME = "UNHYPE_POLICY", "__unhype", "policy.json"


def policy_file() -> Path | None:
    """The policy file of this ComfyUI, None where there is no policy.

    It lies where no visitor of the web interface can write: at the path in the environment, which need not be there,
    since a policy that went missing is no permission; or in the folder of ComfyUI's user `__unhype`.
    """
    if named := os.environ.get(VARIABLE, "").strip():
        return Path(named).expanduser().absolute()
    path = Path(folder_paths.get_user_directory()) / FOLDER / NAME
    if os.path.lexists(path):
        return path
    if path.parent.is_dir():
        log.warning("UnHype policy: there is no %s in %s, so nothing is enforced.", NAME, path.parent)
    return None


def is_kept_from_visitors(path: Path) -> bool:
    """Whether ComfyUI lets no visitor write to a policy file that isn't named by the environment."""
    return bool(os.environ.get(VARIABLE, "").strip()) or hasattr(folder_paths, "get_system_user_directory")

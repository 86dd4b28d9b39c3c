"""UnHype for ComfyUI: nodes that make a diffusion model unable to draw what its owner does not want drawn."""

from .policy.place import policy_file

# First of all: what fails to load after this leaves the policy in force.
if (_policy := policy_file()) is not None:
    try:
        from .policy.start import start

        start(_policy)
    except Exception as error:
        # ComfyUI goes on without a pack that can't be loaded, and would draw everything.
        raise SystemExit(
            f"UnHype: ComfyUI does not start, since it can't keep the policy {_policy}: {error}"
        ) from error

from .nodes import comfy_entrypoint
from .nodes.folders import register_model_folder

WEB_DIRECTORY = "./web"

register_model_folder()

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

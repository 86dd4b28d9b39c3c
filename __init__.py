"""UnHype for ComfyUI: nodes that make a diffusion model unable to draw what its owner does not want drawn."""

from .nodes import comfy_entrypoint
from .nodes.folders import register_model_folder

WEB_DIRECTORY = "./web"

register_model_folder()

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

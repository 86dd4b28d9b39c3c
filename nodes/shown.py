"""What a node shows of itself when it is done: a picture and words."""

from typing import Any

from comfy_api.latest import ui
from PIL import Image
from torch import Tensor

from ..evaluation.page import to_tensor


def shown(cls: type, picture: Image.Image, text: str) -> tuple[Tensor, dict[str, Any]]:
    """A PIL picture as ComfyUI's IMAGE (1, h, w, 3), and the `ui` of node class `cls` with it and `text`."""
    image = to_tensor(picture)
    return image, {**ui.PreviewImage(image, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}

"""A CLIP Vision model as the judge of a report."""

import torch


def judge(clip_vision):
    """A function from a picture (h, w, 3) in [0, 1] to its vector (1, d) fp32 on the CPU; None for None.

    clip_vision: ComfyUI's CLIP_VISION.
    """
    return None if clip_vision is None else lambda picture: _vector(clip_vision, picture)


def _vector(clip_vision, picture):
    with torch.no_grad():
        return clip_vision.encode_image(picture.unsqueeze(0))["image_embeds"].flatten(1).float().cpu()

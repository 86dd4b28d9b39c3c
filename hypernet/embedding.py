"""From a conditioning to the vector c that drives H.

c is the pooled output of the model's own text encoder, as ComfyUI carries it: for SD 1.x the last
hidden state of CLIP-L at the end token, for SDXL the projected pooled vector of CLIP-G.
"""

import torch


def driving_embedding(conditioning):
    """Return c of one conditioning entry as an fp32 CPU vector (width,), or None when it has none.

    `conditioning` is the dict that rides beside the cross-attention tensor. A missing or zeroed
    pooled vector (ConditioningZeroOut, encoders without one) means that there is no prompt to judge.
    Of a batch of pooled vectors the first counts: the host repeats it over the batch.
    """
    pooled = conditioning.get("pooled_output")
    if pooled is None:
        return None
    c = pooled.detach().reshape(-1, pooled.shape[-1])[0].to(device="cpu", dtype=torch.float32)
    return c if bool(c.any()) else None


def content_key(c):
    """A key for caches: equal for equal numbers, whatever tensor holds them."""
    return c.numpy().tobytes()

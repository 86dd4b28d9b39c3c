"""Progress of a training run: ComfyUI's bar with its preview picture, and a line on the console."""

import comfy.utils
from tqdm import tqdm

_UNITS, _PREPARING = 1000, 150


class Progress:
    """Passed to the engine as its `report`; every call lets ComfyUI interrupt the run."""

    def __init__(self):
        self.bar = comfy.utils.ProgressBar(_UNITS)
        self.console = tqdm(
            total=_UNITS, desc="UnHype", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        )

    def __call__(self, stage, done, total, picture=None):
        start, span = (_PREPARING, _UNITS - _PREPARING) if stage == "training" else (0, _PREPARING)
        value = start + span * done // total
        preview = None if picture is None else ("JPEG", picture, max(picture.size))
        self.console.set_description(f"UnHype, {stage}", refresh=False)
        self.console.update(value - self.console.n)
        self.bar.update_absolute(value, _UNITS, preview)

    def close(self):
        """End the console line."""
        self.console.close()

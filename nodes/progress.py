"""Progress of a node: ComfyUI's bar with its preview picture, a line of text on the node, one on the console."""

import time
from typing import Any

import comfy.utils
from PIL import Image
from tqdm import tqdm

from ..evaluation.cards import card_blocks
from ..evaluation.compare import Pair
from ..evaluation.curves import with_curve
from ..evaluation.page import duration, page
from ..training.callbacks import History

_UNITS = 1000
# Where on the bar each stage begins and how much of it is its own.
_STAGES = {"encoding prompts": (0, 100), "preparing": (100, 50), "training": (150, 830), "finishing": (980, 20)}
# Seconds between new texts and pictures: more would only be work for the browser.
_PAUSE = 1.0


class TimeLeft:
    """Estimates from the pace so far. Steps of an earlier run, before a resume, don't count."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> str:
        """In words, "" while there is nothing to estimate from."""
        now = time.monotonic()
        if self.first is None:
            self.first = done, now
        begun, since = self.first
        if done <= begun or done >= total:
            return ""
        return f", about {duration((now - since) / (done - begun) * (total - done))} left"


def _preview(sheet: Image.Image) -> tuple[str, Image.Image, int]:
    """A PIL picture in the form that ComfyUI's bar takes, in its own size."""
    return "JPEG", sheet, max(sheet.size)


def _to_interfaces() -> Any:
    """ComfyUI's line to every open interface. Only a running ComfyUI has one."""
    from server import PromptServer

    return PromptServer.instance


class NodeText:
    """The line of text that ComfyUI shows on a node that runs. node_id: None where there is no interface."""

    def __init__(self, node_id: str | None) -> None:
        self.node_id, self.sent = node_id, 0.0

    def __call__(self, text: str, at_once: bool = False) -> None:
        if self.node_id is None or not (at_once or time.monotonic() - self.sent >= _PAUSE):
            return
        _to_interfaces().send_progress_text(text, self.node_id)
        self.sent = time.monotonic()


class Progress:
    """Passed to training as its `report`; every call lets ComfyUI interrupt the run."""

    def __init__(self, node_id: str | None = None) -> None:
        self.bar = comfy.utils.ProgressBar(_UNITS)
        self.text, self.left = NodeText(node_id), TimeLeft()
        self.note, self.stage_text, self.drawn = "", "", 0.0
        self.thumbnails: Image.Image | None = None
        self.console = tqdm(
            total=_UNITS, desc="UnHype", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        )

    def __call__(
        self,
        stage: str,
        done: int,
        total: int,
        picture: Image.Image | None = None,
        history: History | None = None,
        note: str | None = None,
    ) -> None:
        start, span = _STAGES[stage]
        value = start + span * done // total
        self.console.set_description(f"UnHype, {stage}", refresh=False)
        self.console.update(value - self.console.n)
        self.note = note or self.note
        place = f", step {done} of {total}{self.left(done, total)}" if stage == "training" else f", {done / total:.0%}"
        self.stage_text = f"{stage.capitalize()}{place}"
        self.text(f"{self.stage_text}\n{self.note}".strip(), at_once=note is not None)
        self.bar.update_absolute(value, _UNITS, self._preview(picture, history, total))

    def _preview(
        self, picture: Image.Image | None, history: History | None, total: int
    ) -> tuple[str, Image.Image, int] | None:
        """The preview in the form that ComfyUI takes, or None when there is nothing new to see."""
        self.thumbnails = picture or self.thumbnails
        if history is None or not (picture or time.monotonic() - self.drawn >= _PAUSE):
            return None
        self.drawn = time.monotonic()
        return _preview(with_curve(self.thumbnails, history[0], total))

    def close(self) -> None:
        """End the console line, and leave no time on the node that nobody waits for."""
        self.console.close()
        self.text(f"{self.stage_text.partition(', about')[0]}\n{self.note}".strip(), at_once=True)


class DrawingProgress:
    """Passed to `compare` as its `report`: the bar, with each pair of pictures as the preview."""

    def __init__(self, node_id: str | None) -> None:
        self.bar, self.text, self.left = comfy.utils.ProgressBar(_UNITS), NodeText(node_id), TimeLeft()

    def __call__(self, done: int, total: int, pair: Pair | None = None) -> None:
        self.text(f"Drawing, {done / total:.0%}{self.left(done, total)}")
        preview = None if pair is None else _preview(page(card_blocks([pair])))
        self.bar.update_absolute(_UNITS * done // total, _UNITS, preview)


def show_page(node_id: str | None, sheet: Image.Image, line: str) -> None:
    """The finished page, a PIL picture, and a line that sums it up as the last that the node that runs shows.

    ComfyUI's interface keeps a node's last preview and text instead of its result until the node starts again.
    """
    NodeText(node_id)(line, at_once=True)
    comfy.utils.ProgressBar(_UNITS).update_absolute(_UNITS, _UNITS, _preview(sheet))


def there_is_a_new_file(node_id: str | None) -> None:
    """Have every open interface read its lists of files again (web/js/lists.js), as the key R does."""
    if node_id is not None:
        _to_interfaces().send_sync("unhype.lists", {})

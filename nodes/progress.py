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
from ..training.pace import TRAINING, Left, Pace

_UNITS = 1000
# The last stage of a training in a node, pictures of the result, and the only one of a report.
DRAWING = "drawing"
PAIR = 2.5  # seconds that a small picture before and after are expected to take
# Seconds between new texts and pictures: more would only be work for the browser.
_PAUSE = 1.0


def _preview(sheet: Image.Image) -> tuple[str, Image.Image, int]:
    """A PIL picture in the form that ComfyUI's bar takes, in its own size."""
    return "JPEG", sheet, max(sheet.size)


def _to_interfaces() -> Any:
    """ComfyUI's line to every open interface. Only a running ComfyUI has one."""
    from server import PromptServer

    return PromptServer.instance


def in_words(stage: str, done: int, total: int, left: Left) -> str:
    """What a training does, how much of it is done and what is left of the whole."""
    place = f"step {done:,} of {total:,}" if stage == TRAINING else f"{done / total:.0%}"
    return f"{stage.capitalize()}, {place}, about {duration(left.seconds)} left"


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
    """Passed to training as its `report`, its `drawing` to `compare`; every call lets ComfyUI interrupt the run.

    part: of several trainings in one node the number of this one, from 0, and how many there are. title: a first line.
    pictures: whether the node has room for previews.
    """

    def __init__(
        self,
        node_id: str | None,
        pace: Pace,
        part: tuple[int, int] = (0, 1),
        title: str = "",
        pictures: bool = True,
    ) -> None:
        self.pictures = pictures
        self.bar = comfy.utils.ProgressBar(_UNITS)
        self.text, self.pace, self.part, self.title = NodeText(node_id), pace, part, title
        self.note, self.line, self.drawn = "", "", 0.0
        self.thumbnails: Image.Image | None = None
        self.console = tqdm(total=_UNITS, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}")
        self._show("Getting ready", at_once=True)

    def __call__(
        self,
        stage: str,
        done: int,
        total: int,
        picture: Image.Image | None = None,
        history: History | None = None,
        note: str | None = None,
    ) -> None:
        left, (number, count) = self.pace(stage, done, total), self.part
        self.note = self.note if note is None else note.partition(" (")[0]  # the console has the parts
        self._show(in_words(stage, done, total, left), at_once=note is not None)
        value = round(_UNITS * (number + left.share) / count)
        self.console.update(round(_UNITS * left.share) - self.console.n)
        self.bar.update_absolute(value, _UNITS, self._preview(picture, history, total))

    def drawing(self, done: int, total: int, pair: Pair | None = None) -> None:
        """Passed to `compare` as its `report`."""
        self(DRAWING, done, total)
        if pair is not None:
            self.bar.update_absolute(self.console.n, _UNITS, _preview(page(card_blocks([pair]))))

    def _show(self, line: str, at_once: bool = False) -> None:
        """The line on the console and, with the note below, on the node."""
        self.line = line
        self.console.set_description_str(f"UnHype: {line}", refresh=False)
        # Nodes 2.0 shows all lines as one.
        self.text(".\n".join(filter(None, (self.title, line, self.note))), at_once)

    def _preview(
        self, picture: Image.Image | None, history: History | None, total: int
    ) -> tuple[str, Image.Image, int] | None:
        """The preview in the form that ComfyUI takes, or None when there is nothing new to see."""
        self.thumbnails = picture or self.thumbnails
        if not self.pictures or history is None or not (picture or time.monotonic() - self.drawn >= _PAUSE):
            return None
        self.drawn = time.monotonic()
        return _preview(with_curve(self.thumbnails, history[0], total))

    def close(self) -> None:
        """End the console line, and leave no time on the node that nobody waits for."""
        self._show(self.line.partition(", about")[0], at_once=True)
        self.console.close()


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

"""Callbacks of the training loop: checkpoints and reports."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .checkpoint import save_checkpoint
from .loop import TrainingState

if TYPE_CHECKING:
    from PIL import Image

    from .preview import Previewer

log = logging.getLogger("unhype")

# The losses so far, and the (step, retention error) pairs.
History = tuple[list[float], list[tuple[int, float]]]


class Report(Protocol):
    """What a run calls all along with its stage and how much of it is done; may raise to interrupt.

    picture: a preview. history: the curves so far. note: a line for the user.
    """

    def __call__(
        self,
        stage: str,
        done: int,
        total: int,
        picture: "Image.Image | None" = None,
        history: History | None = None,
        note: str | None = None,
    ) -> None: ...


class Checkpoints:
    """Keeps a checkpoint every `every` steps (0 for never), and one when training breaks off."""

    def __init__(self, path: Path, recipe: str, every: int) -> None:
        self.path, self.recipe, self.every = path, recipe, every

    def __call__(self, state: TrainingState) -> None:
        if self.every and state.step % self.every == 0:
            self.save(state)

    @contextmanager
    def kept(self, state: TrainingState) -> Generator[None]:
        """While open, an interrupt or an error leaves a checkpoint, if there was a step."""
        try:
            yield
        except BaseException:
            if state.step:
                self.save(state)
                log.info("UnHype: stopped at step %d; queue the same settings again to go on from there.", state.step)
            raise

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint; a full disk costs the checkpoint, not the run."""
        try:
            save_checkpoint(state, self.path, self.recipe)
        except OSError as error:
            log.warning("UnHype: could not write the checkpoint (%s); training goes on.", error)


class Reporter:
    """Reports every step, and every `every` steps (0 for never) with a picture of `previewer`, if there is one."""

    def __init__(self, report: Report, steps: int, previewer: "Previewer | None", every: int) -> None:
        self.report, self.steps, self.previewer, self.every = report, steps, previewer, every

    def __call__(self, state: TrainingState) -> None:
        picture = None
        if self.previewer is not None and self.every and state.step % self.every == 0:
            picture = self.previewer.picture(state.hypernet)
        self.report("training", state.step, self.steps, picture, (state.losses, state.retention))

"""How far a training is and how long the rest takes, from the pace of its stages.

Of the stage that runs the pace is measured as it goes; of the later ones it is that of an earlier run on the same
machine. A stage that no run has measured counts with a usual pace for the bar, and gets no time in words.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

# The stages of a run in their order, each with a usual pace: seconds a unit on the small model of this repository.
STAGES = {"encoding prompts": 0.02, "preparing": 3.0, "training": 0.12, "finishing": 6.0, "drawing": 4.0}
# Stages of which each unit is one thing that people can count. Of the others a unit is the whole.
_COUNTED = {"encoding prompts": "", "training": "step "}
# Before so many units and seconds the pace of a stage isn't known yet.
_ENOUGH, _SETTLED = 3, 1.0


class Status(NamedTuple):
    """share: of the whole run, in [0, 1]. words: what is done and what is left."""

    share: float
    words: str


class Remaining:
    """The status at every report of a run, see `callbacks.Report`.

    steps: of the training. drawn: whether pictures of the result are. pace: seconds a unit that earlier runs took, by
    stage. clock: seconds, ever rising.
    measured: the pace of this run, as far as it is known.
    """

    def __init__(
        self, steps: int, drawn: bool, pace: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.units = dict.fromkeys(STAGES, 1.0) | {"training": float(steps), "encoding prompts": 0.0}
        self.units["drawing"] = float(drawn)
        self.known, self.clock, self.begun = dict(pace), clock, clock()
        self.measured: dict[str, float] = {}
        self.stage, self.first, self.since, self.share, self.warm = "", 0.0, self.begun, 0.0, False

    def __call__(self, stage: str, done: int, total: int) -> Status:
        """The `Status` at `done` of `total` of a stage. What an earlier run has done, before a resume, is no pace."""
        now, counted = self.clock(), stage in _COUNTED
        here = float(done) if counted else done / total
        self.units[stage] = float(total) if counted else 1.0
        if stage != self.stage:
            self.stage, self.first, self.since, self.warm = stage, here, now, not counted
        elif not self.warm and here > self.first:  # the first unit loads models
            self.first, self.since, self.warm = here, now, True
        self._measure(stage, here, now)
        names = list(STAGES)
        left = {name: self._pace(name) * self.units[name] for name in names[names.index(stage) + 1 :]}
        rest = self._pace(stage) * (self.units[stage] - here) + sum(left.values())
        elapsed = now - self.begun
        self.share = max(self.share, elapsed / (elapsed + rest) if rest > 0 else 1.0)
        return Status(self.share, self._words(stage, done, total, here, left))

    def _measure(self, stage: str, here: float, now: float) -> None:
        fresh, took = here - self.first, now - self.since
        if took >= _SETTLED and fresh >= (_ENOUGH if stage in _COUNTED else 1):
            self.measured[stage] = self.known[stage] = took / fresh

    def _pace(self, stage: str) -> float:
        return self.known.get(stage, STAGES[stage])

    def _words(self, stage: str, done: int, total: int, here: float, left: Mapping[str, float]) -> str:
        place = f"{_COUNTED[stage]}{done:,} of {total:,}" if stage in _COUNTED else f"{done / total:.0%}"
        words = f"{stage.capitalize()}, {place}"
        if stage in self.known and here < self.units[stage]:
            words += f", about {duration(self.known[stage] * (self.units[stage] - here))} left"
        if "training" in left:
            known = all(name in self.known for name in left if self.units[name])
            words += ", then training" + (f", about {duration(sum(left.values()))}" if known else "")
        return words


def duration(seconds: float) -> str:
    """'40 s', '3 min' or '2 h 5 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _kept(note: Path) -> dict[str, dict[str, float]]:
    """The note's kinds of runs, {} where there is no note or it can't be read."""
    try:
        kinds = json.loads(note.read_text("utf-8"))
        return {kind: {stage: float(pace[stage]) for stage in STAGES if stage in pace} for kind, pace in kinds.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def read_pace(note: Path, kind: str) -> dict[str, float]:
    """The pace of earlier runs of a kind (objective and model), {} where there was none."""
    return _kept(note).get(kind, {})


def keep_pace(note: Path, kind: str, pace: Mapping[str, float]) -> None:
    """Keep the pace of a run for later ones; a folder that isn't writable costs only that."""
    kept = _kept(note)
    kept[kind] = {**kept.get(kind, {}), **pace}
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(kept), "utf-8")
    except OSError:
        return

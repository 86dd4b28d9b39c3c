"""How much of a training is done and how long the rest takes.

Every stage has expected seconds. A stage that has begun counts by its own pace, the more so the further it is; those to
come count as expected, or as much slower or faster as the stages beside encoding turned out so far.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

# A stage's own pace counts fully from this share of it on.
_KNOWN = 0.2
ENCODING, PREPARING, TRAINING, FINISHING = "encoding prompts", "preparing", "training", "finishing"


class Left(NamedTuple):
    """share: of the whole training that is done, in [0, 1], never falling. seconds: that are left."""

    share: float
    seconds: float


def expected_seconds(concepts: int, steps: int) -> dict[str, float]:
    """The seconds of each stage, in their order, as one core of the machine that the benchmarks ran on takes them."""
    return {
        ENCODING: 32 + 0.3 * concepts,
        PREPARING: 1.5 + 0.08 * concepts,
        TRAINING: (0.11 + 0.003 * concepts) * steps,
        FINISHING: 1.6 + 0.17 * concepts,
    }


class Pace:
    """Call it with every report of a training. expected: seconds of each stage, in their order."""

    def __init__(self, expected: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self.expected, self._clock = dict(expected), clock
        self._begun = clock()
        self._stage, self._since, self._first, self._working = "", self._begun, 0.0, self._begun
        self._taken: dict[str, float] = {}
        self._share = 0.0

    def __call__(self, stage: str, done: int, total: int) -> Left:
        """What a report of `stage`, `done` of `total`, says about the whole."""
        now = self._clock()
        if stage != self._stage:
            if self._stage:
                self._taken[self._stage] = now - self._since
            # What an earlier run did, before a resume, took no time now.
            self._stage, self._since, self._first, self._working = stage, now, done / total, now
        elif done / total <= self._first:
            # What a stage does before its first piece, such as a trial, says nothing about the pieces.
            self._working = now
        seconds = max(0.0, self._left_of_stage(done / total, now)) + self._later()
        spent = now - self._begun
        self._share = max(self._share, spent / (spent + seconds) if spent + seconds > 0 else 0.0)
        return Left(self._share, seconds)

    def _left_of_stage(self, done: float, now: float) -> float:
        expected = self.expected[self._stage] * self._speed() * (1 - done)
        own = (done - self._first) / (1 - self._first) if self._first < 1 else 1.0
        if own <= 0:
            return max(0.0, expected - (now - self._since))
        known = min(1.0, own / _KNOWN)
        return known * (now - self._working) * (1 - own) / own + (1 - known) * expected

    def _later(self) -> float:
        stages = list(self.expected)
        return self._speed() * sum(self.expected[stage] for stage in stages[stages.index(self._stage) + 1 :])

    def _speed(self) -> float:
        """How many times as long as expected the stages took that are over, apart from encoding."""
        taken = {stage: seconds for stage, seconds in self._taken.items() if stage != ENCODING}
        expected = sum(self.expected[stage] for stage in taken)
        return sum(taken.values()) / expected if expected > 0 and sum(taken.values()) > 0 else 1.0

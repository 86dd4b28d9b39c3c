"""Whole trainings on the lab model by stage: `python3 dev.py bench speed --stages`.

The first with nothing known, then with the encodings of the run before, and with more concepts. Beside the clock's
seconds stand the processor's, which a busy machine doesn't change.
"""

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from . import memory, pack

pack.load_pack()

from unhype.training.plan import Request  # noqa: E402
from unhype.training.run import train_erasure  # noqa: E402

from . import measures  # noqa: E402
from .erasure import SETTINGS, concepts_of  # noqa: E402
from .lab.measure import Lab  # noqa: E402

STAGES = ("encoding prompts", "preparing", "training", "finishing")
# Name, family, erased concepts, and whether the encodings of the run before are there.
RUNS = (
    ("cat -> tree, first", "sd15", 1, False),
    ("cat -> tree, encodings known", "sd15", 1, True),
    ("Flux, cat -> tree, first", "flux", 1, False),
    ("Flux, cat -> tree, encodings known", "flux", 1, True),
    ("10 concepts, first", "sd15", 10, False),
    ("10 concepts, encodings known", "sd15", 10, True),
    ("100 concepts, first", "sd15", 100, False),
    ("100 concepts, encodings known", "sd15", 100, True),
)
# Seconds between two reports that are kept.
_PAUSE = 0.5


class Recorder:
    """Takes the reports of a training, with the processor's seconds since it was made."""

    def __init__(self):
        self.begun, self.cpu = time.perf_counter(), time.process_time()
        self.reports, self.starts = [], []

    def __call__(self, stage, done, total, *_args, **_options):
        now = time.process_time() - self.cpu
        if not self.starts or self.starts[-1][0] != stage:
            # What comes before the first report belongs to its stage.
            start = (now, time.perf_counter() - self.begun) if self.starts else (0.0, 0.0)
            self.starts.append((stage, *start))
        elif now - self.reports[-1][0] < _PAUSE:
            return
        self.reports.append((round(now, 2), stage, done, total))

    def stages(self):
        """Stage to its seconds, by the processor and by the clock; the training has just ended."""
        end = ("", time.process_time() - self.cpu, time.perf_counter() - self.begun)
        return {
            stage: [round(other[n] - own[n], 2) for n in (1, 2)]
            for own, other in pairwise([*self.starts, end])
            for stage in own[:1]
        }


def run(name, family, count, encodings):
    """One whole training, as JSON values."""
    lab, lines = Lab(family), "\n".join(f"{one} -> {other}" for one, other in concepts_of(measures.many_names(count)))
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder, torch.inference_mode(), memory.peak() as taken:
        path = Path(folder)
        request = Request(
            lines, "", path, "eraser", path, SETTINGS, encodings=encodings, checkpoint_every=0, preview_every=0
        )
        recorder = Recorder()
        outcome = train_erasure(lab.patcher, lab.clip, request, recorder)
        stages, size = recorder.stages(), outcome.path.stat().st_size
    return {
        "run": name,
        "concepts": count,
        "steps": SETTINGS.steps,
        "seconds": round(sum(cpu for cpu, _ in stages.values()), 2),
        "stages": stages,
        "bytes": size,
        "peak_memory": sum(taken),
        "reports": recorder.reports,
    }


def measure(say, keep):
    """All of RUNS; keep(runs so far) is called after each."""
    found = []
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder:
        for number, (name, family, count, known) in enumerate(RUNS):
            path = Path(folder) / str(number - known)
            found.append(run(name, family, count, path))
            say("  ".join(table(found)[-1]))
            keep(found)
    return found


HEADER = ("training", *STAGES, "in all", "by the clock", "memory", "file")


def table(runs):
    """The rows for people, seconds of the processor."""
    rows = []
    for one in runs:
        seconds = [f"{one['stages'].get(stage, [0])[0]:.1f} s" for stage in STAGES]
        clock = sum(own for _, own in one["stages"].values())
        sizes = f"{one['peak_memory'] / 1e6:.0f} MB", f"{one['bytes'] / 1e3:.0f} kB"
        rows.append((one["run"], *seconds, f"{one['seconds']:.1f} s", f"{clock:.0f} s", *sizes))
    return rows

"""One process of `thousand.train`: trains its share of the parts on the lab's model, with what users' training does."""

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from . import pack

pack.load_pack()

from unhype.hypernet.files import SUFFIX  # noqa: E402
from unhype.training.plan import Request  # noqa: E402
from unhype.training.processes import join_processes, train_in_parts  # noqa: E402
from unhype.training.settings import Settings  # noqa: E402

from .environment import say  # noqa: E402
from .lab.measure import Lab  # noqa: E402
from .thousand import parts  # noqa: E402


class Costs:
    """Peak memory in bytes, CPU time and time of a process and of those before it that were broken off, in a file.

    begun: when the process was asked for, by `time.time`.
    """

    def __init__(self, path: Path, begun: float) -> None:
        self.path, self.begun = path, begun
        self.before = {"peak": 0, "cpu_seconds": 0.0, "seconds": 0.0}
        if path.is_file():
            self.before = json.loads(path.read_text("ascii"))

    def keep(self) -> None:
        """Write them as they are now."""
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
        found = {
            "peak": max(self.before["peak"], int(peak[1]) * 1024),
            "cpu_seconds": self.before["cpu_seconds"] + time.process_time(),
            "seconds": self.before["seconds"] + time.time() - self.begun,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(found), "ascii")


def main(folder: Path, count: int, begun: float) -> int:
    """Train the first `count` parts; write the names of the files, and what this process costs, see `Costs`."""
    join_processes()
    costs = Costs(folder / f"rank{torch.distributed.get_rank()}.json", begun)
    lab = Lab()
    whole = Request("", "", folder, "", folder / "checkpoints", Settings(), folder / "encodings", preview_every=0)
    requests = [
        replace(whole, concepts=part.lines, name=f"{number:03}", settings=replace(whole.settings, kind=part.kind))
        for number, part in enumerate(parts()[:count])
    ]

    def report_of(number):
        costs.keep()
        say(f"part {number + 1} of {len(requests)}")
        return lambda *_, **__: None

    with torch.inference_mode():
        erasers = train_in_parts(lab.patcher, lab.clip, requests, report_of)
    if erasers:
        names = [f"{eraser.name}{SUFFIX}" for eraser in erasers]
        (folder / "parts.json").write_text(json.dumps(names), "ascii")
    costs.keep()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

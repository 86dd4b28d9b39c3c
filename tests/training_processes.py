"""`commands/train.py` on a model of a few thousand weights: run by test_processes.py, alone or by torchrun.

The variable UNHYPE_STOP is "rank step": the process that is interrupted, and in which step of its training.
"""

import os
import sys
from functools import partial
from pathlib import Path

from benchmarks.pack import load_pack

FOLDER = sys.argv.pop(1)
load_pack()

from comfy.cli_args import args  # noqa: E402
from tiny import WordClip, tiny_model  # noqa: E402

from unhype.commands import from_lists, train  # noqa: E402
from unhype.training.callbacks import Reporter  # noqa: E402
from unhype.training.settings import Settings  # noqa: E402

args.disable_metadata = True
for name in ("training_folder", "checkpoint_folder", "encodings_folder"):
    setattr(from_lists, name, lambda name=name: Path(FOLDER) / name)
sizes = {"rank": 2, "basis": 4, "hidden": 8, "attention_batch": 6, "sentences": 8, "retain_batch": 8}
# Of those that draw pictures; five rows are shared unevenly.
sizes |= {"batch": 5, "width": 64, "height": 64, "rollouts": 2, "pictures": 2, "sampler_steps": 2, "kept_steps": 2}
from_lists.Settings = partial(Settings, **sizes)

rank, step = map(int, os.environ.get("UNHYPE_STOP", "-1 0").split())
if int(os.environ.get("RANK", "0")) == rank:

    def stopping(reporter, state, report=Reporter.__call__):
        if state.step == step:
            raise KeyboardInterrupt
        report(reporter, state)

    Reporter.__call__ = stopping

sys.exit(train.main(load=lambda _: (tiny_model(), WordClip())))

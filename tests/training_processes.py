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
from unhype.training.settings import Settings  # noqa: E402

args.disable_metadata = True
for name in ("training_folder", "checkpoint_folder", "encodings_folder"):
    setattr(from_lists, name, lambda name=name: Path(FOLDER) / name)
from_lists.Settings = partial(Settings, rank=2, basis=4, hidden=8, attention_batch=6, sentences=8, retain_batch=8)

rank, step = map(int, os.environ.get("UNHYPE_STOP", "-1 0").split())
if int(os.environ.get("RANK", "0")) == rank:

    class Stopping(from_lists.Progress):
        def __call__(self, stage, done, total, *others, **more):
            if stage == "training" and done == step:
                raise KeyboardInterrupt
            super().__call__(stage, done, total, *others, **more)

    from_lists.Progress = Stopping

sys.exit(train.main(load=lambda _: (tiny_model(), WordClip())))

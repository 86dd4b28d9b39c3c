"""How much memory a piece of work takes at its peak, beyond what was taken before."""

import ctypes
import re
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(key):
    return int(re.search(rf"{key}:\s+(\d+) kB", _STATUS.read_text("ascii")).group(1)) * 1024


@contextmanager
def peak():
    """While open, watch; afterwards the list that it gave holds the bytes. Of the GPU, or without one of the process.

    Of the process Linux alone can tell; elsewhere the list stays empty.
    """
    found = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
    elif _RESET.exists():
        # What was freed and only kept for later would hide the first so many bytes.
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5", encoding="ascii")  # the peak starts anew
        before = _resident("VmRSS")
        yield found
        found.append(max(_resident("VmHWM") - before, 0))
    else:
        yield found

"""`python3 dev.py lab base|judge|clip|clip-measure|measure ...`: train the lab's models anew and measure them."""

import importlib
import logging
import sys

from .. import pack

COMMANDS = {
    "base": "train_base",
    "judge": "train_judge",
    "clip": "train_clip",
    "clip-measure": "clip_measure",
    "measure": "measure",
}


def main():
    """Hand the command line to the chosen module."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"dev.py lab takes one of: {', '.join(COMMANDS)}; -h after it tells more.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pack.load_host()
    importlib.import_module(f".{COMMANDS[sys.argv[1]]}", __package__).main(sys.argv[2:])


if __name__ == "__main__":
    main()

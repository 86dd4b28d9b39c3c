"""The commands of dev.py: what each does, what it runs and which options it takes.

Standard library only: dev.py answers -h from here before anything is installed, and the modules that do the work
read their arguments with the same parsers.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .environment import HOSTS

FAMILIES = ("sd15", "flux")  # of the lab's models that the demo runs on
# The lab's models: SD and Flux with MiniLM, SD with the lab's CLIP, Flux with both.
LABS = ("sd15", "flux", "clip", "flux_pair")
JUDGES = ("judge", "second")
# What the tests of a tier need: torch alone, ComfyUI's classes, a running ComfyUI, this repository's other files.
TIERS = {
    "core": "the mathematics: torch, numpy, safetensors, einops and pytest are enough, no ComfyUI is fetched",
    "host": "what runs on ComfyUI's own classes",
    "server": "a running ComfyUI, its interface in a browser",
    "project": "README, metadata, locales, dev.py and benchmarks",
}


def _json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def _family(parser: ArgumentParser, words: str, families: tuple[str, ...]) -> None:
    parser.add_argument("--family", choices=families, default="sd15", help=f"{words} (default: %(default)s)")


def _minutes(parser: ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=120, help="how long to train (default: %(default)s)")


def _number(parser: ArgumentParser, name: str, default: int, words: str) -> None:
    parser.add_argument(name, type=int, default=default, help=f"{words} (default: %(default)s)")


def _demo(parser: ArgumentParser) -> None:
    _json(parser)
    _family(parser, "which of the lab's models to erase from", FAMILIES)
    parser.add_argument("--seed", type=int, help="another training seed than the workflow's")
    parser.add_argument("--publish", action="store_true", help="put figures and picture into README and results")


def _test(parser: ArgumentParser) -> None:
    for tier, words in TIERS.items():
        parser.add_argument(f"--{tier}", action="store_true", help=words)


def _serve(parser: ArgumentParser) -> None:
    _number(parser, "--port", 8188, "where ComfyUI listens")
    parser.add_argument("--interface", help="another web interface than this ComfyUI's own: 1.58.1")


def _speed(parser: ArgumentParser) -> None:
    parser.add_argument("--gpu", action="store_true", help="real picture sizes of SD 1.5 and SDXL in fp16")
    parser.add_argument("--stages", action="store_true", help="whole trainings by stage, and nothing else")
    parser.add_argument("--starts", action="store_true", help="the closed form against steps alone, and nothing else")
    parser.add_argument("--sizes", action="store_true", help="whole trainings at real layer sizes, and nothing else")
    _number(parser, "--rounds", 5, "how often each is measured; the median counts")
    _json(parser)
    parser.add_argument("--publish", action="store_true", help="put the figures into README and results")


def _first(parser: ArgumentParser) -> None:
    parser.add_argument("--publish", action="store_true", help="put the figures into benchmarks/README.md and results")


def _erasure(parser: ArgumentParser) -> None:
    _family(parser, "which of the lab's models; flux: ours by both objectives, the classes alone", FAMILIES)
    parser.add_argument("--quick", action="store_true", help="few pictures; rivals that train by pictures on one class")
    parser.add_argument("--rivals", action="store_true", help="those on all classes, too")
    parser.add_argument(
        "--workers", type=int, help="processes that share the work (default: 1 on a GPU, else the cores)"
    )
    parser.add_argument("--only", nargs="*", default=(), help="some methods; nothing is published")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    _json(parser)
    parser.add_argument("--publish", action="store_true", help="put figures and pictures into README and results")


def _bypass(parser: ArgumentParser) -> None:
    parser.add_argument("--only", help="ways whose words contain this")
    parser.add_argument("--json", type=Path, help="keep the figures in this file; ways that it has are not drawn anew")
    parser.add_argument("--publish", action="store_true", help="put the figures into benchmarks/README.md and results")


def _detector(parser: ArgumentParser) -> None:
    parser.add_argument("--publish", action="store_true", help="put the table into benchmarks/README.md")


def _prompts(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--family",
        choices=tuple(dict.fromkeys((*FAMILIES, "clip"))),
        default="sd15",
        help="which of the lab's models, and so which text encoder; clip: on texts alone (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="detection alone, on fewer prompts; lists what was wrong")
    parser.add_argument("--concepts", type=int, nargs="+", help="how many are erased (default: 1, 10 and 100)")
    parser.add_argument("--drawn", type=int, nargs="*", default=(1, 10), help="of these in pictures, too (1 and 10)")
    _number(parser, "--prompts", 250, "how many prompts about erased and about benign subjects are drawn")
    parser.add_argument("--rivals", action="store_true", help="in pictures, also rivals that train for minutes")
    _json(parser)
    parser.add_argument("--publish", action="store_true", help="put the tables into benchmarks/README.md and results")


def _attack(parser: ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two classes, one search for each")
    parser.add_argument("--only", nargs="+", help="these classes alone")
    _json(parser)
    parser.add_argument("--publish", action="store_true", help="put the table into benchmarks/README.md and results")


def _thousand(parser: ArgumentParser) -> None:
    _number(parser, "--concepts", 1000, "how many at most")
    parser.add_argument("--processes", type=int, help="that share the training (default: the cores)")
    parser.add_argument("--fresh", action="store_true", help="train everything anew")
    _json(parser)
    parser.add_argument("--publish", action="store_true", help="put table and curve into benchmarks/README.md, results")


def _pictures(parser: ArgumentParser) -> None:
    parser.add_argument("--folder", required=True, help="where the emoji packages and pictures are kept")


def _lab_base(parser: ArgumentParser) -> None:
    _family(parser, "which of the lab's models", LABS)
    _minutes(parser)
    _number(parser, "--batch", 64, "pictures a step")
    _number(parser, "--seed", 0, "training seed")
    parser.add_argument("--folder", type=Path, help="of pictures and checkpoint; the cache folder by default")


def _lab_judge(parser: ArgumentParser) -> None:
    _pictures(parser)
    parser.add_argument("--only", choices=JUDGES, help="train one of the two")
    _number(parser, "--steps", 1500, "training steps")
    _number(parser, "--batch", 128, "pictures a step")


def _lab_clip(parser: ArgumentParser) -> None:
    _minutes(parser)
    _number(parser, "--seed", 0, "training seed")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is kept; the cache folder by default")
    parser.add_argument("--weights", type=Path, help="where the weights are written; the lab's own by default")


def _lab_clip_measure(parser: ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, help="the weights to measure; the lab's own by default")
    parser.add_argument("--json", type=Path, help="where the figures are written; benchmarks/results by default")


def _lab_measure(parser: ArgumentParser) -> None:
    _family(parser, "which of the lab's models", LABS)
    _number(parser, "--seeds", 8, "pictures a class; a quarter for other concepts")
    parser.add_argument("--publish", action="store_true", help="put the table into the lab's README")
    parser.add_argument("--grids", type=Path, help="a folder for pictures to look at")
    parser.add_argument("--folder", type=Path, help="of emoji packages, for family clip; the cache folder by default")


def _screens(parser: ArgumentParser) -> None:
    parser.add_argument("--nodes2", action="store_true", help="in the newer renderer, Nodes 2.0")
    parser.add_argument("--interface", help="another web interface than this ComfyUI's own: 1.58.1")
    parser.add_argument("--only", nargs="*", choices=("templates", "run"), default=(), help="a part of them")


def _lint(parser: ArgumentParser) -> None:
    parser.add_argument("--fix", action="store_true", help="let ruff mend what it can")


def _no_options(parser: ArgumentParser) -> None:
    pass


class Command(NamedTuple):
    """One command.

    runs: what follows `python -m` in a host's environment; nothing if dev.py does the work itself.
    others: the program that gets all arguments which are none of the options.
    """

    words: str
    options: Callable[[ArgumentParser], None] = _no_options
    runs: tuple[str, ...] = ()
    others: str = ""


COMMANDS = {
    "demo": Command("Train an erasure inside ComfyUI, show pictures before and after.", _demo, ("benchmarks.demo",)),
    "test": Command("The tests: all of them, or those of some tiers.", _test, others="pytest"),
    "serve": Command("ComfyUI with this pack, for a browser.", _serve, ("benchmarks.server",), others="ComfyUI"),
    "bench speed": Command("What erasure costs, in time.", _speed, ("benchmarks.speed",)),
    "bench first": Command("Erase Concept, from Run to the picture.", _first, ("benchmarks.first",)),
    "bench erasure": Command("How well it erases, beside other methods.", _erasure, ("benchmarks.erasure",)),
    "bench bypass": Command("Every way a prompt reaches the sampler.", _bypass, ("benchmarks.bypass",)),
    "bench detector": Command("Candidates for the detector, on texts alone.", _detector, ("benchmarks.detector",)),
    "bench prompts": Command("Prompts as people write them.", _prompts, ("benchmarks.prompts",)),
    "bench attack": Command("Attacks on erased models, ours and rivals.", _attack, ("benchmarks.attack",)),
    "bench thousand": Command("One to a thousand concepts, in parts.", _thousand, ("benchmarks.thousand",)),
    "lab base": Command("Train one of the lab's models.", _lab_base, ("benchmarks.lab", "base")),
    "lab judge": Command("Train the judges.", _lab_judge, ("benchmarks.lab", "judge")),
    "lab clip": Command("Distil the lab's text encoder.", _lab_clip, ("benchmarks.lab", "clip")),
    "lab clip-measure": Command("Measure it.", _lab_clip_measure, ("benchmarks.lab", "clip-measure")),
    "lab measure": Command("Draw with a lab model and judge it.", _lab_measure, ("benchmarks.lab", "measure")),
    "lint": Command("ruff and ty, as pinned.", _lint),
    "readability": Command("How easily README and help pages read."),
    "check": Command("The checks of the registry and of others, on what the registry gets."),
    "locales": Command("Write the English words of locales/ anew, from the nodes.", runs=("benchmarks.locales",)),
    "screens": Command("Screenshots of the interface on the lab's model.", _screens, ("benchmarks.screens",)),
    "thumbnails": Command("Draw the workflows' cards anew, from results.", runs=("benchmarks.thumbnails",)),
}
# These look at files alone.
WITHOUT_HOST = ("lint", "readability")
FIRST_WORDS = tuple(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))
GROUPS = {
    first: [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{first} ")]
    for first in FIRST_WORDS
    if first not in COMMANDS
}


def parser(name: str) -> ArgumentParser:
    """The parser of a command, by its name in COMMANDS."""
    command = COMMANDS[name]
    notes = [f"All else goes to {command.others}."] if command.others else []
    if name not in WITHOUT_HOST:
        notes.append(f"--host {' | '.join(HOSTS)} | FOLDER{' | all' if name == 'test' else ''}  which ComfyUI")
    made = ArgumentParser(
        prog=f"dev.py {name}",
        description=command.words,
        epilog="\n".join(notes),
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.options(made)
    return made


def overview(group: str) -> str:
    """The commands of a group, a line each."""
    return "\n".join(f"dev.py {group} {member:8} {COMMANDS[f'{group} {member}'].words}" for member in GROUPS[group])

"""A thousand concepts in parts: `python3 dev.py bench thousand [--processes N] [--json FILE] [--publish]`.

The names are those that the lab model draws, less the ones that are scored as kept, and those of `thousand.txt`. The
parts are trained by torchrun as `commands/train.py` does (`thousand_parts`), and merged; erasers of fewer concepts are
merges of the first parts. Of each are measured what a prompt costs, the file, its memory, pictures of erased and kept
names as in the erasure benchmark, and benign prompts, everyday ones and those of tags and styles.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch

from . import commandline, pack
from .environment import ROOT, cache_folder, say
from .publish import MEASURED, device, markdown, publish

pack.load_pack()

from unhype.hypernet.embedding import entries_of  # noqa: E402
from unhype.hypernet.files import load, save, tensors_of  # noqa: E402
from unhype.hypernet.merged import AnyEraser  # noqa: E402
from unhype.hypernet.merged_deltas import deltas_of  # noqa: E402
from unhype.hypernet.merging import merge  # noqa: E402
from unhype.hypernet.patch import apply_erasure  # noqa: E402
from unhype.training.prompts import mentions  # noqa: E402

from . import measures, ours, protocol  # noqa: E402
from .baselines.erased_model import unchanged  # noqa: E402
from .erasure import QUICK, Bench  # noqa: E402
from .lab.vocabulary import CLASSES  # noqa: E402
from .real_prompts import Composer  # noqa: E402
from .thousand_curve import curve  # noqa: E402

NAMES = ROOT / "benchmarks" / "thousand.txt"
MAPPINGS = {"object": protocol.MAPPING, "person": "a person", "style": "a photograph"}
_WRITTEN = 150  # real prompts that the names are looked for in
_PART = 32  # as many as the basis of one hypernet takes at rank 4
_CURVES = "Quality, cost of a prompt, file size and memory against the number of concepts."
COUNTS = (1, 10, 100, 250, 500, 1000)


class Part(NamedTuple):
    """Names of one kind that one eraser is trained on."""

    kind: str
    names: tuple[str, ...]

    @property
    def lines(self) -> str:
        """The list as Train Erasure takes it."""
        return "\n".join(f"{name} -> {MAPPINGS[self.kind]}" for name in self.names)


def parts() -> list[Part]:
    """All parts: the first ones are a single class and the other nine, so that there are merges of 1 and of 10."""
    lines = [line.split("|") for line in NAMES.read_text("utf-8").splitlines() if not line.startswith("#")]
    first = measures.many_names(1)
    named = [("object", name) for name in measures.many_names(len(lines)) if name not in first]
    named += [(kind.strip(), name.strip()) for kind, name in lines]
    found = [Part("object", tuple(first)), Part("object", tuple(name for _, name in named[: len(CLASSES) - 1]))]
    for kind in MAPPINGS:
        own = [name for other, name in named[len(CLASSES) - 1 :] if other == kind]
        starts = range(0, len(own), _PART)
        found += [Part(kind, tuple(own[start : start + _PART])) for start in starts]
    return found


def train(folder: Path, processes: int, count: int) -> dict[str, float]:
    """Train the first `count` parts in so many processes: the longest of their times, and the sums of the other costs.

    Parts that are there from before are not trained again, but what they cost counts.
    """
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    words = [sys.executable, *torchrun, "-m", "benchmarks.thousand_parts", str(folder), str(count), str(time.time())]
    subprocess.run(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    costs = [json.loads((folder / f"rank{rank}.json").read_text("ascii")) for rank in range(processes)]
    sums = {name: sum(cost[name] for cost in costs) for name in costs[0]}
    return {**sums, "processes": processes, "seconds": max(cost["seconds"] for cost in costs)}


def benign(names: list[str]) -> dict[str, list[str]]:
    """Prompts that mention none of the names: everyday ones, and real ones of tags and styles about other things."""
    composer = Composer(torch.Generator().manual_seed(0))
    given = protocol.benign_prompts("cat")
    groups = {"benign": [*given["everyday"], *given["long"]]}
    groups["written"] = [composer.without_subject() for _ in range(_WRITTEN)]
    return {group: [text for text in texts if not mentions(text, names)] for group, texts in groups.items()}


def unchanged_share(bench: Bench, texts: list[str], erased: ours.Ours) -> float:
    """The share of prompts that are below the threshold."""
    return sum(erased.below_threshold(bench.conditioning(text)) for text in texts) / len(texts)


def milliseconds(bench: Bench, eraser: AnyEraser, rounds: int = 20) -> float:
    """CPU time of a new prompt with an erased concept from its CONDITIONING to its factors."""
    (entry,) = entries_of(bench.conditioning("a photo of a cat"))
    deltas = deltas_of(eraser)
    deltas.parts([entry])  # the first call of a process pays for more than the prompt
    started = time.process_time()
    for _ in range(rounds):
        deltas.clear()
        deltas.parts([entry])
    return (time.process_time() - started) / rounds * 1000


def measured(bench: Bench, folder: Path, own: list[Part]) -> dict[str, float]:
    """What is measured of the merge of these parts."""
    names = [name for part in own for name in part.names]
    files = [folder / name for name in json.loads((folder / "parts.json").read_text("ascii"))[: len(own)]]
    path = folder / "merged" / f"{len(names)}.safetensors"
    save(merge(map(load, files), path.stem), path)
    eraser = load(path)
    numbers = sum(tensor.numel() for tensor in tensors_of(eraser).values())
    model = apply_erasure(bench.lab.patcher, eraser)
    size = path.stat().st_size
    erased = ours.Ours("ours", model, unchanged, 0.0, numbers, size, eraser=eraser)
    row = measures.many_concepts(bench, names, erased)
    prompts = benign(names)
    return {
        "concepts": len(names),
        "parts": len(own),
        "milliseconds_a_prompt": milliseconds(bench, eraser),
        "bytes": size,
        "memory": numbers * 4,
        **{name: row[name] for name in ("erased", "erased_base", "kept", "kept_base", "near", "neighbours", "h_c")},
        "kept_below_threshold": row["below_threshold"],
        **{f"{group}_below_threshold": unchanged_share(bench, texts, erased) for group, texts in prompts.items()},
        **{group: len(texts) for group, texts in prompts.items()},
    }


def run(folder: Path, processes: int, concepts: int) -> dict[str, object]:
    """Everything of at most `concepts`, from parts that were trained before and those that are missing."""
    every = parts()
    sums = accumulate(len(part.names) for part in every)
    every = every[: sum(count <= concepts for count in sums)]
    training = train(folder, processes, len(every))
    say(f"{sum(len(part.names) for part in every)} concepts trained in {training['seconds']:.0f} s")
    bench, rows, count = Bench(QUICK, folder / "bench"), [], 0
    for number, part in enumerate(every, start=1):
        before, count = count, count + len(part.names)
        if any(before < wanted <= count for wanted in COUNTS):
            rows.append(measured(bench, folder, every[:number]))
            say(json.dumps(rows[-1]))
    return {"device": device(), "training": training, "rows": rows}


def table(found: dict) -> str:
    """The figures as Markdown."""
    header = (
        "concepts",
        "parts",
        "ms a prompt",
        "file, MB",
        "memory, MB",
        "erased names still drawn",
        "kept names drawn",
        "H_c",
        "everyday prompts unchanged",
        "real prompts about other things unchanged",
    )
    rows = [
        (
            str(row["concepts"]),
            str(row["parts"]),
            f"{row['milliseconds_a_prompt']:.1f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['memory'] / 1e6:.1f}",
            f"{row['erased']:.3f}",
            f"{row['kept']:.3f}",
            f"{row['h_c']:.3f}",
            f"{row['benign_below_threshold']:.3f}",
            f"{row['written_below_threshold']:.3f}",
        )
        for row in found["rows"]
    ]
    training = found["training"]
    processes = "one process" if training["processes"] == 1 else f"{training['processes']} processes"
    words = (
        f"Training all parts took {training['cpu_seconds'] / 60:.1f} minutes of CPU time, with {processes} of one "
        f"thread {training['seconds'] / 60:.1f} minutes beside whatever else ran, and {training['peak'] / 1e9:.1f} GB "
        "of memory at the processes' peaks together."
    )
    return f"{markdown(header, rows)}\n\n{words}\n\n![{_CURVES}](results/thousand.png)"


def main() -> int:
    """Command line."""
    options = commandline.parser("bench thousand").parse_args()
    folder = cache_folder() / "thousand"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    with torch.inference_mode():
        found = run(folder, options.processes or os.cpu_count() or 1, options.concepts)
    say(table(found))
    picture = folder / "thousand.png"
    curve(found["rows"]).save(picture)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.publish:
        publish("thousand", found, table(found), picture, MEASURED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

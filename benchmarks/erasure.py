"""Erasure side by side: `python3 dev.py bench erasure [--quick] [--json FILE]`.

Every method on one base model with one set of prompts and judges: the paper's object protocol for the ten
classes, then what only a hypernet has: wordings, benign prompts, composition, many concepts, attacks.
What has been measured is kept in the cache folder, so that a run that was broken off goes on. Several worker
processes share the work, each with one thread.
"""

import json
import multiprocessing
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from . import commandline, pack
from .environment import cache_folder, digest, say
from .publish import MEASURED, device, markdown, publish

pack.load_pack()

from unhype.training.prompts import retain_split  # noqa: E402
from unhype.training.settings import Settings  # noqa: E402

from . import measures, memory, ours, protocol, report  # noqa: E402
from .baselines import METHODS  # noqa: E402
from .baselines.erased_model import ErasedModel, unchanged  # noqa: E402
from .lab.measure import LABELS, Lab  # noqa: E402
from .lab.vocabulary import CLASSES  # noqa: E402
from .pictures import Painter, caching_lab  # noqa: E402

# gamma, of the objectives that run diffusion steps, is the paper's.
SETTINGS = Settings(width=128, height=128, guidance=3.0, sampler_steps=12, rollouts=8, gamma=1.0, checkpointing=False)
# Steps of the methods that run diffusion.
_DIFFUSION_STEPS = 100
OBJECTIVES = ("direct", "released", "paper")
# Methods that run diffusion steps to train; a quick run gives them fewer classes.
_SLOW_RIVALS = ("esd", "esd mapping", "spm")
_SLOW = (*_SLOW_RIVALS, *(f"ours, {name}" for name in OBJECTIVES))
# What can be had in seconds is also tried on two objects and on many concepts.
_FAST = ("ours", "uce", "nullspace", "gate")


@dataclass(frozen=True)
class Plan:
    """How much is measured. pictures: of each prompt of the erased class, half as many of the others."""

    pictures: int
    classes: tuple[str, ...]
    rival_classes: tuple[str, ...]
    slow_classes: tuple[str, ...]
    seeds: tuple[int, ...]
    many: tuple[int, ...]
    attacked: tuple[str, ...]
    composed: tuple[str, ...]


QUICK = Plan(4, tuple(CLASSES), ("bird",), ("bird",), (0,), (1, 10, 100), ("cat",), tuple(CLASSES))
FULL = Plan(40, tuple(CLASSES), tuple(CLASSES), tuple(CLASSES), (0, 1, 2), (1, 10, 100), tuple(CLASSES), tuple(CLASSES))

# Of the lab's Flux, where every training by diffusion takes minutes.
FLUX = Plan(4, ("bird",), (), ("bird",), (0,), (), (), ())


def methods(family="sd15"):
    """Name to erase(lab, concepts, retain, seed, settings), ours first. The rivals are for SD models."""

    def with_objective(objective):
        def erase(lab, concepts, retain, seed, settings):
            return ours.erase(lab, concepts, retain, seed, replace(settings, objective=objective))

        return erase

    return {
        "base": lambda lab, *_: ErasedModel("base", lab.patcher, unchanged, 0.0, 0, 0),
        "ours": ours.erase,
        **(METHODS if family == "sd15" else {}),
        **{f"ours, {own}": with_objective(own) for own in (OBJECTIVES if family == "sd15" else OBJECTIVES[:1])},
    }


class Bench:
    """The lab, and what was measured before.

    folder: where results of single jobs are kept; a job is named by all that decides it.
    """

    def __init__(self, plan, folder, family="sd15"):
        self.plan, self.folder, self.settings, self.family = plan, folder, SETTINGS, family
        self.painter, self.plain_lab = Painter(folder / "base", caching_lab(family)), Lab(family)
        self.lab, self.conditioning = self.painter.lab, self.painter.conditioning
        self.plain_lab.patcher = self.lab.patcher  # one base model for all

    def once(self, name, job):
        """The result of `job()`, JSON values, from the folder if it is there."""
        path = self.folder / f"{digest(name)}.json"
        if not path.exists():
            started = time.perf_counter()
            result = job()
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(result), encoding="utf-8")
            part.replace(path)
            say(f"{name}: {time.perf_counter() - started:.0f} s")
        return json.loads(path.read_text("utf-8"))

    def judged(self, pictures, expected):
        """What both judges see: by picture, whether it shows `expected`, how likely, and the mapping's share."""
        first, second = (judge.probabilities(pictures) for judge in self.lab.judges)
        index = LABELS.index(expected)
        return {
            "values": (first.argmax(1) == index).float().tolist(),
            "probabilities": [round(p, 4) for p in first[:, index].tolist()],
            "second": (second.argmax(1) == index).float().tolist(),
            "mapping": (second.argmax(1) == LABELS.index(protocol.MAPPING)).float().tolist(),
            "nothing": (second.argmax(1) == LABELS.index("none")).float().tolist(),
        }


def concepts_of(names):
    """Pairs for training: every name turns into the same thing."""
    return tuple((name, protocol.MAPPING) for name in names)


def erase(bench, method, names, seed):
    """Train a method on these names."""
    concepts = concepts_of(names)
    steps = _DIFFUSION_STEPS if method in _SLOW else SETTINGS.steps
    lab = bench.lab if method.startswith("ours") else bench.plain_lab
    settings = replace(SETTINGS, seed=seed, steps=steps)
    with memory.peak() as taken:
        erased_model = methods(bench.family)[method](lab, concepts, retain_split("", concepts), seed, settings)
    return replace(erased_model, peak_memory=sum(taken))


def many_job(bench, method, count, seed):
    """`measures.many_concepts` of one method, trained on that many."""
    names = measures.many_names(count)
    return measures.many_concepts(bench, names, erase(bench, method, names, seed))


def jobs(bench, plan, method, seed, concept):
    """What is measured of one method on one class, by kind: functions that share one training."""
    made = []

    def trained():
        if not made:
            made.append(erase(bench, method, (concept,), seed))
        return made[0]

    found = {"methods": lambda: measures.score_class(bench, concept, trained())}
    if bench.family != "sd15":
        return found
    first = seed == plan.seeds[0]
    if method in _FAST and concept in plan.composed and first:
        found["composition"] = lambda: measures.composition(bench, concept, trained())
    if method == "ours":
        found["ours"] = lambda: measures.only_ours(bench, concept, trained())
        if concept in plan.attacked and first:
            found["attacks"] = lambda: measures.attacked(bench, concept, seed, trained())
    return found


@dataclass(frozen=True)
class Unit:
    """Work that one process does on end: a method on one class with all that is measured of it, or on `count` names."""

    method: str
    seed: int
    concept: str = ""
    count: int = 0


def units(plan, only=(), family="sd15"):
    """All the work of a plan; the longest first, so that no process ends long after the others."""
    found = []
    for method in methods(family):
        if only and method not in only:
            continue
        seeds = plan.seeds if method != "base" else plan.seeds[:1]
        slow = plan.rival_classes if method in _SLOW_RIVALS else plan.slow_classes
        classes = slow if method in _SLOW else plan.classes
        found += [Unit(method, seed, concept) for seed in seeds for concept in classes]
        if family == "sd15":
            found += [Unit(method, plan.seeds[0], count=count) for count in plan.many if method in _FAST]
    return sorted(found, key=lambda unit: (-unit.count, unit.method not in _SLOW, unit.method != "ours"))


def results_of(bench, unit):
    """Kind to result of a unit, measured now or before."""
    plan, method, seed = bench.plan, unit.method, unit.seed
    stamp = digest(json.dumps([asdict(SETTINGS), plan.pictures]))
    labels = {"method": method}
    if unit.count:
        job = partial(many_job, bench, method, unit.count, seed)
        return {"many": labels | bench.once(f"many: {method}, {unit.count}, {stamp}", job)}
    labels |= {"concept": unit.concept, "seed": seed}
    return {
        kind: labels | bench.once(f"{kind}: {method}, {unit.concept}, seed {seed}, {stamp}", job)
        for kind, job in jobs(bench, plan, method, seed, unit.concept).items()
    }


_bench = None  # of a worker process


def _start_worker(plan, folder, family):
    global _bench
    torch.set_num_threads(1)
    _bench = Bench(plan, folder, family)


def _work(unit):
    with torch.inference_mode():
        return results_of(_bench, unit)


def run(plan, folder, workers, only=(), family="sd15"):
    """Everything of a plan, from what was measured before and what is missing: kind to a list of results."""
    found, work = {}, units(plan, only, family)
    # A forked process would inherit torch's threads half alive.
    pool = multiprocessing.get_context("spawn").Pool(workers, _start_worker, (plan, folder, family))
    with pool:
        for results in pool.imap(_work, work):  # the first error ends the run
            for kind, result in results.items():
                found.setdefault(kind, []).append(result)
        pool.close()
        pool.join()
    order = list(methods(family))
    for results in found.values():
        results.sort(key=lambda one: (order.index(one["method"]), one.get("seed", 0), one.get("concepts", 0)))
    return found


def main():
    """Command line."""
    options = commandline.parser("bench erasure").parse_args()
    workers = options.workers or (1 if torch.cuda.is_available() else os.cpu_count())
    plan = QUICK if options.quick else FULL
    if options.quick and options.family == "flux":
        plan = FLUX
    plan = replace(plan, rival_classes=plan.classes) if options.rivals else plan
    family = "" if options.family == "sd15" else f"{options.family}-"
    folder = cache_folder() / f"erasure-{family}{'quick' if options.quick else 'full'}"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"On {device()}, {'quick' if options.quick else 'full'}, {workers} processes.")
    found = run(plan, folder, workers, tuple(options.only), options.family)
    whole = not (family or options.only)
    results = report.summary(found, plan) if whole else report.methods_summary(found, plan)
    if whole:
        results["pictures"] = report.sheet(found["methods"], cache_folder() / "erasure-pictures" / "erasure.jpg")
    say(report.text(results) if whole else report.methods_text(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.publish and whole:
        report.publish_results(results)
    elif options.publish and not options.only:
        table = markdown(report.HEADER, report.method_rows(results))
        publish(f"erasure_{options.family}", results, table, page=MEASURED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

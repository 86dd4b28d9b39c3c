"""Erasure side by side: `python3 dev.py bench erasure [--quick] [--json FILE]`.

Every method on one base model with one set of prompts and judges: the paper's object protocol for the ten
classes, then what only a hypernet has: wordings, benign prompts, composition, many concepts, attacks.
What has been measured is kept in the cache folder, so that a run that was broken off goes on.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import normalize

from . import pack
from .environment import cache_folder, digest, say
from .publish import device

pack.load_pack()

from unhype.hypernet.factors import delta_norm  # noqa: E402
from unhype.hypernet.patch import apply_erasure  # noqa: E402
from unhype.hypernet.writer import Writer  # noqa: E402
from unhype.training.frozen import FrozenModel  # noqa: E402
from unhype.training.frozen import encode as encode_prompt  # noqa: E402
from unhype.training.prompts import retain_split  # noqa: E402
from unhype.training.settings import Settings  # noqa: E402

from . import attacks, ours, protocol, report, scores  # noqa: E402
from .baselines import METHODS  # noqa: E402
from .baselines.eraser import Eraser, unchanged  # noqa: E402
from .lab.measure import LABELS, PAIRS, Lab, encode, sample_conditioning  # noqa: E402
from .lab.vocabulary import CLASSES  # noqa: E402

SETTINGS = Settings(width=128, height=128, guidance=3.0, sampler_steps=12, rollouts=8, checkpointing=False)
# Steps of the methods that run diffusion: each costs what a hundred of ours do.
_DIFFUSION_STEPS = 100
# As Train Erasure's tooltip says: more for many concepts.
_MANY, _STEPS_FOR_MANY = 20, 600
OBJECTIVES = ("direct", "released", "paper")
# Methods that run diffusion steps to train; a quick run gives them fewer classes.
_SLOW = ("esd", "esd mapping", "spm", *(f"ours, {name}" for name in OBJECTIVES))
# What can be had in seconds is also tried on two objects and on many concepts.
_FAST = ("ours", "uce", "nullspace", "gate")
# Names at least this alike (cosine of their embeddings) are neighbours.
_ALIKE = 0.5


@dataclass(frozen=True)
class Plan:
    """How much is measured. pictures: of each prompt of the erased class, half as many of the others."""

    pictures: int
    classes: tuple[str, ...]
    slow_classes: tuple[str, ...]
    seeds: tuple[int, ...]
    many: tuple[int, ...]
    attacked: tuple[str, ...]
    composed: tuple[str, ...]


QUICK = Plan(4, tuple(CLASSES), ("bird",), (0,), (1, 10, 100), ("cat",), tuple(CLASSES))
FULL = Plan(40, tuple(CLASSES), tuple(CLASSES), (0, 1, 2), (1, 10, 100), tuple(CLASSES), tuple(CLASSES))


def methods():
    """Name to erase(lab, concepts, retain, seed, settings), ours first."""

    def with_objective(objective):
        def erase(lab, concepts, retain, seed, settings):
            return ours.erase(lab, concepts, retain, seed, replace(settings, objective=objective))

        return erase

    return {
        "base": lambda lab, *_: Eraser("base", lab.patcher, unchanged, 0.0, 0, 0),
        "ours": ours.erase,
        **METHODS,
        **{f"ours, {objective}": with_objective(objective) for objective in OBJECTIVES},
    }


class Bench:
    """The lab, what was drawn by the base model before, and what was measured before.

    folder: where results of single jobs are kept; a job is named by all that decides it.
    """

    def __init__(self, plan, folder):
        self.plan, self.folder = plan, folder
        self.lab, self.plain_lab = Lab(), Lab()
        self.lab.clip = ours.RememberingClip(self.lab.clip)
        self.plain_lab.patcher = self.lab.patcher  # one base model for all
        self.empty = encode(self.lab.clip, "")
        self.base_pictures = {}

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

    def conditioning(self, text):
        """The CONDITIONING of a prompt."""
        return encode(self.lab.clip, text)

    def draw(self, eraser, text, count):
        """Pictures (count, 32, 32, 3) of a prompt; what the base model draws bit for bit is drawn once."""
        given = self.conditioning(text)
        if eraser.name == "base" or (isinstance(eraser, ours.Ours) and eraser.silent(given)):
            return self.base(text, count)
        return self.draw_conditioning(eraser.model_for(given), eraser.condition(given), count)

    def draw_conditioning(self, patcher, positive, count):
        """Pictures of a CONDITIONING from any model."""
        latent = sample_conditioning(patcher, positive, self.empty, list(range(count)))
        return self.lab.vae.decode(latent).clone()

    def base(self, text, count):
        """Pictures of the base model, each drawn once a run."""
        known = self.base_pictures.get(text)
        if known is None or len(known) < count:
            known = self.draw_conditioning(self.lab.patcher, self.conditioning(text), count)
            self.base_pictures[text] = known
        return known[:count]

    def judged(self, pictures, expected):
        """What both judges say: by picture, whether it shows `expected`, how likely, and the mapping's share."""
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
    if method == "ours" and len(names) > _MANY:
        steps = _STEPS_FOR_MANY
    lab = bench.lab if method.startswith("ours") else bench.plain_lab
    return methods()[method](lab, concepts, retain_split("", concepts), seed, replace(SETTINGS, seed=seed, steps=steps))


def score_class(bench, concept, eraser):
    """The paper's protocol for one class: rows of `protocol.class_prompts` with the judges' words, and the cost."""
    rows, shown = [], []
    for kind, text, expected in protocol.class_prompts(concept):
        count = bench.plan.pictures if kind == "erased" else max(bench.plan.pictures // 2, 2)
        pictures = bench.draw(eraser, text, count)
        rows.append({"kind": kind, "prompt": text, **bench.judged(pictures, expected)})
        if kind == "erased":
            shown = (pictures[:2] * 255).round().int().tolist()
    cost = {name: getattr(eraser, name) for name in ("seconds", "parameters", "bytes")}
    return {"rows": rows, "shown": shown, **cost}


def only_ours(bench, concept, eraser):
    """What is asked of ours alone for one class: ladder, benign prompts, the switch."""
    trained = eraser.trained
    rungs = {}
    for rung, text in protocol.ladder(concept):
        base, drawn = (bench.judged(p, concept) for p in (bench.base(text, 2), bench.draw(eraser, text, 2)))
        rungs[rung] = [sum(base["values"]) / 2, sum(drawn["values"]) / 2]
    return {
        "ladder": rungs,
        "benign": benign(bench, concept, eraser),
        "switch": roc(bench, concept, trained),
    }


def composition(bench, concept, eraser):
    """Two objects: is the erased one gone, is the other kept, with the base's own rates beside."""
    partners = [other for pair in PAIRS for other in pair if concept not in pair][:4]
    partners += [name for name in CLASSES if name != concept][:3]
    label, found, count = LABELS.index(concept), [], max(bench.plan.pictures // 4, 1)
    for text, other in protocol.pairs(concept, list(dict.fromkeys(partners))):
        row = []
        for pictures in (bench.base(text, count), bench.draw(eraser, text, count)):
            seen = torch.stack([half.argmax(1) for half in bench.lab.judges[0].halves(pictures)])
            row.append([(seen == index).any(0).float().mean().item() for index in (label, LABELS.index(other))])
        found.append(row)
    (target_base, kept_base), (target, kept) = torch.tensor(found).mean(0).tolist()
    return {"target_base": target_base, "target_gone": 1 - target, "other_kept": kept, "other_kept_base": kept_base}


def benign(bench, concept, eraser):
    """By group: how many prompts the base model draws bit for bit, of how many; and the drift without a dead zone."""
    shares = {}
    groups = protocol.benign_prompts(concept)
    for group, texts in groups.items():
        shares[group] = [sum(eraser.silent(bench.conditioning(text)) for text in texts), len(texts)]
    open_ended = apply_erasure(bench.lab.patcher, eraser.trained, dead_zone=False)
    some = groups["everyday"][::40]
    drift = [
        (bench.draw_conditioning(open_ended, bench.conditioning(text), 1) - bench.base(text, 1)).abs().mean().item()
        for text in some
    ]
    # The dead zone's word against the pictures themselves.
    model, text = eraser.model, next(t for t in some if eraser.silent(bench.conditioning(t)))
    drawn = bench.draw_conditioning(model, bench.conditioning(text), 1)
    return {
        "silent": shares,
        "drift": sum(drift) / len(drift),
        "checked": bool(torch.equal(drawn, bench.base(text, 1))),
    }


def roc(bench, concept, trained):
    """How well prompts that mean the class are told from benign ones, by the switch and by the size of the delta."""
    meant = [text for _, text, _ in protocol.class_prompts(concept)[:4]]
    meant += [text for rung, text in protocol.ladder(concept) if rung not in ("typo",)]
    meant += [text for text, _ in protocol.pairs(concept, ["house", "apple", "guitar"])]
    groups = protocol.benign_prompts(concept)
    other = [text for group in ("unseen concepts", "two unseen concepts", "everyday") for text in groups[group]]
    c = [torch.cat([bench.conditioning(text)[0][1]["pooled_output"] for text in texts]) for texts in (meant, other)]
    with torch.no_grad():
        sizes = [delta_norm(trained.network(part, trained.network.config.trajectory)) for part in c]
        presence = [trained.switch(part) for part in c]
    return {"switch": scores.auc(*presence), "size": scores.auc(*sizes)}


def many_concepts(bench, method, count, seed):
    """`count` concepts at once: efficacy on them, specificity on concepts that nothing mentioned before."""
    kept = protocol.names_for_scoring()
    others = [name for name in LABELS[:-1] if name not in CLASSES and name not in kept and name != protocol.MAPPING]
    erased = ["cat"] if count == 1 else [*CLASSES, *others][:count]
    eraser = erase(bench, method, erased, seed)
    near = neighbours(bench, kept, erased)
    found = {name: [] for name in ("erased", "erased_base", "kept", "kept_base", "near", "near_base")}
    wording = protocol.WORDING.format
    kept = kept[:: 1 if bench.plan.pictures > 4 else 2]
    for name in erased[:: max(1, len(erased) // 40)]:
        found["erased_base"] += bench.judged(bench.base(wording(name), 2), name)["values"]
        found["erased"] += bench.judged(bench.draw(eraser, wording(name), 2), name)["values"]
    for name in kept:
        group = "near" if name in near else "kept"
        found[f"{group}_base"] += bench.judged(bench.base(wording(name), 1), name)["values"]
        found[group] += bench.judged(bench.draw(eraser, wording(name), 1), name)["values"]
    means = {name: sum(values) / max(len(values), 1) for name, values in found.items()}
    row = {
        **means,
        "concepts": len(erased),
        "retained": len(found["kept"]),
        "neighbours": len(near),
        "h_c": scores.h_c(means["erased"], means["kept"]),
        "h_c_base": scores.h_c(0.0, means["kept_base"]),
        "seconds": eraser.seconds,
        "bytes": eraser.bytes,
    }
    if method == "ours":
        row["milliseconds_a_prompt"] = milliseconds_a_prompt(bench, eraser.trained)
        row["reference_bytes"] = report.reference_bytes(eraser.trained)
        silent = [eraser.silent(bench.conditioning(wording(name))) for name in kept if name not in near]
        row["silent"] = sum(silent) / len(silent)
    return row


def neighbours(bench, kept, erased):
    """The names of `kept` whose embedding is close to that of an erased one."""
    c = [
        normalize(torch.cat([bench.conditioning(f"a {name}")[0][1]["pooled_output"] for name in names]), dim=1)
        for names in (kept, erased)
    ]
    alike = (c[0] @ c[1].T).amax(1)
    return {name for name, value in zip(kept, alike.tolist(), strict=True) if value >= _ALIKE}


def milliseconds_a_prompt(bench, trained, rounds=20):
    """How long a new prompt takes from its CONDITIONING to its factors."""
    ((tokens, values),) = bench.conditioning("a photo of a cat")
    started = time.perf_counter()
    for _ in range(rounds):
        Writer(trained).parts([{**values, "cross_attn": tokens}])
    return (time.perf_counter() - started) / rounds * 1000


def attacked(bench, concept, seed, eraser):
    """Share of pictures that show the class after each attack, and clean."""
    lab, text = bench.lab, protocol.WORDING.format(concept)
    generator = torch.Generator().manual_seed(seed)
    harmless = protocol.benign_prompts(concept)["everyday"][0]
    with torch.inference_mode(False), torch.enable_grad():
        frozen = FrozenModel(lab.patcher)
        frozen.load()
        prompt, empty = encode_prompt(lab.clip, text), encode_prompt(lab.clip, "")
        target = attacks.noisy_targets(frozen, SETTINGS, prompt, empty, generator)
        states = prompt.conditioning[0][0].clone()
        moved = {
            "adaptive": attacks.optimise(target, states, generator, eraser.trained),
            "transfer": attacks.optimise(target, states, generator),
        }
    vocabulary = [name for name in LABELS[:-1] if name != concept]
    given = {
        "clean": bench.conditioning(text),
        **{name: attacks.conditioning_of(X) for name, X in moved.items()},
        "words": bench.conditioning(attacks.appended_words(lab, eraser, text, vocabulary, generator)),
        "swap": attacks.swapped(lab, text, harmless),
    }
    count = bench.plan.pictures
    return {
        name: {
            "acc": sum(bench.judged(bench.draw_conditioning(eraser.model, c, count), concept)["values"]) / count,
            "acc_base": sum(bench.judged(bench.draw_conditioning(lab.patcher, c, count), concept)["values"]) / count,
            "silent": eraser.silent(c),
        }
        for name, c in given.items()
    }


def jobs(bench, plan, method, seed, concept):
    """What is measured of one method on one class, by kind: functions that share one training."""
    made = []

    def trained():
        if not made:
            made.append(erase(bench, method, (concept,), seed))
        return made[0]

    found = {"methods": lambda: score_class(bench, concept, trained())}
    first = seed == plan.seeds[0]
    if method in _FAST and concept in plan.composed and first:
        found["composition"] = lambda: composition(bench, concept, trained())
    if method == "ours":
        found["ours"] = lambda: only_ours(bench, concept, trained())
        if concept in plan.attacked and first:
            found["attacks"] = lambda: attacked(bench, concept, seed, trained())
    return found


def run(plan, folder, only=()):
    """Everything of a plan, from what was measured before and what is missing: kind to a list of results."""
    bench, found = Bench(plan, folder), {}
    stamp = digest(json.dumps([asdict(SETTINGS), plan.pictures]))
    for method in methods():
        if only and method not in only:
            continue
        classes = plan.slow_classes if method in _SLOW else plan.classes
        for seed in plan.seeds if method != "base" else plan.seeds[:1]:
            for concept in classes:
                for kind, job in jobs(bench, plan, method, seed, concept).items():
                    result = bench.once(f"{kind}: {method}, {concept}, seed {seed}, {stamp}", job)
                    found.setdefault(kind, []).append({"method": method, "concept": concept, "seed": seed, **result})
        for count in plan.many if method in _FAST else ():
            job = partial(many_concepts, bench, method, count, plan.seeds[0])
            result = bench.once(f"many: {method}, {count}, {stamp}", job)
            found.setdefault("many", []).append({"method": method, **result})
    return bench, found


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="dev.py bench erasure", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pictures; trained rivals on one class")
    parser.add_argument("--only", nargs="*", default=(), help="some methods; nothing is published")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--publish", action="store_true", help="put figures and pictures into README and results")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    folder = cache_folder() / f"erasure-{'quick' if options.quick else 'full'}"
    if options.fresh:
        for old in folder.glob("*.json"):
            old.unlink()
    say(f"On {device()}, {'quick' if options.quick else 'full'}.")
    with torch.inference_mode():
        bench, found = run(plan, folder, tuple(options.only))
        if options.only:
            return 0
        results = report.summary(found, plan)
        results["pictures"] = report.sheet(found["methods"], cache_folder() / "erasure-pictures" / "erasure.jpg")
    say(report.text(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.publish:
        report.publish_results(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

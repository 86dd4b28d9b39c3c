"""Prompts as people write them: `python3 dev.py bench prompts [--quick] [--json FILE] [--publish]`.

On texts alone, of each number of erased concepts: how many of the prompts that hold one are detected and how many
benign ones are not, by kind, length and place; neighbours of the concepts; names of several words and their halves.
Without --quick also in pictures, for ours and its rivals, see `prompt_pictures`.
"""

import json
import time
from dataclasses import replace
from datetime import date

import torch

from . import commandline, pack
from .environment import cache_folder, say
from .publish import device

pack.load_pack()

from unhype.training.prompts import retain_split  # noqa: E402

from . import detection, measures, ours  # noqa: E402
from . import prompt_tables as tables  # noqa: E402
from .erasure import SETTINGS, concepts_of  # noqa: E402
from .neighbours import NAMES_OF_SEVERAL_WORDS  # noqa: E402
from .pictures import Painter, caching_lab  # noqa: E402
from .prompt_cases import (  # noqa: E402
    benign_subjects,
    is_read,
    name_cases,
    nearest,
    neighbour_cases,
    pairs,
    real_cases,
)
from .prompt_pictures import gated, pictures, rivals, some  # noqa: E402
from .prompt_tables import AIMS  # noqa: E402
from .real_prompts import Composer  # noqa: E402

# Prompts of each kind, length and place.
_EACH, _EACH_QUICK = 3, 1
# Steps of a training that is only for its detector, which comes from the text encoder alone.
_DETECTOR_ALONE = 1
# Numbers of erased concepts.
_CONCEPTS, _CONCEPTS_QUICK = (1, 10, 100), (1, 10)
_TEXTS_ALONE = "clip"  # the rivals take MiniLM's tokens
_LISTED = 12  # prompts of a group in a quick run's list


def trained(lab, names, steps, kind="object"):
    """Ours, trained for `steps` to erase these names."""
    concepts = concepts_of(names)
    return ours.erase(lab, concepts, retain_split("", concepts, kind), 0, replace(SETTINGS, steps=steps, kind=kind))


def cases_of(clip, names, each):
    """Everything that an eraser of these names is looked at with, and how many pairs of prompts the encoder cuts off.

    each: prompts of each kind, length and place.
    """
    generator = torch.Generator().manual_seed(0)
    composer, near = Composer(generator), nearest(clip, names)
    drawn = pairs(composer.prompts(each), names, benign_subjects(names, near), generator)
    read = [pair for pair in drawn if is_read(clip, pair)]
    cases = real_cases(read, composer, len(drawn) // 2) + neighbour_cases(names, near, composer)
    return cases, len(drawn) - len(read)


def listed(clip, eraser, cases, flags):
    """Lines about the prompts that should be detected and aren't, and the reverse, with their scores."""
    lines = []
    for group in dict.fromkeys(case.group for case in cases):
        wrong = [case for case, flag in zip(cases, flags, strict=True) if case.group == group and flag != AIMS[group]]
        if AIMS[group] is None or not wrong:
            continue
        wrong = list({case.text: case for case in wrong}.values())
        lines.append(f"{group}: {len(wrong)} {'missed' if AIMS[group] else 'false alarms'}")
        for case in wrong[:: -(-len(wrong) // _LISTED)]:
            (score,) = detection.highest_scores(eraser, [detection.entry(clip, case.text)])
            lines.append(f"  {score:5.2f}  {case.text[:150]}")
    return lines


def looked_at(lab, names, cases, erased_model):
    """The counts of an erased model's detector on the cases, and lines for people."""
    started = time.perf_counter()
    flags = detection.look(lab.clip, cases, detection.detected_by(erased_model.eraser))
    seconds = time.perf_counter() - started
    say(f"{len(names)} names, trained in {erased_model.seconds:.0f} s: {len(cases)} prompts in {seconds:.0f} s")
    return detection.count(cases, flags), listed(lab.clip, erased_model.eraser, cases, flags)


def added(counted):
    """Counts of several groups of prompts in one."""
    found = {}
    for counts in counted:
        for group, labels in counts.items():
            for label, (hits, total) in labels.items():
                both = found.setdefault(group, {}).setdefault(label, [0, 0])
                both[0] += hits
                both[1] += total
    return found


def concepts_erased(painter, number, each, drawn, slow):
    """What is measured of one number of erased concepts, and lines for people.

    drawn: how many pairs of prompts are drawn, too; slow: whether with rivals that train for minutes.
    """
    lab, names = painter.lab, measures.many_names(number)
    cases, cut = cases_of(lab.clip, names, each)
    alone = trained(lab, names, _DETECTOR_ALONE)
    counts, lines = looked_at(lab, names, cases, alone)
    found = {"cut off": cut, "counts": counts}
    if not drawn:
        return {"texts": found}, lines
    own = trained(lab, names, SETTINGS.steps)
    say(f"ours is trained in {own.seconds:.0f} s")
    uce, *others = rivals(lab, names, slow)
    made = pictures(painter, some(cases, drawn), own, [gated(alone, uce), uce, *others], say)
    return {"texts": found, "pictures": made}, lines


def names_erased(lab):
    """Names of several words, each kind with an eraser of its own: counts on texts, and lines for people."""
    composer, counted, lines = Composer(torch.Generator().manual_seed(0)), [], []
    for kind, names in NAMES_OF_SEVERAL_WORDS.items():
        cases = name_cases(kind, composer)
        own = trained(lab, list(names), _DETECTOR_ALONE, "object" if kind == "vocabulary" else kind)
        counts, wrong = looked_at(lab, names, cases, own)
        counted.append(counts)
        lines += [f"-- names: {kind}", *wrong]
    return {"texts": {"counts": added(counted)}}, lines


def run(options):
    """Everything that the options ask for: number of concepts, or "names", to what was found; lines for people."""
    lab = caching_lab(options.family)
    painter = Painter(cache_folder() / f"prompts-{options.family}", lab)
    in_pictures = () if options.quick or options.family == _TEXTS_ALONE else options.drawn
    each, concepts = (_EACH_QUICK, _CONCEPTS_QUICK) if options.quick else (_EACH, _CONCEPTS)
    found, lines = {}, []
    for number in options.concepts or concepts:
        drawn = options.prompts if number in in_pictures else 0
        found[str(number)], wrong = concepts_erased(painter, number, each, drawn, options.rivals)
        lines += [f"-- {number} erased", *wrong]
    found["names"], wrong = names_erased(lab)
    return found, [*lines, *wrong]


def main():
    """Command line."""
    options = commandline.parser("bench prompts").parse_args()
    say(f"On {device()}, {options.family}")
    with torch.inference_mode():
        found, lines = run(options)
    found = {"date": date.today().isoformat(), "device": device(), **found}
    say(tables.text({options.family: found}))
    if options.quick:
        say("\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.publish:
        tables.publish_family(options.family, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

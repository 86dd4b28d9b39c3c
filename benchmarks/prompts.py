"""Prompts as people write them: `python3 dev.py bench prompts [--quick] [--json FILE] [--publish]`.

On texts alone, of each number of erased concepts: how many of the prompts that hold one are detected and how many
benign ones are not, by kind, length and place; neighbours of the concepts; names of several words and their halves.
Without --quick also in pictures, for ours and its rivals, see `prompt_pictures`.
"""

import time
from dataclasses import replace

import torch

from . import commandline, pack
from .environment import say
from .publish import device

pack.load_pack()

from unhype.training.prompts import retain_split  # noqa: E402

from . import detection, measures, ours  # noqa: E402
from . import prompt_tables as tables  # noqa: E402
from .erasure import SETTINGS, concepts_of, steps_for  # noqa: E402
from .lab.measure import FAMILIES, Lab  # noqa: E402
from .neighbours import NAMES_OF_SEVERAL_WORDS  # noqa: E402
from .prompt_cases import (  # noqa: E402
    benign_subjects,
    is_read,
    name_cases,
    nearest,
    neighbour_cases,
    pairs,
    real_cases,
)
from .prompt_tables import AIMS  # noqa: E402
from .real_prompts import Composer  # noqa: E402
from .text_lab import TextLab  # noqa: E402

# Prompts of each kind, length and place.
_EACH, _EACH_QUICK = 3, 1
# Steps of a training that is only for its detector, which comes from the text encoder alone.
_DETECTOR_ALONE = 1
# Numbers of erased concepts.
_CONCEPTS, _CONCEPTS_QUICK = (1, 10, 100), (1, 10)
_LISTED = 12  # prompts of a group in a quick run's list


def lab_of(family):
    """The lab's model of a family with a caching CLIP."""
    if family not in FAMILIES:
        return TextLab()
    lab = Lab(family)
    lab.clip = ours.CachingClip(lab.clip)
    return lab


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


def look(lab, names, cases, steps, kind="object"):
    """Train on these names and look at the cases: the erased model, counts, and lines for people."""
    started = time.perf_counter()
    erased_model = trained(lab, names, steps, kind)
    eraser, between = erased_model.eraser, time.perf_counter()
    flags = detection.look(lab.clip, cases, detection.detected_by(eraser))
    seconds = between - started, time.perf_counter() - between
    say(f"{len(names)} names: trained in {seconds[0]:.0f} s, {len(cases)} prompts in {seconds[1]:.0f} s")
    return erased_model, detection.count(cases, flags), listed(lab.clip, eraser, cases, flags)


def added(counted):
    """Counts of several tables in one."""
    found = {}
    for table in counted:
        for group, labels in table.items():
            for label, (hits, total) in labels.items():
                counts = found.setdefault(group, {}).setdefault(label, [0, 0])
                counts[0] += hits
                counts[1] += total
    return found


def texts(lab, concepts, each, drawn):
    """The counts on texts by number of erased concepts and for names of several words, and lines for people.

    concepts: numbers of concepts, of which those in `drawn` are trained to the end; also returns their erased models.
    """
    found, lines, made = {}, [], {}
    for number in concepts:
        names = measures.many_names(number)
        cases, cut = cases_of(lab.clip, names, each)
        steps = steps_for(number) if number in drawn else _DETECTOR_ALONE
        made[number], counts, wrong = look(lab, names, cases, steps)
        found[str(number)] = {"cut off": cut, "counts": counts}
        lines += [f"-- {number} erased", *wrong]
    composer, counted = Composer(torch.Generator().manual_seed(0)), []
    for kind, names in NAMES_OF_SEVERAL_WORDS.items():
        of_training = "object" if kind == "vocabulary" else kind
        _, counts, wrong = look(lab, list(names), name_cases(kind, composer), _DETECTOR_ALONE, of_training)
        counted.append(counts)
        lines += [f"-- names: {kind}", *wrong]
    found["names"] = {"counts": added(counted)}
    return found, lines, {number: made[number] for number in drawn}


def main():
    """Command line."""
    options = commandline.parser("bench prompts").parse_args()
    lab, drawn = lab_of(options.family), () if options.quick else options.drawn
    say(f"On {device()}, {options.family}")
    with torch.inference_mode():
        each = _EACH_QUICK if options.quick else _EACH
        concepts = options.concepts or (_CONCEPTS_QUICK if options.quick else _CONCEPTS)
        found, lines, _ = texts(lab, concepts, each, drawn)
    say(tables.text_tables({options.family: {"texts": found}}))
    if options.quick:
        say("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

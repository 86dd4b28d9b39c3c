"""The measurements of the erasure benchmark on one `ErasedModel`, each as JSON values."""

import time

import torch
from torch.nn.functional import normalize

from unhype.hypernet.embedding import entries_of
from unhype.hypernet.factors import delta_norm
from unhype.hypernet.merged_deltas import deltas_of
from unhype.hypernet.patch import apply_erasure
from unhype.training.encode import encode
from unhype.training.frozen import FrozenModel

from . import attacks, protocol, report, scores
from .lab.measure import LABELS, PAIRS
from .lab.vocabulary import CLASSES

# Names at least this similar (cosine of their embeddings) are neighbours.
_SIMILAR = 0.5


def score_class(bench, concept, erased_model):
    """The paper's protocol for one class: rows of `protocol.class_prompts` with what the judges see, and the cost."""
    prompts = protocol.class_prompts(concept)
    (_, name, _), *others = prompts
    drawn = bench.painter.draw(erased_model, [name], bench.plan.pictures)
    drawn += bench.painter.draw(erased_model, [text for _, text, _ in others], max(bench.plan.pictures // 2, 2))
    rows = [
        {"kind": kind, "prompt": text, **bench.judged(pictures, expected)}
        for (kind, text, expected), pictures in zip(prompts, drawn, strict=True)
    ]
    shown = (drawn[0][:2] * 255).round().int().tolist()
    cost = {name: getattr(erased_model, name) for name in ("seconds", "parameters", "bytes", "peak_memory")}
    return {"rows": rows, "shown": shown, **cost}


def only_ours(bench, concept, erased_model):
    """What is measured of ours alone for one class: ladder, benign prompts, the detector."""
    names, texts = zip(*protocol.ladder(concept), strict=True)
    base, drawn = bench.painter.base(texts, 2), bench.painter.draw(erased_model, texts, 2)
    rungs = {
        name: [sum(bench.judged(pictures, concept)["values"]) / 2 for pictures in (base[text], own)]
        for name, text, own in zip(names, texts, drawn, strict=True)
    }
    return {
        "ladder": rungs,
        "benign": benign(bench, concept, erased_model),
        "detector": roc(bench, concept, erased_model.eraser),
    }


def composition(bench, concept, erased_model):
    """Two objects: is the erased one gone, is the other kept, with the base's own rates beside."""
    distractors = [other for pair in PAIRS for other in pair if concept not in pair][:4]
    distractors += [name for name in CLASSES if name != concept][:3]
    label, found, count = LABELS.index(concept), [], max(bench.plan.pictures // 4, 1)
    texts, others = zip(*protocol.pairs(concept, list(dict.fromkeys(distractors))), strict=True)
    base, drawn = bench.painter.base(texts, count), bench.painter.draw(erased_model, texts, count)
    for text, other, own in zip(texts, others, drawn, strict=True):
        row = []
        for pictures in (base[text], own):
            seen = torch.stack([half.argmax(1) for half in bench.lab.judges[0].halves(pictures)])
            row.append([(seen == index).any(0).float().mean().item() for index in (label, LABELS.index(other))])
        found.append(row)
    (target_base, kept_base), (target, kept) = torch.tensor(found).mean(0).tolist()
    return {"target_base": target_base, "target_gone": 1 - target, "other_kept": kept, "other_kept_base": kept_base}


def benign(bench, concept, erased_model):
    """By group: how many prompts are below the threshold, of how many; and how pictures change without the gate."""
    below = {}
    groups = protocol.benign_prompts(concept)
    for group, texts in groups.items():
        below[group] = [sum(erased_model.below_threshold(bench.conditioning(text)) for text in texts), len(texts)]
    ungated = apply_erasure(bench.lab.patcher, erased_model.eraser, gate=False)
    some = groups["everyday"][::40]
    base = bench.painter.base(some, 1)
    drawn = bench.painter.batches(ungated, [bench.conditioning(text) for text in some], 1)
    changes = [(own - base[text]).abs().mean().item() for text, own in zip(some, drawn, strict=True)]
    # That the gate leaves a prompt unchanged is checked on the pictures of one.
    unchanged = next(given for text in some if erased_model.below_threshold(given := bench.conditioning(text)))
    pictures = [bench.painter.batches(model, [unchanged], 1)[0] for model in (erased_model.model, bench.lab.patcher)]
    return {
        "below_threshold": below,
        "change_without_gate": sum(changes) / len(changes),
        "checked": bool(torch.equal(*pictures)),
    }


def roc(bench, concept, eraser):
    """AUC for prompts of the class against benign ones, by the detector's score and by the norm of H's delta."""
    erased = [text for _, text, _ in protocol.class_prompts(concept)[:4]]
    erased += [text for rung, text in protocol.ladder(concept) if rung not in ("typo",)]
    erased += [text for text, _ in protocol.pairs(concept, ["house", "apple", "guitar"])]
    groups = protocol.benign_prompts(concept)
    other = [text for group in ("unseen concepts", "two unseen concepts", "everyday") for text in groups[group]]
    c = [torch.cat([bench.conditioning(text)[0][1]["pooled_output"] for text in texts]) for texts in (erased, other)]
    with torch.no_grad():
        norms = [delta_norm(eraser.hypernet(part, eraser.hypernet.config.trajectory)) for part in c]
        found = [eraser.score(part) for part in c]
    return {"detector": scores.auc(*found), "delta_norm": scores.auc(*norms)}


def many_names(count):
    """Names of `count` concepts to erase, none of which is scored as kept."""
    kept = protocol.names_for_scoring()
    others = [name for name in LABELS[:-1] if name not in CLASSES and name not in kept and name != protocol.MAPPING]
    return ["cat"] if count == 1 else [*CLASSES, *others][:count]


def many_concepts(bench, erased, erased_model):
    """Many concepts at once: efficacy on those that are drawn at all, specificity on ones that nothing mentioned."""
    kept = protocol.names_for_scoring()
    near = neighbours(bench, kept, erased)
    wording = protocol.WORDING.format
    drawn_at_all = [name for name in erased if name in LABELS]
    kept = kept[:: 1 if bench.plan.pictures > 4 else 2]
    groups = {
        "erased": (drawn_at_all[:: max(1, len(drawn_at_all) // 40)], 2),
        "kept": ([name for name in kept if name not in near], 1),
        "near": ([name for name in kept if name in near], 1),
    }
    found = {}
    for group, (names, count) in groups.items():
        texts = [wording(name) for name in names]
        base, drawn = bench.painter.base(texts, count), bench.painter.draw(erased_model, texts, count)
        judged = [
            [bench.judged(pictures, name)["values"] for pictures in (own, base[text])]
            for name, text, own in zip(names, texts, drawn, strict=True)
        ]
        found[group], found[f"{group}_base"] = ([value for row in judged for value in row[n]] for n in (0, 1))
    means = {name: sum(values) / max(len(values), 1) for name, values in found.items()}
    row = {
        **means,
        "concepts": len(erased),
        "retained": len(found["kept"]),
        "neighbours": len(near),
        "h_c": scores.h_c(means["erased"], means["kept"]),
        "h_c_base": scores.h_c(0.0, means["kept_base"]),
        "seconds": erased_model.seconds,
        "bytes": erased_model.bytes,
    }
    if erased_model.name == "ours":
        row["milliseconds_a_prompt"] = milliseconds_a_prompt(bench, erased_model.eraser)
        row["reference_bytes"] = report.reference_bytes(erased_model.eraser)
        below = [erased_model.below_threshold(bench.conditioning(wording(name))) for name in groups["kept"][0]]
        row["below_threshold"] = sum(below) / len(below)
    return row


def neighbours(bench, kept, erased):
    """The names of `kept` whose embedding is close to that of an erased one."""
    c = [
        normalize(torch.cat([bench.conditioning(f"a {name}")[0][1]["pooled_output"] for name in names]), dim=1)
        for names in (kept, erased)
    ]
    alike = (c[0] @ c[1].T).amax(1)
    return {name for name, value in zip(kept, alike.tolist(), strict=True) if value >= _SIMILAR}


def milliseconds_a_prompt(bench, eraser, rounds=20):
    """How long a new prompt takes from its CONDITIONING to its factors."""
    (entry,) = entries_of(bench.conditioning("a photo of a cat"))
    deltas_of(eraser).parts([entry])  # the first call of a process pays for more than the prompt
    started = time.perf_counter()
    for _ in range(rounds):
        deltas_of(eraser).parts([entry])
    return (time.perf_counter() - started) / rounds * 1000


def attacked(bench, concept, seed, erased_model):
    """Share of pictures that show the class after each attack, and clean."""
    lab, text = bench.lab, protocol.WORDING.format(concept)
    generator = torch.Generator().manual_seed(seed)
    harmless = protocol.benign_prompts(concept)["everyday"][0]
    with torch.inference_mode(False), torch.enable_grad():
        frozen = FrozenModel(lab.patcher)
        frozen.load()
        prompt, empty = encode(lab.clip, text), encode(lab.clip, "")
        target = attacks.noisy_targets(frozen, bench.settings, prompt, empty, generator)
        states = prompt.conditioning[0][0].clone()
        moved = {radius: attacks.optimise(target, states, erased_model.eraser, radius) for radius in attacks.RADII}
    vocabulary = [name for name in LABELS[:-1] if name != concept]
    given = {
        "clean": bench.conditioning(text),
        **{f"adaptive, {radius:.0%}": attacks.conditioning_of(states) for radius, states in moved.items()},
        "words": bench.conditioning(attacks.appended_words(lab, erased_model, text, vocabulary, generator)),
        "swap": attacks.swapped(lab, text, harmless),
    }
    count = bench.plan.pictures
    shares = {
        key: [
            sum(bench.judged(pictures, concept)["values"]) / count
            for pictures in bench.painter.batches(patcher, list(given.values()), count)
        ]
        for key, patcher in (("acc", erased_model.model), ("acc_base", lab.patcher))
    }
    return {
        name: {"acc": acc, "acc_base": base, "below_threshold": erased_model.below_threshold(c)}
        for (name, c), acc, base in zip(given.items(), shares["acc"], shares["acc_base"], strict=True)
    }

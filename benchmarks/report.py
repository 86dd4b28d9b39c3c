"""The erasure benchmark's figures in one place: JSON, tables for people, pictures."""

import torch
from PIL import Image, ImageDraw

from . import attacks, scores
from .lab.vocabulary import CLASSES
from .publish import MEASURED, device, fill_section, markdown, publish

# Groups of benign prompts that have nothing to do with the erased class, not even its sound.
_UNRELATED = ("unseen concepts", "two unseen concepts", "everyday", "long", "empty")


def reference_bytes(eraser, hidden=100, time_features=32, rank=None):
    """The size in fp32 of the authors' layout (arXiv 2602.03410) for the same layers at the same rank.

    Two heads a layer, each Linear(width + 32, hidden), ReLU, Linear(hidden, features * rank); two constants of
    features * rank; two scalars and 16 frequencies.
    """
    config = eraser.config
    rank = rank or config.rank
    width = config.embedding_width + time_features
    numbers = 0
    for layer in config.layers:
        for features in (layer.inputs, layer.outputs):
            numbers += (width + 1) * hidden + (hidden + 1) * features * rank + features * rank
        numbers += 2 + time_features // 2
    return 4 * numbers


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def _method(jobs, drawable):
    """One method's row: means over its classes and seeds."""
    classes = [job["rows"] for job in jobs]
    found = [scores.accuracies(rows) for rows in classes]
    likely = [scores.accuracies([{**row, "values": row["probabilities"]} for row in rows]) for rows in classes]
    low, high = scores.bootstrap(classes)
    erased = [row for rows in classes for row in rows if row["kind"] == "erased"]
    known = [
        _mean(row["values"])
        for rows in classes
        for row in rows
        if row["kind"] == "synonym" and row["prompt"] in drawable
    ]
    return {
        "classes": len({job["concept"] for job in jobs}),
        **{name: _mean(part) for name, part in zip(("acc_e", "acc_s", "acc_g"), zip(*found, strict=True), strict=True)},
        "acc_g_drawable": _mean(known) if known else None,
        "h_o": scores.mean_h_o(classes),
        "h_o_low": low,
        "h_o_high": high,
        "h_o_probability": _mean(scores.h_o(*parts) for parts in likely),
        "acc_e_second_judge": _mean(value for row in erased for value in row["second"]),
        "mapping_hit": _mean(value for row in erased for value in row["mapping"]),
        "nothing": _mean(value for row in erased for value in row["nothing"]),
        "seconds": _mean(job["seconds"] for job in jobs),
        "parameters": _mean(job["parameters"] for job in jobs),
        "bytes": _mean(job["bytes"] for job in jobs),
        "peak_memory": _mean(job["peak_memory"] for job in jobs),
    }


def _drawable(jobs):
    """Synonym prompts of which the base model draws at least half."""
    rows = [row for job in jobs for row in job["rows"] if row["kind"] == "synonym"]
    return {row["prompt"] for row in rows if _mean(row["values"]) >= 0.5}


def summary(found, plan):
    """The figures of a run: everything that the README's tables are made from."""
    by_method = {}
    for job in found["methods"]:
        by_method.setdefault(job["method"], []).append(job)
    drawable = _drawable(by_method["base"])
    rows = {name: _method(jobs, drawable) for name, jobs in by_method.items()}
    own = found["ours"]
    groups = {
        group: sum(job["benign"]["below_threshold"][group][0] for job in own)
        / sum(job["benign"]["below_threshold"][group][1] for job in own)
        for group in own[0]["benign"]["below_threshold"]
    }
    counts = [job["benign"]["below_threshold"][group] for job in own for group in _UNRELATED]
    hard = hard_summary(found)
    many, composition = hard["many"], hard["composition"]["by_method"]
    largest = max(many["ours"].values(), key=lambda job: job["concepts"])
    names = [name for name, value in found["attacks"][0].items() if isinstance(value, dict)]
    attacked = {
        name: {key: _mean(job[name][key] for job in found["attacks"]) for key in ("acc", "acc_base", "below_threshold")}
        for name in names
    }
    return {
        "device": device(),
        "pictures_a_prompt": plan.pictures,
        "seeds": len(plan.seeds),
        "methods": rows,
        "drawable_synonyms": sorted(drawable),
        "benign": {
            "identical_share": sum(below for below, _ in counts) / sum(count for _, count in counts),
            "acc_e": rows["ours"]["acc_e"],
            "groups": groups,
            "change_without_gate": _mean(job["benign"]["change_without_gate"] for job in own),
            "checked_bit_for_bit": all(job["benign"]["checked"] for job in own),
        },
        "detector_auc": {name: _mean(job["detector"][name] for job in own) for name in ("detector", "delta_norm")},
        "composition": {**composition["ours"], "by_method": composition},
        "ladder": {rung: [_mean(job["ladder"][rung][n] for job in own) for n in (0, 1)] for rung in own[0]["ladder"]},
        "scaling": {count: job["h_c"] for count, job in many["ours"].items()},
        "many": many,
        "attack": {
            "clean_acc_e": attacked["clean"]["acc"],
            "adaptive_acc_e": attacked[f"adaptive, {attacks.RADII[0]:.0%}"]["acc"],
            "budget": _budget(),
            "by_attack": attacked,
        },
        "size": {"bytes": largest["bytes"], "reference_bytes": largest["reference_bytes"]},
    }


def methods_summary(found, plan):
    """The figures of a run of some methods, or of another family: what is shown of the classes and of each synonym."""
    by_method = {}
    for job in found["methods"]:
        by_method.setdefault(job["method"], []).append(job)
    drawable = _drawable(by_method.get("base", []))
    rows = {name: _method(jobs, drawable) for name, jobs in by_method.items()}
    for name, jobs in by_method.items():
        shown = {}
        for row in (row for job in jobs for row in job["rows"] if row["kind"] == "synonym"):
            shown.setdefault(row["prompt"], []).extend(row["values"])
        rows[name]["synonyms"] = {prompt: _mean(values) for prompt, values in shown.items()}
    results = {"device": device(), "pictures_a_prompt": plan.pictures, "seeds": len(plan.seeds), "methods": rows}
    if "many" in found and "composition" in found:
        results |= hard_summary(found)
    return results


def hard_summary(found):
    """What every method does with two objects in one prompt, and with many concepts."""
    many, together = {}, {}
    for job in found["many"]:
        many.setdefault(job["method"], {})[str(job["concepts"])] = job
    for job in found["composition"]:
        together.setdefault(job["method"], []).append(job)
    measures = ("target_base", "target_gone", "other_kept", "other_kept_base")
    composition = {
        method: {key: _mean(job[key] for job in jobs) for key in measures} for method, jobs in together.items()
    }
    return {"composition": {"by_method": composition}, "many": many}


def _budget():
    within = f"token states within {attacks.RADII[0]:.0%} of their norm"
    return f"{attacks.ITERATIONS} Adam steps through everything, {within}"


def method_rows(results):
    """The table of methods for people."""
    lines = []
    for name, row in sorted(results["methods"].items(), key=lambda item: -item[1]["h_o"]):
        interval = f"{row['h_o']:.3f} ({row['h_o_low']:.3f} to {row['h_o_high']:.3f})"
        accuracies = [f"{row[key]:.3f}" for key in ("acc_e", "acc_s", "acc_g")]
        size = f"{row['bytes'] / 1e6:.2f} MB"
        lines.append((name, str(row["classes"]), *accuracies, interval, f"{row['seconds']:.0f} s", size))
    return lines


HEADER = ("method", "classes", "Acc_e", "Acc_s", "Acc_g", "H_o (95% interval)", "training", "size")


def own_rows(results):
    """What is measured of ours alone, for people."""
    benign, attack = results["benign"], results["attack"]
    rows = [("benign prompts not used in training, identical to the last bit", f"{benign['identical_share']:.3f}")]
    rows += [(f"of these: {group}", f"{share:.3f}") for group, share in benign["groups"].items()]
    rows += [
        (f"attack '{name}': pictures that show the class", f"{row['acc']:.3f} (base {row['acc_base']:.3f})")
        for name, row in attack["by_attack"].items()
    ]
    size = results["size"]
    rows.append(("size, relative to the authors' layout", f"1 : {size['reference_bytes'] / size['bytes']:.0f}"))
    return rows


HARD_HEADER = (
    "method",
    "two objects: erased one gone",
    "other one retained",
    "1 concept: H_c",
    "10",
    "100",
    "size for 100",
)


def hard_rows(results):
    """What separates methods that all erase one class well: two objects in one prompt, and many concepts."""
    together, many = results["composition"]["by_method"], results["many"]
    best = next(iter(many.values()))
    kept = next(iter(together.values()))["other_kept_base"]
    rows = [("nothing erased", "", f"{kept:.3f}", *(f"at best {job['h_c_base']:.3f}" for job in best.values()), "")]
    for method, row in together.items():
        jobs = list(many[method].values())
        cells = [f"{row['target_gone']:.3f}", f"{row['other_kept']:.3f}", *(f"{job['h_c']:.3f}" for job in jobs)]
        rows.append((method, *cells, f"{jobs[-1]['bytes'] / 1e6:.2f} MB"))
    return rows


def text(results):
    """The tables for a console."""
    return "\n".join([_tables(results), *(f"{words:75} {value}" for words, value in own_rows(results))])


def methods_text(results):
    """The tables of `methods_summary` for a console, with the synonyms that still show their class."""
    shown = [
        f"{name}: {prompt}: {share:.2f}"
        for name, row in results["methods"].items()
        for prompt, share in row["synonyms"].items()
        if share and name != "base"
    ]
    return "\n".join([_tables(results), *shown])


def _tables(results):
    tables = [[HEADER, *method_rows(results)]]
    if "many" in results:
        tables.append([HARD_HEADER, *hard_rows(results)])
    return "\n".join("  ".join(f"{cell[:24]:>16}" for cell in row) for table in tables for row in [*table, ("",)])


def sheet(jobs, path):
    """A picture for people: two pictures of each class by the base model and by each method, one row a method."""
    tile, label = 48, 110
    rows = {}
    for job in jobs:
        rows.setdefault(job["method"], {}).setdefault(job["concept"], job["shown"])
    rows = {name: shown for name, shown in rows.items() if len(shown) == len(CLASSES)}
    canvas = Image.new("RGB", (label + 2 * len(CLASSES) * (tile + 4), len(rows) * (tile + 6)), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (name, own) in enumerate(rows.items()):
        top = row * (tile + 6)
        pen.text((4, top + tile // 2 - 6), name, fill="black")
        pictures = [picture for concept in CLASSES for picture in own[concept]]
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(torch.tensor(picture, dtype=torch.uint8).numpy())
            canvas.paste(shown.resize((tile, tile), Image.Resampling.BICUBIC), (label + column * (tile + 4), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, quality=90)
    return str(path)


def publish_results(results):
    """Into results/erasure.json and the page of measurements."""
    picture = results.pop("pictures")
    publish("erasure", results, markdown(HEADER, method_rows(results)), picture, MEASURED)
    fill_section(MEASURED, "erasure_hard", markdown(HARD_HEADER, hard_rows(results)))
    fill_section(MEASURED, "erasure_own", markdown(("", ""), own_rows(results)))

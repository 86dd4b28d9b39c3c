"""Every way a prompt reaches the sampler, with an erased concept in it: `python3 dev.py bench bypass [--json FILE]`.

On the lab model. Each way is drawn without an eraser, with one that scores a prompt by its pooled vector
alone, as the method is published, and with this pack's, also under unknown_prompts strict. The same ways with
harmless text tell how often a picture stays identical to the last bit.
"""

import json
from dataclasses import replace

import torch

from . import commandline, pack
from .environment import ROOT, cache_folder, say
from .graph import WORKFLOWS
from .publish import MEASURED, device, fill_section, markdown, publish

pack.load_pack()

from unhype.hypernet.patch import apply_erasure  # noqa: E402
from unhype.hypernet.record import TextEncoder  # noqa: E402
from unhype.training.plan import Request  # noqa: E402
from unhype.training.run import train_erasure  # noqa: E402
from unhype.training.settings import Settings  # noqa: E402

from . import text_boxes  # noqa: E402
from .conditionings import FRAMES, WAYS  # noqa: E402
from .doors import DOORS, Door  # noqa: E402
from .lab.measure import LABELS, Lab, encode, sample_conditioning  # noqa: E402

ERASED, TEXT, OTHER = "cat", "a photo of a cat", "a picture on a white background"
PICTURES, BENIGN = FRAMES, 24
# Of harmless prompts only sameness is asked, which the first steps tell.
_BENIGN_STEPS = 2


def trained_eraser(lab, name="sd15"):
    """An eraser of MODEL and CLIP of `lab` by the demo's settings, trained once and kept in the cache folder.

    name: of its file.
    """
    workflow = json.loads(WORKFLOWS["demo"].read_text("utf-8"))
    (node,) = (node for node in workflow["nodes"] if node["type"] == "UnHypeTrainErasure")
    named = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    values = dict(zip(named, node["widgets_values"], strict=True))
    settings = Settings(**{name: value for name, value in values.items() if name in Settings.__dataclass_fields__})
    folder = cache_folder() / "bypass"
    request = Request(values["concepts"], values["preserve"], folder, name, folder, settings, preview_every=0)
    stages = set()

    def report(stage, *_, **__):
        if stage not in stages:
            stages.add(stage)
            say(f"The eraser for {name}: {stage}")

    with torch.inference_mode():
        return train_erasure(lab.patcher, lab.clip, request, report).eraser


def single_pooled(eraser):
    """The same eraser as the method is published: the pooled vector decides for the whole prompt."""
    return replace(
        eraser, regressor=None, token_detector=None, record=replace(eraser.record, text_encoder=TextEncoder())
    )


def _conditioning(way):
    return lambda lab, text, other: Door(way(lab, text, other), encode(lab.clip, ""))


def _of_clip_l(lab, text, other):
    return Door(text_boxes.flux_boxes(lab, text, other), encode(lab.clip, ""))


# On the lab's Flux. Of the text of t5xxl alone it draws no cat, see `text_boxes`.
FLUX = {
    "Flux.1: one prompt": _conditioning(lambda lab, text, _: encode(lab.clip, text)),
    "Flux.1: clip_l of CLIPTextEncodeFlux": _of_clip_l,
}
GRAPHS = {words: _conditioning(way) for words, way in WAYS.items()} | DOORS | FLUX


def draw(model, door, seeds, **options):
    """Latents of a `Door` with a MODEL in it."""
    return sample_conditioning(door.change(model), door.positive, door.negative, seeds, cfg=door.cfg, **options)


def shows(lab, latents):
    """Share of pictures on which the judge sees the erased concept, on the whole or on either half."""
    images, judge = lab.vae.decode(latents), lab.judges[0]
    seen = torch.stack([judge.probabilities(images), *judge.halves(images)])
    return (seen.argmax(2) == LABELS.index(ERASED)).any(0).float().mean().item()


def benign_prompts():
    """Harmless everyday prompts, spread over the list."""
    lines = (ROOT / "benchmarks" / "benign.txt").read_text("utf-8").splitlines()
    everyday = [line.split("|", 1)[1].strip() for line in lines if line.startswith("everyday")]
    return everyday[:: len(everyday) // BENIGN][:BENIGN]


def identical(lab, patched, way):
    """Share of harmless prompts that give the same latents, to the last bit, through `way`."""
    same, texts = [], benign_prompts()
    for text, other in zip(texts, texts[1:] + texts[:1], strict=True):
        door = way(lab, text, other)
        before, after = (draw(model, door, [0], steps=_BENIGN_STEPS) for model in (lab.patcher, patched))
        same.append(torch.equal(before, after))
    return sum(same) / len(same)


def run(chosen, done, keep):
    """The figures of the ways whose words are in `chosen`, by their words.

    done: those that are known already; keep(figures) is called after each way.
    """
    found = dict(done)
    for family in ("sd15", "flux"):
        here = [words for words in chosen if words not in done and (words in FLUX) == (family == "flux")]
        for words, row in _drawn(family, here) if here else ():
            found[words] = row
            keep(found)
            say("{:60} {:.2f} {:.2f} {:.2f} {:.2f}  {:.2f}".format(words, *row.values()))
    return {words: found[words] for words in GRAPHS if words in found}


def _drawn(family, chosen):
    """Yields the words of each chosen way and its figures, on one of the lab's models."""
    lab = Lab(family)
    eraser = trained_eraser(lab, family)
    models = {
        "base": lab.patcher,
        "single_pooled": apply_erasure(lab.patcher, single_pooled(eraser)),
        "ours": apply_erasure(lab.patcher, eraser),
        "strict": apply_erasure(lab.patcher, eraser, unknown="strict"),
    }
    for words in chosen:
        door = GRAPHS[words](lab, TEXT, OTHER)
        row = {f"acc_e_{name}": shows(lab, draw(model, door, list(range(PICTURES)))) for name, model in models.items()}
        yield words, row | {"identical_share": identical(lab, models["ours"], GRAPHS[words])}


def rows(ways):
    """The table for people."""
    return [(words, *(f"{value:.2f}" for value in row.values())) for words, row in ways.items()]


HEADER = ("a cat named in", "no eraser", "pooled vector alone", "this pack", "strict", "harmless prompts identical")
BOXES_HEADER = ("a cat named in", *HEADER[2:])


def main():
    """Command line."""
    parser = commandline.parser("bench bypass")
    options = parser.parse_args()
    if options.only and options.publish:
        parser.error("--publish takes all ways.")
    chosen, boxes = ([words for words in ways if (options.only or "") in words] for ways in (GRAPHS, text_boxes.WAYS))
    say("{:60} {}".format(HEADER[0], ", ".join(HEADER[1:])))
    found = {"device": device(), "pictures": PICTURES, "benign_prompts": BENIGN, "ways": {}, "boxes": {}}
    if options.json and options.json.exists():
        found = json.loads(options.json.read_text("utf-8"))

    def keep(ways, kind="ways"):
        found[kind] = ways
        if options.json:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")

    keep(run(chosen, found["ways"], keep))
    done = found["boxes"]
    new = text_boxes.run([words for words in boxes if words not in done], trained_eraser, single_pooled)
    keep({words: (done | new)[words] for words in text_boxes.WAYS if words in done | new}, "boxes")
    if options.publish:
        publish("bypass", found, markdown(HEADER, rows(found["ways"])), page=MEASURED)
        fill_section(MEASURED, "bypass_boxes", markdown(BOXES_HEADER, rows(found["boxes"])))


if __name__ == "__main__":
    main()

"""What the objective *attention* starts from: `python3 dev.py bench speed --starts`.

The closed form and the steps after it, against a new network that is trained from scratch, as this pack did before. All
else is Train Erasure as it is. Scored on the network alone, at the end of its trajectory, with texts that no training
uses.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from . import pack

pack.load_pack()

from unhype.hypernet.network import Hypernet, HypernetConfig  # noqa: E402
from unhype.training import closed_form, run  # noqa: E402
from unhype.training.encode import encode  # noqa: E402
from unhype.training.frozen import FrozenModel  # noqa: E402
from unhype.training.losses import retention_loss  # noqa: E402
from unhype.training.plan import Request  # noqa: E402
from unhype.training.prompts import Phrase, retain_split  # noqa: E402
from unhype.training.tasks.attention import AttentionTask, PairedLayer, attention_loss, token_pairs  # noqa: E402

from . import protocol  # noqa: E402
from .erasure import SETTINGS, concepts_of  # noqa: E402
from .lab.captions import fill  # noqa: E402
from .lab.measure import Lab  # noqa: E402
from .lab.vocabulary import CLASSES  # noqa: E402

SEEDS = (0, 1, 2)
_COLD, _COLD_STEPS = "from scratch", 200
# Name to steps.
STARTS = {_COLD: _COLD_STEPS, "closed form": 0, "closed form and its steps": SETTINGS.steps}
# Phrasings that no training template has.
WORDINGS = (protocol.WORDING, "an icon showing a {}", "a {} seen from the side", "a sticker of a {}", "my {}")
MEASURES = ("wordings", "sentences", "retention", "retention error")


def phrases_of(concept):
    """Held-out phrases of a class: plain wordings, and sentences that name another thing as well."""
    mapping = protocol.MAPPING
    plain = [Phrase(0, fill(text, concept), fill(text, mapping)) for text in WORDINGS]
    sentences = []
    for other in protocol.names_for_scoring()[::4]:
        for template in protocol.TWO_OBJECTS:
            for named in ((concept, other), (other, concept)):
                mapped = (mapping if name == concept else name for name in named)
                sentences.append(Phrase(0, fill(template, *named), fill(template, *mapped)))
    return plain, sentences


def _from_scratch(plan, width, generator):
    """The network as it was before there was a closed form."""
    settings = plan.request.settings
    config = HypernetConfig(width, plan.layers, rank=settings.rank, basis=settings.basis, hidden=settings.hidden)
    return Hypernet(config, generator)


def trained(lab, concept, start, seed, encodings):
    """The eraser of a class. encodings: folder of encoded prompts."""
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder, ExitStack() as stack:
        path = Path(folder)
        settings = replace(SETTINGS, seed=seed, steps=STARTS[start])
        lines = "\n".join(f"{one} -> {other}" for one, other in concepts_of([concept]))
        request = Request(
            lines, "", path, "eraser", path, settings, encodings=encodings, checkpoint_every=0, preview_every=0
        )
        if start == _COLD:
            stack.enter_context(patch.multiple(run, _new_hypernet=_from_scratch, _POLISH=1.0))
            stack.enter_context(patch.object(closed_form, "start", lambda *_: None))
        return run.train_erasure(lab.patcher, lab.clip, request, lambda *_, **__: None).eraser


class Scorer:
    """The loss of a class's held-out phrases, for any network on the lab's model."""

    def __init__(self, lab, concept):
        plain, sentences = phrases_of(concept)
        self.plain, phrases = len(plain), [*plain, *sentences]
        texts = {text for phrase in phrases for text in (phrase.prompt, phrase.mapping)}
        held_out = retain_split("", concepts_of([concept])).held_out
        with torch.inference_mode(False), torch.no_grad():
            encoded = {text: encode(lab.clip, text) for text in (*texts, *held_out)}
            pairs = token_pairs(lab.clip, phrases, {text: encoded[text].conditioning[0][0][0] for text in texts})
            c = torch.stack([encoded[phrase.prompt].c for phrase in phrases]).unsqueeze(0)
            frozen = FrozenModel(lab.patcher, checkpointing=False, copied=False)
            frozen.load()
            layers = [PairedLayer(module, pairs, torch.empty(0)) for module in frozen.target_modules]
            self.task = AttentionTask(layers, self.plain, c, SETTINGS)
            self.X, self.changes = self.task.batch(torch.arange(len(phrases)))
            self.scale = self.task.scale
            frozen.release()
        self.held_out = torch.stack([encoded[text].c for text in held_out])

    def __call__(self, eraser):
        """MEASURES of an eraser. The retention's is the mean of the retention loss, its error that of the record."""
        hypernet, c = eraser.hypernet, self.task.c[0]
        last = hypernet.config.trajectory
        with torch.no_grad():
            loss = attention_loss(hypernet(c, last), self.X, self.changes, torch.ones(len(c)), self.scale)
            kept = retention_loss(hypernet(self.held_out, last)).mean()
        values = loss[: self.plain].mean(), loss[self.plain :].mean(), kept
        return [*(value.item() for value in values), eraser.record.training.retention_error]


def measure(say, keep):
    """All starts, classes and seeds; keep(runs so far) is called after each class."""
    lab, found = Lab("sd15"), []
    with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder, torch.inference_mode():
        for concept in CLASSES:
            score = Scorer(lab, concept)
            for start in STARTS:
                for seed in SEEDS:
                    values = score(trained(lab, concept, start, seed, Path(folder)))
                    found.append({"start": start, "steps": STARTS[start], "concept": concept, "seed": seed})
                    found[-1] |= dict(zip(MEASURES, values, strict=True))
            say("\n".join("  ".join(row) for row in table(found)))
            keep(found)
    return found


HEADER = ("start", "classes", "plain wordings", "sentences", "held-out retention", "retention error")


def table(runs):
    """The rows for people: the mean over classes and seeds, and the highest."""
    rows = []
    for start, steps in STARTS.items():
        of_start = [one for one in runs if one["start"] == start]
        own = torch.tensor([[one[name] for name in MEASURES] for one in of_start]).double()
        classes = len({one["concept"] for one in of_start})
        cells = [f"{mean:.2g} (up to {most:.2g})" for mean, most in zip(own.mean(0), own.amax(0), strict=True)]
        rows.append((f"{start}, {steps} steps", str(classes), *cells))
    return rows

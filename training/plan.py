"""A request worked out: every prompt of a run, what the run is known by, and where its file goes."""

import logging
from dataclasses import dataclass, replace

from ..hypernet.files import HypernetFileError, check_fits, load
from ..hypernet.network import Hypernet
from ..hypernet.targets import recognise, target_layers, weight_spread
from .frozen import lora_fingerprint
from .loop import TrainingError
from .prompts import parse_concepts, phrasings, retain_split, sentences

# Part of every recipe: what else than settings and words decides a run. A new one makes old files train anew.
_REVISION = "widest margin"

log = logging.getLogger("unhype")


@dataclass(frozen=True)
class Plan:
    """A `run.Request` worked out: texts, splits and names, before any model is touched."""

    request: object
    concepts: tuple
    phrases: list
    sentences: list
    retain: object
    recipe: str
    base: dict
    family: object
    layers: tuple

    @property
    def kept(self):
        """The prompt that previews show beside an erased one."""
        return self.retain.held_out[0]


def make_plan(model, request):
    """Check the request against the model and work out every prompt; raises the errors meant for the user."""
    family = recognise(model.model)
    layers = target_layers(model.model, family)
    concepts = parse_concepts(request.concepts)
    start = request.start_from
    if start is not None:
        check_fits(start, family, layers)
        if not isinstance(start.network, Hypernet):
            raise TrainingError(
                f"Train Erasure: hypernet '{start.name}' was imported from the paper's authors. It can be applied, but "
                "not trained further; leave 'start_from' empty."
            )
        named = {concept.lower() for concept, _ in concepts}
        concepts = (*(pair for pair in start.record.concepts if pair[0].lower() not in named), *concepts)
    settings = request.settings
    if settings.objective == "attention" and not family.reads_text:
        settings = replace(settings, objective="direct")
        request = replace(request, settings=settings)
        log.info(
            "UnHype: %s reads prompts in other ways than the attention objective covers; training direct.", family.title
        )
    retain = retain_split(request.preserve, concepts, settings.kind)
    named = sentences(concepts, settings.kind, retain.partners, settings.sentences)
    base = {
        "model": type(model.model).__name__,
        "weight_spread": weight_spread(model, layers),
        "loras": lora_fingerprint(model),
    }
    origin = None if start is None else [start.record.training, round(float(start.network.right.weight.sum()), 5)]
    recipe = settings.recipe(_REVISION, concepts, retain.train, base, [layer.name for layer in layers], origin)
    phrases = phrasings(concepts, settings.kind)
    return Plan(request, concepts, phrases, named, retain, recipe, base, family, layers)


def finished(plan):
    """The path and hypernet of an earlier run of the same recipe and length, and a free path if there is none."""
    request = plan.request
    number = 1
    while True:
        path = request.folder / (
            f"{request.name}.safetensors" if number == 1 else f"{request.name}_{number}.safetensors"
        )
        if not path.exists():
            return path, None
        try:
            trained = load(path)
        except (HypernetFileError, ValueError):
            trained = None  # somebody else's file under that name: leave it alone
        done = {} if trained is None else trained.record.training
        if done.get("recipe") == plan.recipe and done.get("settings", {}).get("steps") == request.settings.steps:
            return path, trained
        number += 1

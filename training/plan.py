"""A request worked out: every prompt of a run, the recipe that identifies it, and the path of its file."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..hypernet.base_model import base_model_of
from ..hypernet.eraser import Eraser
from ..hypernet.families import TOKENS, Family
from ..hypernet.files import SUFFIX, check_fits, load
from ..hypernet.merged import AnyEraser, MergedEraser
from ..hypernet.network import Hypernet
from ..hypernet.record import BaseModel
from ..hypernet.targets import TargetLayer, layers_like, projection_layers, recognise, target_layers
from .loop import TrainingError
from .prompts import Phrase, RetainSplit, parse_concepts, phrasings, retain_split, sentences
from .settings import Settings
from .written import Written, make_written

# Part of every recipe: what else than settings and prompts decides a run. A new one makes old files train anew.
_REVISION = "bounded closed form, neighbours at a distance, hidden names, all words of a name"

log = logging.getLogger("unhype")


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    concepts, preserve: the texts of the node. folder, name: where the file goes. checkpoints: folder for
    checkpoints. encodings: folder that keeps encoded prompts for later runs, None for none. start_from: an eraser
    to go on from. checkpoint_every, preview_every: steps, 0 for never. file_metadata: further metadata, such as
    the workflow. decode: for the previews, latents (1, ...) to a picture (h, w, 3) in [0, 1]; without it there are
    none.
    """

    concepts: str
    preserve: str
    folder: Path
    name: str
    checkpoints: Path
    settings: Settings = field(default_factory=Settings)
    encodings: Path | None = None
    start_from: AnyEraser | None = None
    resume: bool = True
    checkpoint_every: int = 50
    preview_every: int = 50
    file_metadata: dict[str, str] = field(default_factory=dict)
    decode: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """A `Request` worked out, before any model is touched: prompts, splits, recipe, family and target layers.

    start: the network to go on from, not to be written to.
    """

    request: Request
    concepts: tuple[tuple[str, str], ...]
    phrases: list[Phrase]
    sentences: list[Phrase]
    retain: RetainSplit
    written: Written
    recipe: str
    base: BaseModel
    family: Family
    layers: tuple[TargetLayer, ...]
    start: Hypernet | None

    @property
    def scored(self) -> dict[str, str]:
        """The texts that the token detector is fitted on, each with the concept that it names, "" for none."""
        benign = [*self.retain.train, *self.retain.held_out]
        benign += [*self.written.benign, *self.written.held_out, *self.written.parts, *self.written.nouns]
        names = {text: self.concepts[n][0] for n, texts in enumerate(self.written.named) for text in texts}
        return dict.fromkeys(benign, "") | {p.prompt: self.concepts[p.concept][0] for p in self.phrases} | names

    @property
    def checkpoint(self) -> Path:
        """Where the run keeps its checkpoint."""
        return self.request.checkpoints / f"{self.recipe}.checkpoint.pt"


def make_plan(model: Any, request: Request) -> Plan:
    """Check the request against the MODEL (ModelPatcher) and work out every prompt.

    Raises the errors that are meant for the user: `PromptError`, `UnsupportedModelError`, `HypernetFileError`,
    `TrainingError`.
    """
    family = recognise(model.model)
    layers = _trained_layers(model.model, family, request)
    concepts = parse_concepts(request.concepts)
    start, origin = None, None
    if request.start_from is not None:
        start = _network_of(request.start_from, family, layers)
        origin = [asdict(request.start_from.record.training), round(float(start.right.weight.sum()), 5)]
        concepts = _joined(request.start_from.record.concepts, concepts)
    settings = request.settings
    if settings.objective == "attention" and not (family.text_inputs or _take_text(family, layers)):
        settings = replace(settings, objective="direct")
        request = replace(request, settings=settings)
        log.info("UnHype: the attention objective doesn't cover the layers of this %s; training direct.", family.title)
    retain = retain_split(request.preserve, concepts, settings.kind)
    with_others = sentences(concepts, settings.kind, retain.distractors, settings.sentences)
    base = base_model_of(model, layers)
    recipe = settings.recipe(_REVISION, concepts, retain.train, asdict(base), [layer.name for layer in layers], origin)
    phrases = phrasings(concepts, settings.kind)
    written = make_written(concepts, settings.kind, retain)
    return Plan(request, concepts, phrases, with_others, retain, written, recipe, base, family, layers, start)


def _trained_layers(base_model: Any, family: Family, request: Request) -> tuple[TargetLayer, ...]:
    """The layers that a run trains: those of the eraser to go on from, or as the objective has them."""
    if request.start_from is not None:
        return layers_like(base_model, family, request.start_from.config.layers)
    layers = target_layers(base_model, family)
    if request.settings.objective == "attention" and not family.text_inputs:
        projections = projection_layers(base_model, family)
        layers = projections if _take_text(family, projections) else layers
    return layers


def _take_text(family: Family, layers: tuple[TargetLayer, ...]) -> bool:
    """Whether the text encoder's tokens pass one of these layers on their way into the network."""
    names = {layer.name for layer in layers}
    return any(own.source == TOKENS and own.name in names for own in family.projections)


def _network_of(eraser: AnyEraser, family: Family, layers: tuple[TargetLayer, ...]) -> Hypernet:
    """The network of an eraser to go on from, if it is one that can be trained further on this model."""
    if isinstance(eraser, MergedEraser):
        raise TrainingError(
            f"Train Erasure: hypernet '{eraser.name}' is merged of several, so there is no single network to go on "
            "from. Leave 'start_from' empty, and join the new one with Merge Erasers."
        )
    check_fits(eraser, family, layers)
    if not isinstance(eraser.hypernet, Hypernet):
        raise TrainingError(
            f"Train Erasure: hypernet '{eraser.name}' was imported from the paper's authors. It can be applied, but "
            "not trained further; leave 'start_from' empty."
        )
    return eraser.hypernet


def _joined(earlier: tuple[tuple[str, str], ...], concepts: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The concepts of an eraser to go on from, and the new ones, which replace those of the same name."""
    named = {concept.lower() for concept, _ in concepts}
    return (*(pair for pair in earlier if pair[0].lower() not in named), *concepts)


def find_finished(plan: Plan) -> tuple[Path, Eraser | None]:
    """The path and eraser of an earlier run of the same recipe and length, and a free path if there is none."""
    request, number = plan.request, 1
    while True:
        path = request.folder / f"{request.name}{'' if number == 1 else f'_{number}'}{SUFFIX}"
        if not path.exists():
            return path, None
        try:
            eraser = load(path)
        except ValueError:
            eraser = None  # somebody else's file under that name: leave it alone
        if isinstance(eraser, Eraser):
            done = eraser.record.training
            if done.recipe == plan.recipe and done.settings.get("steps") == request.settings.steps:
                return path, eraser
        number += 1

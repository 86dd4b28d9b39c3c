"""A whole training run: from a MODEL, a CLIP and words to a hypernet file."""

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ..hypernet.deadzone import calibrate
from ..hypernet.files import HypernetFileError, Record, TrainedHypernet, check_fits, load, save
from ..hypernet.network import Hypernet, HypernetConfig
from ..hypernet.targets import recognise, target_layers, weight_spread
from .cache import build_cache
from .checkpoint import load_checkpoint, save_checkpoint
from .frozen import FrozenModel, differentiable, lora_fingerprint, out_of_memory_errors
from .loop import Material, TrainingError, measure_drift, new_state, norms, train
from .preview import Previewer
from .prompts import parse_concepts, phrasings, retain_split
from .reader import encode_prompts
from .settings import Settings

# Part of every recipe: what else than settings and words decides a run. A new one makes old files train anew.
_REVISION = "reads tokens"

log = logging.getLogger("unhype")


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    concepts, preserve: the texts of the node. folder, name: where the file goes. checkpoints: folder
    for checkpoints. start_from: a `TrainedHypernet` to go on from. checkpoint_every, preview_every:
    steps, 0 for never. file_metadata: further metadata, such as the workflow.
    """

    concepts: str
    preserve: str
    folder: Path
    name: str
    checkpoints: Path
    settings: Settings = field(default_factory=Settings)
    start_from: TrainedHypernet | None = None
    resume: bool = True
    checkpoint_every: int = 50
    preview_every: int = 50
    file_metadata: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a run gives: the hypernet, its file, and the record of the run. reason: why it stopped."""

    trained: TrainedHypernet
    path: Path
    losses: list
    reason: str


@dataclass(frozen=True)
class _Plan:
    """A request worked out: texts, splits and names, before any model is touched."""

    request: Request
    concepts: tuple
    phrases: list
    retain: object
    recipe: str
    base: dict
    family: object
    layers: tuple


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
    retain = retain_split(request.preserve, concepts, settings.kind)
    base = {
        "model": type(model.model).__name__,
        "weight_spread": weight_spread(model, layers),
        "loras": lora_fingerprint(model),
    }
    origin = None if start is None else [start.record.training, round(float(start.network.right.inner_weight.sum()), 5)]
    recipe = settings.recipe(_REVISION, concepts, retain.train, base, [layer.name for layer in layers], origin)
    return _Plan(request, concepts, phrasings(concepts, settings.kind), retain, recipe, base, family, layers)


def _finished(plan):
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


def _encode_all(clip, plan, report):
    """Every text of the run as `Prompts`."""
    wordings = [phrase.prompt for phrase in plan.phrases]
    drawn = ["", _kept(plan), *wordings, *(phrase.mapping for phrase in plan.phrases)]
    retain = plan.retain
    texts = drawn, [*retain.train, *wordings], retain.held_out
    family = plan.family
    return encode_prompts(
        clip, *texts, family.encoders, lambda: report("reading prompts", 0, 1), source=family.embedding
    )


def _kept(plan):
    """The prompt that previews show beside an erased one."""
    return plan.retain.held_out[0]


def _network(plan, width, generator):
    start, settings = plan.request.start_from, plan.request.settings
    if start is None:
        config = HypernetConfig(width, plan.layers, rank=settings.rank, hidden=settings.hidden)
        return Hypernet(config, generator)
    if start.network.config.embedding_width != width:
        raise TrainingError("Train Erasure: the hypernet to continue from was trained with another CLIP.")
    network = Hypernet(start.network.config)
    network.load_state_dict({name: tensor.clone() for name, tensor in start.network.state_dict().items()})
    return network


def _material(plan, frozen, prompts, generator, report):
    """Everything that training reads, on the device where it is needed.

    H sees each prompt as its pooled vector and as the reader tells it from tokens, each as a prompt of its own.
    """
    settings, encoded = plan.request.settings, prompts.encoded
    phrases, phrase_c = prompts.views_of(plan.phrases, lambda phrase: phrase.prompt)
    probe = frozen.noise(1, settings.height, settings.width, torch.Generator().manual_seed(0))
    texts = {text for phrase in phrases for text in (phrase.prompt, phrase.mapping)}
    conds = {text: frozen.model_conds(encoded[text], probe, settings.guidance) for text in sorted(texts)}
    cache = build_cache(
        frozen, phrases, encoded, conds, settings, generator, lambda done, total: report("preparing", done, total)
    )
    return Material(
        cache,
        phrase_c.to(frozen.device),
        [conds[phrase.prompt] for phrase in phrases],
        prompts.views_of(plan.retain.train)[1].to(frozen.device),
        prompts.views_of(plan.retain.held_out)[1].to(frozen.device),
    )


class _Keeper:
    """Called after every step: reports, draws, and keeps checkpoints."""

    def __init__(self, plan, previewer, report):
        self.plan, self.previewer, self.report = plan, previewer, report
        self.path = plan.request.checkpoints / f"{plan.recipe}.checkpoint.safetensors"

    def __call__(self, state):
        request, picture = self.plan.request, None
        if request.checkpoint_every and state.step % request.checkpoint_every == 0:
            self.keep(state)
        if request.preview_every and state.step % request.preview_every == 0:
            picture = self.previewer.picture(state.hypernet)
        self.report("training", state.step, request.settings.steps, picture)

    def keep(self, state):
        """Write a checkpoint; a full disk costs the checkpoint, not the run."""
        try:
            save_checkpoint(state, self.path, self.plan.recipe)
        except OSError as error:
            log.warning("UnHype: could not write the checkpoint (%s); training goes on.", error)


def _train(plan, frozen, prompts, report):
    settings, encoded = plan.request.settings, prompts.encoded
    width = encoded[""].c.shape[0]
    material = _material(plan, frozen, prompts, torch.Generator().manual_seed(settings.seed), report)
    # A generator of its own: how the cache was made must not shift the draws of the steps.
    generator = torch.Generator().manual_seed(settings.seed + 1)
    hypernet = _network(plan, width, generator).to(frozen.device)
    state = new_state(hypernet, settings, generator)
    shown = [encoded[plan.phrases[1].prompt], encoded[_kept(plan)]]
    keeper = _Keeper(plan, Previewer(frozen, shown, encoded[""], settings), report)
    if plan.request.resume and load_checkpoint(state, keeper.path, plan.recipe):
        log.info("UnHype: going on from the checkpoint at step %d.", state.step)
    _announce_memory(frozen, hypernet, settings)
    frozen.load()
    try:
        reason = train(state, material, frozen.predict, settings, frozen.device, keeper)
    except BaseException:
        if state.step:
            keeper.keep(state)
            log.info("UnHype: stopped at step %d; queue the same settings again to go on from there.", state.step)
        raise
    return state, material, keeper, reason


def _announce_memory(frozen, hypernet, settings):
    """Say roughly how much memory training takes, before it starts."""
    probe = frozen.noise(settings.batch, settings.height, settings.width, torch.Generator().manual_seed(0))
    parts = [part / 1e9 for part in frozen.memory(hypernet, probe)]
    log.info(
        "UnHype: training takes roughly %.1f GB: %.1f for the model, %.1f for the hypernet and %.1f for a step of %d "
        "pictures.",
        sum(parts),
        *parts,
        settings.batch,
    )


def _record(plan, prompts, state, material, reason, seconds):
    settings = plan.request.settings
    erased, benign = norms(state.hypernet, material.phrase_c), norms(state.hypernet, material.held_out_c)
    # A prompt stays exact only if all that speaks for it is silent. Clip-skip, which is read less well, must not
    # bring the threshold down for everybody.
    benign = benign.view(-1, len(plan.retain.held_out)).amax(0)
    threshold = calibrate(benign, erased[: prompts.usual_views * len(plan.phrases)])
    training = {
        "recipe": plan.recipe,
        "settings": asdict(settings),
        "steps": state.step,
        "stopped": reason,
        "seconds": round(seconds, 1),
        "drift": round(measure_drift(state.hypernet, material), 4),
        "erased_norms": [round(value, 4) for value in torch.quantile(erased, torch.tensor([0.0, 0.5, 1.0])).tolist()],
        "held_out_silent": round((benign < threshold).float().mean().item(), 4),
        "retain_prompts": [len(plan.retain.train), len(plan.retain.held_out)],
        "reader_explains": round(prompts.explained, 4),
    }
    return Record(
        plan.family.key, plan.concepts, threshold, plan.base, training, prompts.reading, plan.family.embedding
    )


def _concept_c(plan, prompts):
    """The mean embedding of each concept's wordings, (concepts, width)."""
    c = torch.stack([prompts.encoded[phrase.prompt].c for phrase in plan.phrases])
    own = torch.tensor([phrase.concept for phrase in plan.phrases])
    return torch.stack([c[own == concept].mean(0) for concept in range(len(plan.concepts))])


def train_erasure(model, clip, request, report):
    """Train a hypernet as `request` asks and write its file.

    model, clip: ComfyUI's MODEL and CLIP; neither is changed. report(stage, done, total, picture=None)
    is called all along and may raise to interrupt; an interrupt, an error or a crash leaves the last
    checkpoint, and the same request then goes on from it. A run that was finished before is not run
    again. Returns an `Outcome`. Raises `PromptError`, `UnsupportedModelError`, `HypernetFileError`,
    `MissingEmbeddingError`, `TrainingError` (also for memory) or OSError, all in the user's words.
    """
    if clip is None:
        raise TrainingError(
            "Train Erasure: no CLIP is connected. Connect the CLIP output of the loader that gives the MODEL; some "
            "checkpoints hold none, then add a Load CLIP node."
        )
    plan = make_plan(model, request)
    path, trained = _finished(plan)
    if trained is not None:
        return Outcome(trained, path, trained.record.training.get("losses", []), "already trained")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _run(model, clip, plan, path, report)
    except out_of_memory_errors() as error:
        raise TrainingError(
            "Train Erasure: the GPU ran out of memory. Lower 'batch', or 'width' and 'height', and keep "
            "'checkpointing' on; load a large model in fp8. Training goes on from its last checkpoint if the other "
            "settings stay the same."
        ) from error


def _run(model, clip, plan, path, report):
    started = time.monotonic()
    prompts = _encode_all(clip, plan, report)
    frozen = FrozenModel(model, plan.request.settings.checkpointing)
    try:
        with differentiable():
            state, material, keeper, reason = _train(plan, frozen, prompts, report)
        record = _record(plan, prompts, state, material, reason, time.monotonic() - started)
    finally:
        frozen.release()
    record = replace(record, training={**record.training, "losses": [round(loss, 6) for loss in state.losses]})
    network = state.hypernet.cpu().requires_grad_(False).eval()
    trained = TrainedHypernet(network, record, path.stem, prompts.reader, _concept_c(plan, prompts))
    save(trained, path, plan.request.file_metadata)
    keeper.path.unlink(missing_ok=True)
    return Outcome(trained, path, state.losses, reason)

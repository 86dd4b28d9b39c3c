"""A whole training run: from a MODEL, a CLIP and words to a hypernet file."""

import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from ..hypernet.files import Record, TrainedHypernet, load, save
from ..hypernet.network import Hypernet, HypernetConfig
from .checkpoint import load_checkpoint, save_checkpoint
from .frozen import FrozenModel, differentiable, out_of_memory_errors
from .loop import TrainingError, measure_drift, new_state, norms, train
from .material import build_material
from .plan import finished, make_plan
from .preview import Previewer
from .prompts import preserved
from .reader import encode_prompts
from .settings import Settings
from .switch import fit_switch

log = logging.getLogger("unhype")


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    concepts, preserve: the texts of the node. folder, name: where the file goes. checkpoints: folder
    for checkpoints. start_from: a `TrainedHypernet` to go on from. checkpoint_every, preview_every:
    steps, 0 for never. file_metadata: further metadata, such as the workflow. decode: for the previews,
    latents (1, ...) to a picture (h, w, 3) in [0, 1].
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
    decode: Callable | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run gives: the hypernet, its file, and the record of the run. reason: why it stopped."""

    trained: TrainedHypernet
    path: Path
    losses: list
    reason: str


def _encode_all(clip, plan, report):
    """Every text of the run as `Prompts`."""
    phrases = [*plan.phrases, *plan.sentences]
    wordings = [phrase.prompt for phrase in phrases]
    drawn = ["", plan.kept, *wordings, *(phrase.mapping for phrase in phrases)]
    retain = plan.retain
    texts = drawn, [*retain.train, *wordings], retain.held_out
    family = plan.family
    reading = partial(report, "reading prompts")
    return encode_prompts(clip, *texts, family.encoders, reading, source=family.embedding)


def _network(plan, width, generator):
    start, settings = plan.request.start_from, plan.request.settings
    if start is None:
        config = HypernetConfig(width, plan.layers, rank=settings.rank, basis=settings.basis, hidden=settings.hidden)
        return Hypernet(config, generator)
    if start.network.config.embedding_width != width:
        raise TrainingError("Train Erasure: the hypernet to continue from was trained with another CLIP.")
    network = Hypernet(start.network.config)
    network.load_state_dict({name: tensor.clone() for name, tensor in start.network.state_dict().items()})
    return network


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
        self.report("training", state.step, request.settings.steps, picture, (state.losses, state.drift))

    @contextmanager
    def kept(self, state):
        """While open, an interrupt or an error leaves a checkpoint, if there was a step."""
        try:
            yield
        except BaseException:
            if state.step:
                self.keep(state)
                log.info("UnHype: stopped at step %d; queue the same settings again to go on from there.", state.step)
            raise

    def keep(self, state):
        """Write a checkpoint; a full disk costs the checkpoint, not the run."""
        try:
            save_checkpoint(state, self.path, self.plan.recipe)
        except OSError as error:
            log.warning("UnHype: could not write the checkpoint (%s); training goes on.", error)


def _train(clip, plan, frozen, prompts, report):
    settings, encoded = plan.request.settings, prompts.encoded
    width = encoded[""].c.shape[0]
    # A generator of its own: how the cache was made must not shift the draws of the steps.
    generator = torch.Generator().manual_seed(settings.seed + 1)
    hypernet = _network(plan, width, generator).to(frozen.device)
    _announce_memory(frozen, hypernet, settings, encoded, report)
    material = build_material(clip, plan, frozen, prompts, torch.Generator().manual_seed(settings.seed), report)
    state = new_state(hypernet, settings, generator)
    shown = [encoded[plan.phrases[1].prompt], encoded[plan.kept]]
    keeper = _Keeper(plan, Previewer(frozen, shown, encoded[""], settings, plan.request.decode), report)
    if plan.request.resume and load_checkpoint(state, keeper.path, plan.recipe):
        log.info("UnHype: going on from the checkpoint at step %d.", state.step)
    frozen.load()
    with keeper.kept(state):
        reason = train(state, material, frozen.predict, settings, frozen.device, keeper)
    return state, material, keeper, reason


def _announce_memory(frozen, hypernet, settings, encoded, report):
    """Say roughly how much memory training takes, before it starts."""
    if settings.objective == "attention":
        tokens = encoded[""].conditioning[0][0].shape[1]
        step, samples = frozen.attention_memory(settings.attention_batch, tokens), f"{settings.attention_batch} prompts"
    else:
        probe = frozen.noise(settings.batch, settings.height, settings.width, torch.Generator().manual_seed(0))
        step, samples = frozen.diffusion_memory(probe), f"{settings.batch} pictures"
    parts = [part / 1e9 for part in frozen.memory(hypernet, step)]
    words = (
        f"Training takes roughly {sum(parts):.1f} GB of memory: {parts[0]:.1f} for the model, {parts[1]:.1f} for the "
        f"hypernet and {parts[2]:.1f} for a step of {samples}."
    )
    log.info("UnHype: %s", words)
    # A node shows one line of it.
    short = "Memory: about {:.1f} GB (model {:.1f}, hypernet {:.1f}, step {:.1f})".format(sum(parts), *parts)
    report("preparing", 0, 1, note=short)


# An error of the switch decides, one of the trunk is only an error.
_SWITCH_COUNTS = 10.0


def _switch(plan, prompts, network, report):
    """The dead zone's switch, the prompts with the reader that goes into the file, and what stays silent.

    The last is, for the record, the share of held-out prompts that run the base model, and the lines of the preserve
    list of which some wording doesn't, because no threshold tells it from what is erased.
    """

    def of_each(phrases):
        # Clip-skip's views are weaker; they must not lower the threshold for all.
        parts = [[phrase for phrase in phrases if phrase.concept == n] for n in range(len(plan.concepts))]
        return [
            prompts.views_of(part, lambda phrase: phrase.prompt)[1][: prompts.usual_views * len(part)] for part in parts
        ]

    retain = plan.retain
    benign, held_out = (prompts.views_of(part)[1] for part in (retain.train, retain.held_out))
    kept = prompts.views_of([*chain(*retain.preserved.values())])[1] if retain.preserved else None
    views = len(held_out) // len(retain.held_out)
    own, named = of_each(plan.phrases), of_each(plan.sentences)
    switch = fit_switch(own, named, benign, held_out, views, kept, partial(report, "finishing")).half().float()
    trunk = network.trunk.weight[:, : network.config.embedding_width]
    prompts = prompts.compressed(torch.cat([_SWITCH_COUNTS * switch.weight, trunk]))
    held_out = prompts.views_of(retain.held_out)[1]
    # A prompt stays exact only if all that speaks for it is silent.
    silent = (switch(held_out).view(views, -1).amax(0) < 1).float().mean().item()
    heard = [line for line, own in retain.preserved.items() if bool((switch(prompts.views_of(own)[1]) >= 1).any())]
    return switch, prompts, {"held_out_silent": round(silent, 4), "preserve_heard": heard}


def _record(plan, prompts, state, material, reason, seconds):
    settings = plan.request.settings
    erased = norms(state.hypernet, material.phrase_c)
    training = {
        "recipe": plan.recipe,
        "settings": asdict(settings),
        "steps": state.step,
        "stopped": reason,
        "seconds": round(seconds, 1),
        "drift": round(measure_drift(state.hypernet, material), 4),
        "erased_norms": [round(value, 4) for value in torch.quantile(erased, torch.tensor([0.0, 0.5, 1.0])).tolist()],
        "retain_prompts": [len(plan.retain.train), len(plan.retain.held_out)],
        "reader_explains": round(prompts.explained, 4),
        "preserve": preserved(plan.request.preserve),
        "drift_curve": [[step, round(value, 4)] for step, value in state.drift],
    }
    return Record(plan.family.key, plan.concepts, 1.0, plan.base, training, embedding=plan.family.embedding)


def _concept_c(plan, prompts):
    """The mean embedding of each concept's wordings, (concepts, width)."""
    c = torch.stack([prompts.encoded[phrase.prompt].c for phrase in plan.phrases])
    own = torch.tensor([phrase.concept for phrase in plan.phrases])
    return torch.stack([c[own == concept].mean(0) for concept in range(len(plan.concepts))])


def train_erasure(model, clip, request, report):
    """Train a hypernet as `request` asks and write its file.

    model, clip: ComfyUI's MODEL and CLIP; neither is changed. report(stage, done, total, picture=None,
    history=None, note=None) is called all along and may raise to interrupt; history: the losses and the (step,
    drift) pairs so far, note: a line for the user. An interrupt, an error or a crash leaves the last
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
    path, trained = finished(plan)
    if trained is not None:
        return Outcome(trained, path, trained.record.training.get("losses", []), "already trained")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _run(model, clip, plan, path, report)
    except out_of_memory_errors() as error:
        lower = "Set 'preview_every' to 0, or lower 'width' and 'height'"
        if plan.request.settings.objective != "attention":
            lower = "Lower 'batch', or 'width' and 'height', and keep 'checkpointing' on"
        raise TrainingError(
            f"Train Erasure: the GPU ran out of memory. {lower}; load a large model in fp8. Training goes on from its "
            "last checkpoint if the other settings stay the same."
        ) from error


def _run(model, clip, plan, path, report):
    started = time.monotonic()
    prompts = _encode_all(clip, plan, report)
    frozen = FrozenModel(model, plan.request.settings.checkpointing)
    try:
        with differentiable():
            state, material, keeper, reason = _train(clip, plan, frozen, prompts, report)
        record = _record(plan, prompts, state, material, reason, time.monotonic() - started)
    finally:
        frozen.release()
    with keeper.kept(state):
        trained = _written(plan, prompts, state, record, path, report)
    keeper.path.unlink(missing_ok=True)
    return Outcome(trained, path, state.losses, reason)


def _written(plan, prompts, state, record, path, report):
    """Fit the switch, write the file, and read it."""
    network = state.hypernet.cpu().requires_grad_(False).eval()
    switch, prompts, silent = _switch(plan, prompts, network, report)
    losses = [round(loss, 6) for loss in state.losses]
    record = replace(record, training={**record.training, **silent, "losses": losses}, reading=prompts.reading)
    trained = TrainedHypernet(network, record, path.stem, prompts.reader, _concept_c(plan, prompts), switch)
    save(trained, path, plan.request.file_metadata)
    return load(path)  # in the file's precision, so that the first use is like every later one

"""A whole training run: from a MODEL, a CLIP and words to a hypernet file."""

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from ..hypernet.eraser import Eraser
from ..hypernet.families import TOKENS, Projection
from ..hypernet.files import load, save
from ..hypernet.network import Hypernet, HypernetConfig
from ..policy.enforced import check_mappings, learning
from . import closed_form
from .batch_split import WHOLE, Split, SplitTask
from .callbacks import Checkpoints, Report, Reporter
from .checkpoint import load_checkpoint
from .encode import Prompts, encode, encode_prompts
from .encode_batch import in_batches
from .eraser_fit import fit_eraser, training_record
from .frozen import FrozenModel, check_copyable, differentiable, out_of_memory_errors
from .loop import TrainingError, new_state, train
from .memory import memory_line, memory_of
from .plan import Plan, Request, find_finished, make_plan
from .preview import Previewer
from .prompts import Phrase
from .relatives import kept_example, near_relatives
from .retention import Retention
from .tasks import Task
from .tasks.attention import AttentionTask, PairedLayer, retained_states, token_pairs, vector_pairs
from .tasks.direct import DirectTask
from .tasks.matching import PaperTask, ReleasedTask
from .tasks.samples import diffusion_samples

_DIFFUSION_TASKS = {"direct": DirectTask, "paper": PaperTask, "released": ReleasedTask}

# The learning rate of steps that go on from the closed form, as a share.
_POLISH = 0.025

log = logging.getLogger("unhype")


@dataclass(frozen=True)
class Outcome:
    """The result of a run: the eraser, its file and the losses. reason: why training ended."""

    eraser: Eraser
    path: Path
    losses: list[float]
    reason: str


def train_erasure(model: Any, clip: Any, request: Request, report: Report, split: Split = WHOLE) -> Outcome:
    """Train a hypernet as `request` asks and write its file.

    model, clip: ComfyUI's MODEL and CLIP; neither is changed. report: see `callbacks.Report`. split: of the batch of a
    diffusion objective, over processes that all make this call; the first one writes the file. An interrupt, an
    error or a crash leaves the last checkpoint, and the same request then goes on from it. A run that was
    finished before is not run again. Raises `PromptError`, `UnsupportedModelError`, `HypernetFileError`,
    `MissingEmbeddingError`, `TrainingError` (also for memory) or OSError, all in the user's words.
    """
    if clip is None:
        raise TrainingError(
            "Train Erasure: no CLIP is connected. Connect the CLIP output of the loader that gives the MODEL; some "
            "checkpoints hold none, then add a Load CLIP node."
        )
    plan = make_plan(model, request)
    path, finished = find_finished(plan)
    if finished is not None:
        return Outcome(finished, path, finished.record.training.losses, "already trained")
    try:
        with torch.inference_mode(False), torch.enable_grad(), learning():
            return _run(model, clip, plan, path, report, split)
    except out_of_memory_errors() as error:
        lower = "Set 'preview_every' to 0, or lower 'width' and 'height'"
        if plan.request.settings.objective != "attention":
            lower = "Lower 'batch', or 'width' and 'height', and keep 'checkpointing' on"
        raise TrainingError(
            f"Train Erasure: the GPU ran out of memory. {lower}; load a large model in fp8. Training goes on from its "
            "last checkpoint if the other settings stay the same."
        ) from error


def _run(model: Any, clip: Any, plan: Plan, path: Path, report: Report, split: Split) -> Outcome:
    started, settings = time.monotonic(), plan.request.settings
    copied = settings.objective != "attention"
    if copied:
        check_copyable(model)
    prompts = _encode_all(clip, plan, report)
    near = near_relatives(plan, prompts)
    check_mappings(model, {phrase.mapping: prompts.encoded[phrase.mapping].conditioning for phrase in plan.phrases})
    frozen = FrozenModel(model, settings.checkpointing, copied, plan.layers)
    checkpoints = Checkpoints(plan.checkpoint, plan.recipe, plan.request.checkpoint_every)
    try:
        # A generator of its own: how the samples were made must not shift the draws of the steps.
        generator = Generator().manual_seed(settings.seed + 1)
        hypernet = _new_hypernet(plan, prompts.encoded[""].c.shape[0], generator).to(frozen.device)
        tokens = prompts.encoded[""].conditioning[0][0].shape[1]
        memory = memory_of(frozen, hypernet, settings, tokens)
        report("preparing", 0, 1, note=memory_line(memory, settings))
        with differentiable():
            task = _task(clip, plan, frozen, prompts, report, split)
            retention = _retention(plan, prompts, frozen.device)
            frozen.load()
            if isinstance(task, AttentionTask):
                report("preparing", 0, 1)
                concepts = torch.tensor([phrase.concept for phrase in (*plan.phrases, *plan.sentences)])
                closed_form.start(hypernet, task, concepts, _embeddings(plan, prompts), generator)
            state = new_state(hypernet, settings, generator)
            if plan.request.resume and load_checkpoint(state, checkpoints.path, plan.recipe):
                log.info("UnHype: going on from the checkpoint at step %d.", state.step)
            if split.world > 1:
                task = SplitTask(task, hypernet)
            previewer = _previewer(clip, plan, frozen, prompts, near)
            reporter = Reporter(report, settings.steps, previewer, plan.request.preview_every)
            with checkpoints.kept(state):
                share = _POLISH if isinstance(task, AttentionTask) else 1.0
                reason = train(state, task, retention, settings, [checkpoints, reporter], share)
        training = training_record(plan, prompts, state, retention, reason, time.monotonic() - started, near)
    finally:
        frozen.release()
    with checkpoints.kept(state):
        if split.rank == 0:
            eraser = fit_eraser(plan, prompts, state.hypernet.cpu(), training, path.stem, partial(report, "finishing"))
            save(eraser, path, plan.request.file_metadata)
        split.wait()
        (eraser,) = load(path).parts  # in the file's precision, so that the first use is like every later one
    checkpoints.path.unlink(missing_ok=True)
    return Outcome(eraser, path, state.losses, reason)


def _encode_all(clip: Any, plan: Plan, report: Report) -> Prompts:
    """Every text of the run."""
    phrases = [*plan.phrases, *plan.sentences]
    wordings = [phrase.prompt for phrase in phrases]
    drawn = ["", *wordings, *(phrase.mapping for phrase in phrases)]
    train = [*plan.retain.train, *plan.written.benign, *wordings]
    parts, on_progress = (drawn, train, plan.retain.held_out, plan.scored), partial(report, "encoding prompts")
    on_fit = partial(report, "preparing", 0, 1)
    return encode_prompts(clip, *parts, plan.family, on_progress, in_batches, plan.request.encodings, on_fit)


def _new_hypernet(plan: Plan, width: int, generator: Generator) -> Hypernet:
    """A new network, or a copy of the one to go on from. width: numbers in c.

    In closed form the concepts of that one are erased anew, along with the others.
    """
    settings, count = plan.request.settings, len(plan.concepts)
    if plan.start is not None and plan.start.config.embedding_width != width:
        raise TrainingError("Train Erasure: the hypernet to continue from was trained with another CLIP.")
    if settings.objective == "attention":
        basis = min(settings.basis_of(count), *(layer.inputs for layer in plan.layers))
        config = HypernetConfig(width, plan.layers, settings.rank, basis, hidden=count, bounded=True)
        return Hypernet(config, generator)
    if plan.start is None:
        config = HypernetConfig(width, plan.layers, rank=settings.rank, basis=settings.basis, hidden=settings.hidden)
        return Hypernet(config, generator)
    return copy.deepcopy(plan.start).requires_grad_(True).train()


def _task(clip: Any, plan: Plan, frozen: FrozenModel, prompts: Prompts, report: Report, split: Split) -> Task:
    """The removal task of the plan's objective. Each candidate embedding of a prompt counts as a prompt."""
    settings = plan.request.settings
    if settings.objective == "attention":
        phrases = [*plan.phrases, *plan.sentences]
        c = prompts.candidates(phrase.prompt for phrase in phrases).to(frozen.device)
        retained = [*plan.retain.train, *plan.written.benign]
        layers = _paired_layers(clip, frozen, phrases, retained, prompts)
        return AttentionTask(layers, len(plan.phrases), c, settings)
    c = prompts.candidates(phrase.prompt for phrase in plan.phrases).to(frozen.device)
    samples = diffusion_samples(
        frozen,
        plan.phrases * len(c),
        c.flatten(0, 1),
        prompts.encoded,
        settings,
        Generator().manual_seed(settings.seed),
        partial(report, "preparing"),
        split,
    )
    return _DIFFUSION_TASKS[settings.objective](samples, settings)


def _paired_layers(
    clip: Any, frozen: FrozenModel, phrases: Sequence[Phrase], retained: Sequence[str], prompts: Prompts
) -> list[PairedLayer]:
    """The layers of the attention task with the pairs that each learns from, and the inputs of retained prompts."""
    texts = {text for phrase in phrases for text in (phrase.prompt, phrase.mapping)}
    states = {text: prompts.encoded[text].conditioning[0][0][0].cpu() for text in texts}
    pairs = {TOKENS: token_pairs(clip, phrases, states)}
    kept = {TOKENS: retained_states(prompts.scored, retained, prompts.widths, pairs[TOKENS].erased)}
    inputs = {own.name: own for own in frozen.family.projections}
    found = []
    for layer, module in zip(frozen.layers, frozen.target_modules, strict=True):
        own = inputs.get(layer.name, Projection(layer.name))
        if own.source not in pairs:
            pairs[own.source] = vector_pairs(phrases, {text: prompts.encoded[text].c for text in texts})
            kept[own.source] = torch.stack([prompts.encoded[text].c for text in retained])
        found.append(PairedLayer(module, pairs[own.source], kept[own.source], frozen.modules(own.before)))
    return found


def _embeddings(plan: Plan, prompts: Prompts) -> closed_form.Embeddings:
    """What the units of the trunk are made from."""
    parts = []
    for phrases in (plan.phrases, plan.sentences):
        texts: list[list[str]] = [[] for _ in plan.concepts]
        for phrase in phrases:
            texts[phrase.concept].append(phrase.prompt)
        parts.append([prompts.candidates(own)[: prompts.usual_candidates].flatten(0, 1) for own in texts])
    retained = prompts.candidates([*plan.retain.train, *plan.written.parts]).flatten(0, 1)
    return closed_form.Embeddings(*parts, retained)


def _retention(plan: Plan, prompts: Prompts, device: torch.device) -> Retention:
    retained = [*plan.retain.train, *plan.written.parts]
    texts = retained, plan.retain.held_out, [phrase.prompt for phrase in plan.phrases]
    return Retention(*(prompts.candidates(part).flatten(0, 1).to(device) for part in texts))


def _previewer(clip: Any, plan: Plan, frozen: FrozenModel, prompts: Prompts, near: list[str]) -> Previewer | None:
    """Draws an erased prompt and a kept one. near: retained prompts near the concepts."""
    if plan.request.decode is None:
        return None
    with torch.no_grad():
        kept = encode(clip, kept_example(plan, near), plan.family.embedding)
    shown = [prompts.encoded[plan.phrases[1].prompt], kept]
    return Previewer(frozen, shown, prompts.encoded[""], plan.request.settings, plan.request.decode)

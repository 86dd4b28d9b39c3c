"""From trained weights to an eraser: the detector, the compressed regressor and the record."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import chain

import torch
from torch import Tensor

from ..hypernet.eraser import Eraser
from ..hypernet.network import Hypernet
from ..hypernet.record import Record, TrainingRun
from ..hypernet.token_detector import TokenDetector
from .detector_fit import fit_detector, unlike
from .encode import Prompts
from .loop import TrainingState
from .plan import Plan
from .prompts import Phrase, preserved_lines
from .retention import Retention, delta_norms
from .token_fit import fit_token_detector

# An error of c in the detector decides, in the trunk it is only an error.
_DETECTOR_COUNTS = 10.0
# The token detector is there for the name alone: to it only nouns that hold the name are other than neighbours.
_HOLDS_NAME = 0.75
# What else takes time, as a multiple of a concept's share in either detector: candidates, whitening, and what comes
# after both. And the units of reports.
_CANDIDATES, _WHITENING, _REST, _UNITS = 10, 4, 16, 1000

log = logging.getLogger("unhype")


def training_record(
    plan: Plan,
    prompts: Prompts,
    state: TrainingState,
    retention: Retention,
    reason: str,
    seconds: float,
    relatives: list[str],
) -> TrainingRun:
    """The record of a run, as far as it is known when the loop ends. relatives: retained prompts near the concepts."""
    norms = torch.quantile(delta_norms(state.hypernet, retention.erased), torch.tensor([0.0, 0.5, 1.0]))
    return TrainingRun(
        recipe=plan.recipe,
        settings=asdict(plan.request.settings),
        steps=state.step,
        stopped=reason,
        seconds=round(seconds, 1),
        losses=[round(loss, 6) for loss in state.losses],
        retention_error=round(retention.error(state.hypernet), 4),
        retention_curve=[[step, round(value, 4)] for step, value in state.retention],
        erased_norms=[round(value, 4) for value in norms.tolist()],
        retain_prompts=[len(plan.retain.train), len(plan.retain.held_out)],
        regressor_r2=round(prompts.r2, 4),
        preserve=preserved_lines(plan.request.preserve),
        relatives=relatives,
    )


def fit_eraser(
    plan: Plan,
    prompts: Prompts,
    hypernet: Hypernet,
    training: TrainingRun,
    name: str,
    report: Callable[[int, int], None],
) -> Eraser:
    """Fit the detector and put everything into an `Eraser`. hypernet: trained, on the CPU.

    report(done, total) may raise to interrupt.
    """
    hypernet = hypernet.requires_grad_(False).eval()
    retain, usual = plan.retain, prompts.usual_candidates
    # Shares of the time until the detector is fitted, and the token detector as well.
    first = _CANDIDATES + len(plan.concepts)
    second = first + _WHITENING + len(plan.concepts)
    fitted, both = (units / (second + _REST) for units in (first, second))

    def of_concepts(phrases: list[Phrase]) -> list[Tensor]:
        # Clip-skip's candidates score lower; they must not lower the threshold for all.
        parts = [[phrase.prompt for phrase in phrases if phrase.concept == n] for n in range(len(plan.concepts))]
        return [prompts.candidates(part)[:usual].flatten(0, 1) for part in parts]

    preserved = [*chain(*retain.preserved.values(), plan.written.parts)]
    embeddings = _concept_embeddings(plan, prompts)
    nouns, of_tokens = _unlike(embeddings, plan, prompts), _unlike(embeddings, plan, prompts, _HOLDS_NAME)
    detector = fit_detector(
        of_concepts(plan.phrases),
        of_concepts(plan.sentences),
        prompts.candidates([*retain.train, *plan.written.parts]).flatten(0, 1),
        prompts.candidates([*retain.held_out, *plan.written.held_out]),
        prompts.candidates(preserved).flatten(0, 1) if preserved else None,
        _within(report, 0.0, fitted),
        prompts.candidates(nouns) if nouns else None,
    )
    if detector.neighbours is not None:
        detector.neighbours.own = embeddings  # as in the file
    detector = detector.half().float()
    token_detector = _token_detector(plan, prompts, preserved, of_tokens, _within(report, fitted, both))
    trunk = hypernet.trunk.weight[:, : hypernet.config.embedding_width]
    prompts = prompts.compressed(torch.cat([_DETECTOR_COUNTS * detector.weight, trunk]))

    def detected(texts: tuple[str, ...]) -> Tensor:
        # A prompt stays exact only if every candidate is below the threshold, and every token.
        found = (torch.stack([detector(c) for c in prompts.candidates(texts)]) >= 1).any(0)
        if token_detector is None:
            return found
        named = [bool((token_detector(prompts.scored[text].float()) >= 1).any()) for text in texts]
        return found | torch.tensor(named)

    training = replace(
        training,
        held_out_unchanged=round(1 - detected(retain.held_out).float().mean().item(), 4),
        relatives=[text for text in training.relatives if not bool(detected((text,)).any())],
        preserve_detected=[line for line, texts in retain.preserved.items() if bool(detected(texts).any())],
    )
    encoder = prompts.text_encoder
    if token_detector is not None:
        encoder = replace(encoder, token_widths=list(token_detector.widths), token_spans=list(token_detector.spans))
    if detector.neighbours is not None:
        encoder = replace(encoder, neighbours=len(detector.neighbours.embeddings))
    record = Record(plan.family.key, plan.concepts, plan.base, training, encoder, plan.family.embedding)
    return Eraser(hypernet, record, name, detector, prompts.regressor, embeddings, token_detector)


def _within(report: Callable[[int, int], None], first: float, last: float) -> Callable[[int, int], None]:
    """The report of a part of the work, that goes from the share `first` to `last` of all."""
    return lambda done, total: report(round(_UNITS * (first + (last - first) * done / total)), _UNITS)


def _token_detector(
    plan: Plan, prompts: Prompts, preserved: list[str], nouns: list[str], report: Callable[[int, int], None]
) -> TokenDetector | None:
    """The token detector in a file's precision, None where the tokens of a name can't be found."""
    retain, written = plan.retain, plan.written

    def states_of(texts: Iterable[str]) -> list[Tensor]:
        return [prompts.scored[text].float() for text in texts]

    names = []
    for n, texts in enumerate(written.named):
        wordings = [phrase.prompt for phrase in plan.phrases if phrase.concept == n]
        names.append(torch.cat(states_of([*wordings, *texts])))
    if missing := [concept for states, (concept, _) in zip(names, plan.concepts, strict=True) if not len(states)]:
        log.warning(
            "UnHype: this text encoder doesn't show which tokens %s becomes, so the detector scores whole prompts "
            "only. In long ones it may miss it; look with Inspect Prompt.",
            ", ".join(f"'{concept}'" for concept in missing[:5]),
        )
    if len(missing) == len(names):
        return None
    benign = states_of([*retain.train, *written.benign, *written.parts])
    held_out = states_of([*retain.held_out, *written.held_out])
    return (
        fit_token_detector(
            names,
            benign,
            held_out,
            states_of(preserved),
            prompts.widths,
            report,
            nouns=states_of([*nouns, *written.parts]),
            spans=[prompts.spans[concept] for concept, _ in plan.concepts],
        )
        .half()
        .float()
    )


def _concept_embeddings(plan: Plan, prompts: Prompts) -> Tensor:
    """The mean embedding of each concept's wordings, (concepts, width)."""
    c = torch.stack([prompts.encoded[phrase.prompt].c for phrase in plan.phrases])
    concept = torch.tensor([phrase.concept for phrase in plan.phrases])
    return torch.stack([c[concept == n].mean(0) for n in range(len(plan.concepts))])


def _unlike(embeddings: Tensor, plan: Plan, prompts: Prompts, *most: float) -> list[str]:
    """The prompts of nouns that are no other words for a concept, see `detector_fit.unlike`."""
    nouns = plan.written.nouns
    return [nouns[index] for index in unlike(embeddings, prompts.candidates(nouns)[0], *most)] if nouns else []

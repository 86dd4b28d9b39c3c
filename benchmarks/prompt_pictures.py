"""The prompts of `bench prompts` in pictures: what an erasure still shows, and what it leaves alone.

Only prompts whose subject the base model draws count, by the first judge's likeliest label. All methods draw them from
the same noise. Beside ours and its rivals stands our detector in front of UCE's edit, without H.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from unhype.hypernet.eraser import Eraser
from unhype.hypernet.files import tensors_of
from unhype.training.prompts import retain_split

from . import detection
from .baselines import METHODS
from .baselines.erased_model import ErasedModel
from .detection import Case
from .erasure import SETTINGS, concepts_of
from .ours import Ours
from .pictures import Painter
from .prompt_cases import BENIGN, ERASED

RIVALS = ("uce", "nullspace")
# Steps of a rival that runs the diffusion model in training.
_SLOW_RIVALS, _SLOW_STEPS = ("esd",), 100
DETECTOR_AND_UCE = "our detector, UCE's edit"


@dataclass(frozen=True)
class Gated(ErasedModel):
    """An edit of the model that acts only on prompts that the detector of `eraser` detects."""

    eraser: Eraser | None = None

    def below_threshold(self, conditioning):
        """Whether the detector leaves this CONDITIONING to the base model."""
        return not detection.is_detected(self.eraser, conditioning)


def gated(own: Ours, edit: ErasedModel) -> Gated:
    """An edit behind a detector. own: trained for the detector alone, so that no training of H counts as time."""
    tensors = tensors_of(own.eraser)
    numbers = sum(tensor.numel() for name, tensor in tensors.items() if name not in own.eraser.hypernet.state_dict())
    return Gated(
        DETECTOR_AND_UCE,
        edit.model,
        edit.condition,
        own.seconds + edit.seconds,
        numbers + edit.parameters,
        2 * numbers + edit.bytes,  # fp16, as in our files
        eraser=own.eraser,
    )


def rivals(lab: Any, names: Sequence[str], slow: bool) -> list[ErasedModel]:
    """The rivals' erasures of these names. lab: with a `CachingClip`; slow: also those that train for minutes."""
    plain = SimpleNamespace(patcher=lab.patcher, clip=lab.clip.clip)
    concepts = concepts_of(names)
    retain = retain_split("", concepts)
    found = [METHODS[name](plain, concepts, retain, 0, SETTINGS) for name in RIVALS]
    if slow:
        settings = replace(SETTINGS, steps=_SLOW_STEPS)
        found += [METHODS[name](plain, concepts, retain, 0, settings) for name in _SLOW_RIVALS]
    return found


class Drawn:
    """Cases that the base model draws, with its pictures. tried: the counts of those that it draws, of all."""

    def __init__(self, painter: Painter, cases: Sequence[Case]):
        self.painter = painter
        cases = [case for case in cases if case.shows]
        base = painter.base([case.text for case in cases], 1)
        flags = self._shows(cases, [base[case.text] for case in cases])
        self.tried = detection.count(cases, flags)
        self.cases = [case for case, flag in zip(cases, flags, strict=True) if flag]
        self.base = [base[case.text] for case in self.cases]

    def _shows(self, cases: Sequence[Case], pictures: Sequence[torch.Tensor]) -> list[bool]:
        top = self.painter.lab.judges[0].top(torch.cat(list(pictures)))
        return [label == case.shows for label, case in zip(top, cases, strict=True)]

    def measure(self, erased_model: ErasedModel) -> dict[str, Any]:
        """How many pictures of a method show their subject, and how many are the base model's to the last bit."""
        pictures = self.painter.draw(erased_model, [case.text for case in self.cases], 1)
        identical = [torch.equal(own, base) for own, base in zip(pictures, self.base, strict=True)]
        return {
            "shown": detection.count(self.cases, self._shows(self.cases, pictures)),
            "identical": detection.count(self.cases, identical),
            "seconds": erased_model.seconds,
            "bytes": erased_model.bytes,
        }

    def is_exact(self, erased_model: ErasedModel) -> bool:
        """Whether a prompt that is below the threshold gives the base model's picture when it is drawn in full."""
        given = [self.painter.conditioning(case.text) for case in self.cases]
        below = next(one for one in given if erased_model.below_threshold(one))
        own, base = (
            self.painter.batches(model, [below], 1)[0] for model in (erased_model.model, self.painter.lab.patcher)
        )
        return torch.equal(own, base)


def some(cases: Sequence[Case], pairs: int) -> list[Case]:
    """What is drawn: neighbours alone, and of the prompts about erased and benign subjects `pairs` each."""
    found = [case for case in cases if "alone" in case.labels]
    for group in (ERASED, BENIGN):
        own = [case for case in cases if case.group == group]
        found += own[:: max(1, round(len(own) / pairs))]
    return found


def pictures(
    painter: Painter, cases: Sequence[Case], own: Ours, methods: Sequence[ErasedModel], report: Callable[[str], None]
) -> dict[str, Any]:
    """All methods on the cases that the base model draws."""
    drawn = Drawn(painter, cases)
    report(f"the base model draws {len(drawn.cases)} of {len(cases)} prompts")
    found = {}
    for method in (own, *methods):
        found[method.name] = drawn.measure(method)
        report(f"{method.name} is drawn")
    return {"base": drawn.tried, "methods": found, "exact": drawn.is_exact(own)}

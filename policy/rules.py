"""The rules of a policy on a model: which erasers it needs, whether it carries them, and a copy that does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..hypernet.embedding import Conditioning
from ..hypernet.errors import UserError
from ..hypernet.families import Family
from ..hypernet.files import check_fits, load, same_eraser
from ..hypernet.merged import AnyEraser
from ..hypernet.merged_deltas import deltas_of
from ..hypernet.patch import KINDS, Erasure, apply_erasure, erasures_among
from ..hypernet.targets import TargetLayer, configured_family, family_by_key, recognise, target_layers
from .file import Policy, PolicyError


@dataclass(frozen=True, eq=False)
class Rule:
    """An eraser that every model of its family must carry, at this strength or above. unknown: as `PromptDeltas`."""

    eraser: AnyEraser
    strength: float = 1.0
    unknown: str = "strict"

    @property
    def family(self) -> Family:
        """The family of the models that must carry it."""
        return family_by_key(self.eraser.record.family)

    def kept_by(self, erasure: Erasure) -> bool:
        """Whether an erasure is of the same eraser and at least as strict."""
        deltas = erasure.deltas
        strict = self.unknown != "strict" or deltas.fallback is not None
        return strict and deltas.strength >= self.strength and same_eraser(deltas.eraser, self.eraser)


class Rules:
    """A whole policy at work.

    problem: why nothing may be drawn at all, set while something is broken.
    """

    def __init__(self, rules: Sequence[Rule], other_models: str = "refuse", problem: str | None = None) -> None:
        self.rules, self.other_models, self.problem = tuple(rules), other_models, problem
        self._needed: WeakKeyDictionary[Any, tuple[Rule, ...]] = WeakKeyDictionary()
        # Two copies of an eraser are compared number by number, and a network is called many times a second.
        self._kept: WeakKeyDictionary[Erasure, dict[Rule, bool]] = WeakKeyDictionary()

    @property
    def sentence(self) -> str:
        """The policy in a sentence, for the person whose graph is refused."""
        names = [f"'{rule.eraser.name}'" for rule in self.rules]
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        return f"This server draws only with the eraser{'s' if len(names) > 1 else ''} {listed}."

    def check_whole(self) -> None:
        """Raise `PolicyError` while there is a problem."""
        if self.problem is not None:
            raise PolicyError(f"This server draws nothing until its owner mends its policy: {self.problem}.")

    def needed(self, base_model: Any) -> tuple[Rule, ...]:
        """The rules for a host's base model; none where its owner lets other models draw.

        Raises `PolicyError` for a model that may not draw, and for every one while there is a problem.
        """
        self.check_whole()
        if base_model not in self._needed:
            self._needed[base_model] = self._found(base_model)
        return self._needed[base_model]

    def _found(self, base_model: Any) -> tuple[Rule, ...]:
        """By the family first: a network of the family into which an eraser doesn't fit is no other model."""
        family, layers, reason = configured_family(base_model), tuple[TargetLayer, ...](), ""
        try:
            family = recognise(base_model)
            layers = target_layers(base_model, family)
        except UserError as error:
            reason = str(error)
        own = [rule for rule in self.rules if rule.family == family]
        if family is None or not own:
            if self.other_models == "allow":
                return ()
            families = ", ".join(dict.fromkeys(rule.family.title for rule in self.rules))
            kind = type(base_model).__name__ if family is None else family.title
            raise PolicyError(f"{self.sentence} It is for {families}, and this model is {kind}. Load one of that kind.")
        fitting = []
        for rule in own if layers else ():
            try:
                check_fits(rule.eraser, family, layers)
            except UserError as error:
                reason = str(error)
            else:
                fitting.append(rule)
        if not fitting:
            raise PolicyError(f"{self.sentence} It can't be put on this model. {reason}")
        return tuple(fitting)

    def protected(self, model: Any) -> Any:
        """A MODEL with every rule that it needs kept; itself where it keeps them, or where none can be.

        Never raises: what may not draw is refused where it draws, on the node that does.
        """
        if not isinstance(model, ModelPatcher):
            return model
        try:
            needed = self.needed(model.model)
        except PolicyError:
            return model
        for rule in needed:
            if not self._keeps(model.wrappers, rule):
                model = apply_erasure(model, rule.eraser, rule.strength, unknown=rule.unknown)
        return model

    def check_model(self, model: Any) -> tuple[Rule, ...]:
        """The rules that a MODEL which is about to draw keeps. Raises `PolicyError` unless it keeps those it needs."""
        needed = self.needed(model.model)
        self._check(needed, model.wrappers, KINDS)
        return needed

    def check_call(self, base_model: Any, transformer_options: Mapping[str, Any] | None) -> None:
        """Raise `PolicyError` unless the erasures that a call of a network needs are among its wrappers."""
        wrappers = (transformer_options or {}).get("wrappers", {})
        self._check(self.needed(base_model), wrappers, (WrappersMP.APPLY_MODEL,))

    def check_mappings(self, base_model: Any, mappings: Mapping[str, Conditioning]) -> None:
        """Raise `PolicyError` for a text, with its CONDITIONING, that a policy erases: nothing may be trained to it."""
        for rule in self.needed(base_model):
            deltas = deltas_of(rule.eraser, rule.strength, unknown=rule.unknown)
            for text, conditioning in mappings.items():
                entries = [{**entry, "cross_attn": states} for states, entry in conditioning]
                found, _ = deltas.parts(entries)
                if any(parts for prompts in found for parts in prompts):
                    raise PolicyError(
                        f"{self.sentence} Train Erasure, 'concepts': '{text}' is erased here, so nothing can be "
                        "mapped to it. Choose another mapping."
                    )

    def refuse_export(self) -> None:
        """Raise `PolicyError`: nothing is made of an eraser here that could take it back."""
        raise PolicyError(
            f"{self.sentence} Hypernet to LoRA is off here, since a LoRA made of an eraser, loaded with a negative "
            "strength, would take the eraser back."
        )

    def _check(self, needed: Sequence[Rule], wrappers: Mapping[str, Any], kinds: Sequence[str]) -> None:
        for rule in needed:
            if not self._keeps(wrappers, rule, kinds):
                raise PolicyError(
                    f"{self.sentence} The model that draws here came without '{rule.eraser.name}': a node loads or "
                    "changes it where this server can't see it. Load the model with a loader whose MODEL output you "
                    "connect to the sampler."
                )

    def _keeps(self, wrappers: Mapping[str, Any], rule: Rule, kinds: Sequence[str] = KINDS) -> bool:
        """Whether one erasure that keeps a rule is among the wrappers of each kind."""
        kept: set[Erasure] | None = None
        for kind in kinds:
            of_kind = {erasure for erasure in erasures_among(wrappers, (kind,)) if self._is_kept(rule, erasure)}
            kept = of_kind if kept is None else kept & of_kind
        return bool(kept)

    def _is_kept(self, rule: Rule, erasure: Erasure) -> bool:
        known = self._kept.setdefault(erasure, {})
        if rule not in known:
            known[rule] = rule.kept_by(erasure)
        return known[rule]


def rules_of(policy: Policy) -> Rules:
    """The rules of a policy file. Raises `UserError` for an eraser that is missing, damaged or can't be strict."""
    rules = []
    for entry in policy.erasers:
        if not entry.file.is_file():
            raise PolicyError(f"there is no eraser '{entry.file.name}' beside the policy file")
        eraser = load(entry.file)
        deltas_of(eraser, entry.strength, unknown=entry.unknown_prompts)  # raises where 'strict' is impossible
        rules.append(Rule(eraser, entry.strength, entry.unknown_prompts))
    return Rules(rules, policy.other_models)

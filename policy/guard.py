"""The guard where every sampler passes: a model that doesn't keep a policy's rules is refused there.

Two functions of the host are replaced, once, at start, and only where there is a policy file. Samplers call
`comfy.sampler_helpers.prepare_sampling` before the first step, so a refusal comes early and on the node that draws.
`BaseModel.apply_model` is every call of a network: what comes another way to it, or lost the wrappers on its way, is
refused there. Other packs may replace these functions too. `Guard.hold` asks whether ours are still called.
"""

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_base
import comfy.sampler_helpers
from comfy.model_base import BaseModel

from ..hypernet.doors import ErasureLapsedError
from .enforced import is_learning
from .file import PolicyError
from .log import Log
from .rules import Rules

_OPTIONS = 4  # the place of transformer_options behind x among apply_model's arguments

log = logging.getLogger("unhype")


class _Seen(Exception):
    """A question of `Guard.hold` has come to ours."""


_QUESTION: Any = object()


class Guard:
    """The two replaced functions and the rules that they keep."""

    def __init__(self, rules: Rules, log: Log) -> None:
        self.rules, self.log = rules, log

    def set(self) -> None:
        """Replace the host's functions. Raises `PolicyError` where one is missing or ours isn't called."""
        prepare = getattr(comfy.sampler_helpers, "prepare_sampling", None)
        apply = getattr(BaseModel, "apply_model", None)
        if prepare is None or apply is None:
            raise PolicyError(
                "this ComfyUI has no comfy.sampler_helpers.prepare_sampling or no BaseModel.apply_model, where models "
                "could be checked"
            )
        comfy.sampler_helpers.prepare_sampling = self._prepare_sampling(prepare)
        BaseModel.apply_model = self._apply_model(apply)
        if not self.hold():
            raise PolicyError("the functions that check models were set, and ComfyUI doesn't call them")

    def hold(self) -> bool:
        """Whether both functions still come to ours, perhaps by way of another pack's."""
        bare = object.__new__(BaseModel)
        return _comes(lambda: comfy.sampler_helpers.prepare_sampling(_QUESTION, (), {}, {})) and _comes(
            lambda: BaseModel.apply_model(bare, _QUESTION, None)
        )

    def _prepare_sampling(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_sampling(model: Any, *args: Any, **kwargs: Any) -> Any:
            if model is _QUESTION:
                raise _Seen
            if is_learning():
                return prepare(model, *args, **kwargs)
            with self.log.refusals(model):
                rules = self.rules.check_model(model)
                prepared = prepare(model, *args, **kwargs)
                self._check_network(prepared[0])
            self.log.sampling(model, [rule.eraser.name for rule in rules])
            return prepared

        return prepare_sampling

    def _check_network(self, network: Any) -> None:
        """Raise `PolicyError` where calls of this very network don't come to ours: a node may have replaced them."""
        if not _comes(lambda: network.apply_model(_QUESTION, None)):
            raise PolicyError(
                f"{self.rules.sentence} Another node has replaced the way in which this model is called, and with it "
                "the eraser. Take that node out."
            )

    def _apply_model(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def apply_model(base_model: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            if x is _QUESTION:
                raise _Seen
            if not is_learning():
                behind = args[_OPTIONS] if len(args) > _OPTIONS else None
                with self.log.refusals(base_model):
                    self.rules.check_call(base_model, kwargs.get("transformer_options", behind))
                    try:
                        return apply(base_model, x, *args, **kwargs)
                    except ErasureLapsedError as error:  # of a strict eraser
                        raise PolicyError(f"{self.rules.sentence} {error}") from error
            return apply(base_model, x, *args, **kwargs)

        return apply_model


def _comes(call: Callable[[], Any]) -> bool:
    """Whether a call comes to ours."""
    try:
        call()
    except _Seen:
        return True
    except Exception:
        log.debug("UnHype: a function of the policy isn't called any more", exc_info=True)
    return False

"""The policy that this ComfyUI enforces, for the rest of the pack. Without one, all of this does nothing.

It is set once, at start, for the whole process, as are the functions of the host that the guard replaces.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..hypernet.embedding import Conditioning
    from .rules import Rules

_enforced: "list[Rules]" = []
# Whether the calls of a network are a training's.
_learning: ContextVar[bool] = ContextVar("unhype_learning", default=False)


def enforce(rules: "Rules") -> None:
    """Enforce these rules from now on."""
    _enforced[:] = [rules]


def enforced() -> "Rules | None":
    """The rules of this ComfyUI's policy, None without one."""
    return _enforced[0] if _enforced else None


def protected(model: Any) -> Any:
    """A MODEL as it may draw here, see `Rules.protected`."""
    return model if (rules := enforced()) is None else rules.protected(model)


def check_mappings(model: Any, mappings: "Mapping[str, Conditioning]") -> None:
    """Raise `PolicyError` for a text, with its CONDITIONING, that is erased here and that nothing may be mapped to."""
    if (rules := enforced()) is not None:
        rules.check_mappings(model.model, mappings)


def check_export() -> None:
    """Raise `PolicyError` where a policy is enforced: a LoRA made of an eraser takes it back at a negative strength."""
    if (rules := enforced()) is not None:
        rules.refuse_export()


@contextmanager
def learning() -> Generator[None]:
    """While open, networks may run without the erasers of a policy: a training learns from what the model does.

    What is drawn meanwhile to be shown must be drawn with a `protected` model.
    """
    token = _learning.set(True)
    try:
        yield
    finally:
        _learning.reset(token)


def is_learning() -> bool:
    """Whether `learning` is open."""
    return _learning.get()

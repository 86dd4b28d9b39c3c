"""Replacing what modules compute for a while, so that nothing stays behind."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from torch.nn import Module


@contextmanager
def overridden(pairs: Iterable[tuple[Module, Callable[..., Any]]]) -> Generator[None]:
    """While open, each module of the (module, forward) pairs runs that forward instead of its own.

    pairs: taken one by one, so that a forward may wrap the one before it on the same module. The modules' own
    `forward` is back afterwards whatever happens in between; an earlier override by another node is kept.
    """
    former = []
    try:
        for module, forward in pairs:
            former.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield
    finally:
        for module, override in reversed(former):
            if override is None:
                del module.__dict__["forward"]
            else:
                module.forward = override

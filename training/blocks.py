"""Running a frozen network so that gradients go through it, with little memory and no writing in place."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from ..hypernet.forwards import overridden


def _norms_that_copy(blocks: Sequence[Module]) -> list[tuple[Module, Callable[..., Any]]]:
    """Norms keep their input for backward, and these blocks go on to write into it: so they keep a copy."""
    norms = [module for block in blocks for module in block.modules() if isinstance(module, torch.nn.LayerNorm)]
    return [(norm, partial(_on_copies, norm.forward)) for norm in norms]


def _on_copies(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})


def _copy(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value


@contextmanager
def running(
    patched: Callable[[], AbstractContextManager[None]], blocks: Sequence[Module], checkpointing: bool, in_place: bool
) -> Generator[None]:
    """While open, the network may be called, and the result trained through, also after it is closed.

    patched: makes a context in which the target layers have their deltas. blocks: the network's blocks.
    checkpointing: blocks keep only their inputs for backward and run again for the rest, which costs
    about a third more time and saves most of the memory. in_place: whether blocks write into their
    inputs. Then their inputs are copied twice over, for running again and for the norms;
    with either copy missing the gradients are wrong without an error.
    """

    @contextmanager
    def prepared() -> Generator[None]:
        with patched(), overridden(_norms_that_copy(blocks) if in_place else []):
            yield

    with ExitStack() as stack:
        stack.enter_context(prepared())
        if checkpointing:
            stack.enter_context(
                overridden([(block, _rerun(block.forward, prepared, in_place)) for block in blocks]),
            )
        yield


def _rerun(
    forward: Callable[..., Any], prepared: Callable[[], AbstractContextManager[None]], in_place: bool
) -> Callable[..., Any]:
    run = partial(_on_copies, forward) if in_place else forward

    def rerun(*args: Any, **kwargs: Any) -> Any:
        # Backward comes after the deltas of this call are gone.
        contexts: dict[str, Any] = {"context_fn": lambda: (nullcontext(), prepared())}
        return checkpoint(run, *args, use_reentrant=False, **contexts, **kwargs)

    return rerun

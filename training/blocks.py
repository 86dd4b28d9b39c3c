"""Running a frozen network so that gradients go through it, with little memory and no writing in place."""

from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from ..hypernet.forwards import overridden


def _norms_that_copy(blocks):
    """Norms keep their input for backward, and these blocks go on to write into it: so they keep a copy."""
    norms = [module for block in blocks for module in block.modules() if isinstance(module, torch.nn.LayerNorm)]
    return [(norm, partial(_on_copies, norm.forward)) for norm in norms]


def _on_copies(forward, *args, **kwargs):
    return forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})


def _copy(value):
    return value.clone() if torch.is_tensor(value) else value


@contextmanager
def running(patched, blocks, checkpointing, in_place):
    """While open, the network may be called, and the result trained through, also after it is closed.

    patched: makes a context in which the target layers have their deltas. blocks: the network's blocks.
    checkpointing: blocks keep only their inputs for backward and run again for the rest, which costs
    about a third more time and saves most of the memory. in_place: whether blocks write into their
    inputs. Then what they were given has to be copied twice over, for running again and for the norms;
    with either copy missing the gradients are wrong without an error.
    """

    @contextmanager
    def prepared():
        with patched(), overridden(_norms_that_copy(blocks) if in_place else []):
            yield

    with ExitStack() as stack:
        stack.enter_context(prepared())
        if checkpointing:
            stack.enter_context(
                overridden([(block, _rerun(block.forward, prepared, in_place)) for block in blocks]),
            )
        yield


def _rerun(forward, prepared, in_place):
    run = partial(_on_copies, forward) if in_place else forward

    def rerun(*args, **kwargs):
        # Backward comes after the deltas of this call are gone.
        contexts = {"context_fn": lambda: (nullcontext(), prepared())}
        return checkpoint(run, *args, use_reentrant=False, **contexts, **kwargs)

    return rerun

"""The layers of a network during one call of it: where text enters, which deltas they add, and which of them ran.

Cross-attention layers read the text itself (or, in Wan, what the text embedding makes of it): each input is
compared with the context that the network was given. Joint layers mix text and picture: there the text is looked
at where it enters, and the rows of the batch get their deltas from then on. The context itself is recognised by
its object, without looking at numbers.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import Module

from .errors import UserError
from .families import POOLED, Family
from .forwards import overridden
from .network_call import NetworkCall
from .rows import add_to_rows
from .targets import TargetLayer
from .texts import SamplingTexts

Forward = Callable[..., Any]


class ErasureLapsedError(UserError, RuntimeError):
    """A layer ran without its delta, or text entered unseen, and `unknown_prompts` is strict."""


class Doors:
    """The overrides of a family's network with an eraser on it. targets: the layers that H changes.

    text_layers: those in which the text meets the picture. H changes them (the paper's authors some of them), or the
    text projections before them; then they are watched for text that passed no projection.
    """

    def __init__(self, family: Family, targets: Sequence[TargetLayer], text_layers: Sequence[TargetLayer]) -> None:
        self.family, self.targets = family, targets
        names = {target.name for target in targets}
        self.projects = names.isdisjoint(layer.name for layer in text_layers)
        self._pooled = {own.name for own in family.projections if own.source == POOLED}
        self.watched = [layer.name for layer in text_layers if self.projects and self._takes_text_alone(layer.name)]
        blocks = [_block_of(layer.name, family.blocks) for layer in (text_layers if self.projects else targets)]
        self.blocks = list(dict.fromkeys(blocks))
        self._block = [self.blocks.index(block) for block in blocks]
        # Faster than get_submodule, and asked for every module in every call.
        self._module_of = {name: attrgetter(name) for name in (*self.blocks, *self.watched, *names)}
        self._fits: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()

    def _takes_text_alone(self, name: str) -> bool:
        """Whether a layer's input is the prompt's tokens and nothing else."""
        return bool(re.fullmatch(self.family.text_stream, name)) if self.family.joint else not name.endswith("_img")

    def fit(self, network: Module) -> bool:
        """Whether a network has the target layers: a guider may run another model with the wrappers of this one."""
        if network not in self._fits:
            modules = {name.replace("_orig_mod.", ""): module for name, module in network.named_modules()}
            self._fits[network] = modules.keys() >= {*self.blocks, *self.watched} and all(
                getattr(modules.get(target.name), "in_features", 0) == target.inputs
                and getattr(modules.get(target.name), "out_features", 0) == target.features
                for target in self.targets
            )
        return self._fits[network]

    def open(self, network: Module, call: NetworkCall) -> AbstractContextManager[None]:
        """While open, the network adds the deltas of `call` to its target layers.

        An override that another node put on a module before is kept and called.
        """
        call.ran, call.called = [False] * len(self.blocks), [False] * len(self.targets)
        return overridden(self._overrides(network, call))

    def _overrides(self, network: Module, call: NetworkCall) -> Iterator[tuple[Module, Forward]]:
        if not self.family.text_inputs:
            entry = next(module for name in self.family.entry if (module := getattr(network, name, None)) is not None)
            yield entry, (_entering if self.family.joint else _embedding)(entry.forward, call)
        if call.batch is not None or self.family.joint:
            for number, block in enumerate(self.blocks):
                module = self._module_of[block](network)
                yield module, _noting(module.forward, call, number)
        for number, target in enumerate(self.targets):
            module = self._module_of[target.name](network)
            if self.projects:
                rest = module.forward, call, number, target.start
                if self.family.joint:
                    yield module, _mixing(*rest, "given" if target.name in self._pooled else "entering", False)
                else:
                    yield module, _reading(*rest, False, False)
            elif self.family.joint:
                alone = bool(re.fullmatch(self.family.text_stream, target.name))
                yield module, _mixing(module.forward, call, number, target.start, "stream", alone)
            else:
                embedded, pictures = not self.family.text_inputs, target.name.endswith("_img")
                yield module, _reading(module.forward, call, number, target.start, embedded, pictures)
        for name in self.watched:
            module = self._module_of[name](network)
            yield module, _watching(module.forward, call, self.family.joint)

    def check(self, call: NetworkCall) -> None:
        """Complain when a block ran without the forward of a target layer in it, and so without its deltas.

        Fused kernels compute with a layer's weight and skip its forward. Raises `ErasureLapsedError` under strict.
        """
        ran = [any(call.ran)] * len(self.targets) if self.projects else [call.ran[block] for block in self._block]
        skipped = [
            target.name
            for target, expected, called in zip(self.targets, ran, call.called, strict=True)
            if expected and not called
        ]
        if skipped and (call.batch is not None or call.stream.batch is not None):
            self._skipped(call.texts, skipped)
        if self.family.joint and any(call.ran) and not call.has_entered:
            lapsed(call.texts, "text reaches the model behind its text embedding, where it can't be read")

    def _skipped(self, texts: SamplingTexts, layers: Sequence[str]) -> None:
        lapsed(
            texts,
            f"layer '{layers[0]}' ({len(layers)} in all) runs without its delta, since a fused kernel computes with "
            "its weight and skips the layer. Take the plain path: set comfy_force_cast_weights on it, or load the "
            "model in another weight type, such as fp8 or fp16",
        )


def lapsed(texts: SamplingTexts, what: str) -> None:
    """Tell the user that something runs without erasure: `what` and the way out.

    Raises `ErasureLapsedError` under strict; under base it is one warning a sampling.
    """
    message = f"Apply Concept Erasure: with hypernet '{texts.deltas.eraser.name}', {what}."
    if texts.strict:
        raise ErasureLapsedError(f"{message} unknown_prompts is 'strict', so nothing is drawn.")
    texts.warn(message)


def _block_of(layer: str, blocks: str) -> str:
    """The name of the block that a layer is in. blocks: a regular expression of their names."""
    parts = layer.split(".")
    names = (".".join(parts[:n]) for n in range(1, len(parts)))
    return next(name for name in names if re.fullmatch(blocks, name))


def _noting(forward: Forward, call: NetworkCall, number: int) -> Forward:
    def noted(*args: Any, **kwargs: Any) -> Any:
        call.ran[number] = True
        found = forward(*args, **kwargs)
        call.is_through = number == len(call.ran) - 1
        return found

    return noted


def _entering(forward: Forward, call: NetworkCall) -> Forward:
    def entered(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x is not call.context or call.has_entered:
            call.enter(x)
        call.has_entered = True
        return forward(x, *args, **kwargs)

    return entered


def _embedding(forward: Forward, call: NetworkCall) -> Forward:
    def embedded(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        states = forward(x, *args, **kwargs)
        call.embeds(x, states)
        return states

    return embedded


def _reading(forward: Forward, call: NetworkCall, number: int, start: int, embedded: bool, pictures: bool) -> Forward:
    """A cross-attention layer with its deltas."""
    context, batch, mask, called = call.context, call.batch, call.mask, call.called

    def read(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        called[number] = True
        y = forward(x, *args, **kwargs)
        if embedded:
            known = next((known for known in call.embedded if known.tokens() is x), None)
            found = call.deltas_for(x, embedded, pictures) if known is None else known.batch
            own_mask = None if found is None else found.mask(x.shape[1])
        elif x is context:
            found, own_mask = batch, mask
        else:
            found = call.deltas_for(x, embedded, pictures)
            own_mask = None if found is None else found.mask(x.shape[1])
        if found is None:
            return y
        return add_to_rows(y, x, found.rows, found.layers[number], own_mask, start)

    return read


def _mixing(forward: Forward, call: NetworkCall, number: int, start: int, rows: str, text_alone: bool) -> Forward:
    """A joint layer with its deltas. rows: the attribute of the call that has those of its batch."""
    called = call.called

    def mixed(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        called[number] = True
        y = forward(x, *args, **kwargs)
        if text_alone and x.shape[1] not in call.lengths:
            call.lengthened(x.shape[1])
        found = call.deltas_of_rows(getattr(call, rows), len(x))
        return y if found is None else add_to_rows(y, x, found.rows, found.layers[number], start=start)

    return mixed


def _watching(forward: Forward, call: NetworkCall, joint: bool) -> Forward:
    """A layer that reads the text behind the projections."""

    def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not (x.shape[1] in call.lengths if joint else call.has_embedded(x)):
            lapsed(call.texts, "text joins the model behind its text projection, where it gets no delta")
        return forward(x, *args, **kwargs)

    return watched

"""The prompts of a run, encoded: token states for the tasks, and the embeddings that may drive H."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..hypernet.embedding import Conditioning, driving_embeddings, entries_of
from ..hypernet.errors import UserError
from ..hypernet.families import POOLED, Family
from ..hypernet.record import TextEncoder
from ..hypernet.regressor import PooledRegressor, chunk_features
from .regressor_fit import compressed, fit_regressor

# Language models process a prompt of any length at once: no prompt has more tokens than this.
_WHOLE_PROMPT = 65_536
_BETWEEN_REPORTS = 16


class MissingEmbeddingError(UserError, ValueError):
    """The connected CLIP gives no pooled prompt embedding."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the host's CLIP encodes it: c (width,) drives H, `conditioning` is the host's own list."""

    text: str
    c: Tensor
    conditioning: Conditioning


def encode(clip: Any, text: str, source: str = POOLED) -> EncodedPrompt:
    """Encode one prompt outside inference mode; `source` is that of c, as `families` has it.

    Raises `MissingEmbeddingError` when the encoder gives no such vector.
    """
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    states, entry = conditioning[0]
    c = driving_embeddings(entries_of(conditioning)[0], source)[0]
    if c is None:
        raise MissingEmbeddingError(
            "The connected CLIP gives no pooled prompt embedding, which is what drives the hypernet. Connect the CLIP "
            "that belongs to the model; for Flux.1 and Stable Diffusion 3 it must include CLIP-L."
        )
    entry = {name: value.clone() if torch.is_tensor(value) else value for name, value in entry.items()}
    return EncodedPrompt(text, c.clone(), [[states.clone(), entry]])


def skipping_last_layer(clip: Any) -> Any:
    """A clone of a CLIP that gives the token states of its last layer but one, or None if those are the same.

    They are the same where that layer is the usual one, as in SDXL, and in encoders without such a choice.
    """
    skipping = clip.clone()
    skipping.clip_layer(-2)
    usual, other = (encode(version, "").conditioning[0][0] for version in (clip, skipping))
    return None if torch.equal(usual, other) else skipping


@dataclass(frozen=True)
class Prompts:
    """The encoded texts of a run.

    encoded: text to `EncodedPrompt`; retained prompts have an empty conditioning, since only their c is used.
    features: for each encoder layer that the regressor knows, text to the features of its first chunk, whose
    pooled embedding is known. chunk: tokens that the encoder processes together. regressor, r2: as
    `regressor_fit.fit_regressor` returns them.
    """

    encoded: Mapping[str, EncodedPrompt]
    features: Sequence[Mapping[str, Tensor]]
    chunk: int
    regressor: PooledRegressor | None
    r2: float

    @property
    def text_encoder(self) -> TextEncoder:
        """The record's part on the text encoder."""
        if self.regressor is None:
            return TextEncoder(self.chunk)
        layers, *_, rank = self.regressor.up.shape
        return TextEncoder(self.chunk, list(self.regressor.widths), layers, rank)

    @property
    def usual_candidates(self) -> int:
        """How many of the candidates come from the encoder's usual layer; they are the first."""
        return 1 if self.regressor is None else 1 + len(self.regressor.widths)

    def compressed(self, used: Tensor) -> "Prompts":
        """The same prompts with a smaller regressor, see `regressor_fit.compressed`."""
        if self.regressor is None:
            return self
        features = [torch.stack(list(layer.values())) for layer in self.features]
        return replace(self, regressor=compressed(self.regressor, features, used))

    def candidates(self, texts: Iterable[str]) -> Tensor:
        """The embeddings that may drive H for n texts, (candidates, n, width): pooled first, then the regressor's."""
        texts = list(texts)
        pooled = [torch.stack([self.encoded[text].c for text in texts])]
        if self.regressor is None:
            return torch.stack(pooled)
        estimates = [self.regressor(torch.stack([layer[text] for text in texts])) for layer in self.features]
        return torch.stack([*pooled, *(c for layer in estimates for c in layer)])


def encode_prompts(
    clip: Any,
    drawn: Sequence[str],
    train: Sequence[str],
    held_out: Sequence[str],
    family: Family,
    on_progress: Callable[[int, int], None],
) -> Prompts:
    """Encode every text once and fit the regressor.

    drawn: texts whose token states the tasks need; train, held_out: those that the regressor is fitted and
    measured on. on_progress(done, total) may raise to interrupt. Families whose c comes from the tokens need no
    regressor.
    """
    texts = list(dict.fromkeys([*drawn, *train, *held_out]))
    source, whole = family.embedding, set(drawn)
    skipping = skipping_last_layer(clip) if source == POOLED else None
    # One version of the encoder after the other: ComfyUI loads it anew whenever they take turns.
    versions = [clip] if skipping is None else [clip, skipping]
    encoded: dict[str, EncodedPrompt] = {}
    features: list[dict[str, Tensor]] = [{} for _ in versions]
    with torch.no_grad():
        _, chunk, width = encode(clip, "", source).conditioning[0][0].shape
        widths = family.encoders if sum(family.encoders) == width else (width,)
        for number, (version, layer) in enumerate(zip(versions, features, strict=True)):
            for done, text in enumerate(texts):
                prompt = encode(version, text, source)
                layer[text] = chunk_features(prompt.conditioning[0][0][0, :chunk].float().cpu(), widths)
                if number == 0:
                    encoded[text] = prompt if text in whole else replace(prompt, conditioning=[])
                if done % _BETWEEN_REPORTS == 0:
                    on_progress(number * len(texts) + done, len(versions) * len(texts))
        if source != POOLED:
            return Prompts(encoded, [], _WHOLE_PROMPT, None, 0.0)
        c = [torch.stack([encoded[text].c for text in part]) for part in (train, held_out)]
        seen = [[torch.stack([layer[text] for text in part]) for part in (train, held_out)] for layer in features]
        regressor, known, r2 = fit_regressor(seen, c, widths)
    return Prompts(encoded, [features[layer] for layer in known], chunk, regressor, r2)

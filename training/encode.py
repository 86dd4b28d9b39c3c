"""The prompts of a run, encoded: token states for the tasks, and the embeddings that may drive H."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hypernet.embedding import Conditioning, driving_embeddings, entries_of
from ..hypernet.errors import UserError
from ..hypernet.families import POOLED, Family
from ..hypernet.record import TextEncoder
from ..hypernet.regressor import PooledRegressor, chunk_features
from ..hypernet.token_detector import together, unit_states
from .encoder_fingerprint import fingerprint, prompt_key
from .encoding_cache import EncodingCache, packed, unpacked
from .name_tokens import distinct_tokens, last_tokens_of, span_of
from .regressor_fit import compressed, fit_regressor

# Language models process a prompt of any length at once: no prompt has more tokens than this.
_WHOLE_PROMPT = 65_536
_BETWEEN_REPORTS = 16
# Tokens of a name that are scored together, at most: the benign ones are held once for each number.
_LONGEST_SPAN = 4
# Characters that the rest of a text's encoding takes as long as.
_SIZE_OF_TEXT = 55


OnProgress = Callable[[int, int], None]


class MissingEmbeddingError(UserError, ValueError):
    """The connected CLIP gives no pooled prompt embedding."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the host's CLIP encodes it: c (width,) drives H, `conditioning` is the host's own list."""

    text: str
    c: Tensor
    conditioning: Conditioning


def encode(clip: Any, text: str, source: str = POOLED, tokens: Any = None) -> EncodedPrompt:
    """Encode one prompt outside inference mode; `source` is that of c, as `families` has it.

    tokens: what the CLIP's tokenizer gives for the text, if that is known. Raises `MissingEmbeddingError` when the
    encoder gives no such vector.
    """
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text) if tokens is None else tokens)
    states, entry = conditioning[0]
    c = driving_embeddings(entries_of(conditioning)[0], source)[0]
    if c is None:
        raise MissingEmbeddingError(
            "The connected CLIP gives no pooled prompt embedding, which is what drives the hypernet. Connect the CLIP "
            "that belongs to the model; for Flux.1 and Stable Diffusion 3 it must include CLIP-L."
        )
    entry = {name: value.clone() if torch.is_tensor(value) else value for name, value in entry.items()}
    return EncodedPrompt(text, c.clone(), [[states.clone(), entry]])


def one_by_one(
    versions: Sequence[Any], texts: Sequence[str], source: str, on_progress: OnProgress
) -> Iterator[tuple[EncodedPrompt, ...]]:
    """Encode texts: for each of them, in their order, its prompt in each version of a CLIP.

    source: as in `encode`. on_progress(texts done, texts) may raise to interrupt.
    """
    for done, text in enumerate(texts):
        if done % _BETWEEN_REPORTS == 0:
            on_progress(done, len(texts))
        yield tuple(encode(version, text, source) for version in versions)


# How texts are encoded, see `one_by_one`.
Encoding = Callable[[Sequence[Any], Sequence[str], str, OnProgress], Iterator[tuple[EncodedPrompt, ...]]]


def skipping_last_layer(clip: Any) -> Any:
    """A clone of a CLIP that gives the token states of its last layer but one, or None if those are the same.

    They are the same where that layer is the usual one, as in SDXL, and in encoders without such a choice.
    """
    skipping = clip.clone()
    skipping.clip_layer(-2)
    if hasattr(clip, "patcher"):
        skipping.patcher = clip.patcher  # with one of its own ComfyUI loads the encoder anew whenever they take turns
    usual, other = (encode(version, "").conditioning[0][0] for version in (clip, skipping))
    return None if torch.equal(usual, other) else skipping


@dataclass(frozen=True)
class Prompts:
    """The encoded texts of a run.

    encoded: text to `EncodedPrompt`; retained prompts have an empty conditioning, since only their c is used.
    features: for each encoder layer that the regressor knows, text to the features of its first chunk, whose
    pooled embedding is known. chunk: tokens that the encoder processes together. regressor, r2: as
    `regressor_fit.fit_regressor` returns them. scored: text to token states for the token detector, (n, in) fp16
    on the CPU, of every version of the encoder, as `token_detector.unit_states` scales them; of a text with a name its
    tokens `together`. spans: name to how many of its tokens those are. widths: of the encoders whose states lie side by
    side in `in`.
    """

    encoded: Mapping[str, EncodedPrompt]
    features: Sequence[Mapping[str, Tensor]]
    chunk: int
    regressor: PooledRegressor | None
    r2: float
    scored: Mapping[str, Tensor]
    spans: Mapping[str, int]
    widths: tuple[int, ...]

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
    scored: Mapping[str, str],
    family: Family,
    on_progress: OnProgress,
    encoding: Encoding = one_by_one,
    folder: Path | None = None,
    on_fit: Callable[[], None] = lambda: None,
) -> Prompts:
    """Encode every text once and fit the regressor.

    drawn: texts whose token states the tasks need; train, held_out: those that the regressor is fitted and
    measured on; scored: those whose token states the token detector needs, with the name whose last token is
    wanted, or "" for all tokens. on_progress(done, total) counts characters, as the time goes, and may raise to
    interrupt. Families whose c comes from the tokens need no regressor. encoding: `one_by_one`, or
    `encode_batch.in_batches`. folder: where encodings are kept from run to run. on_fit: called when all are encoded.
    """
    texts = list(dict.fromkeys([*drawn, *train, *held_out, *scored]))
    source, whole = family.embedding, set(drawn)
    skipping = skipping_last_layer(clip) if source == POOLED else None
    versions = [clip] if skipping is None else [clip, skipping]
    on_progress(0, 1)
    with torch.no_grad():
        probes = [encode(version, "", source) for version in versions]
        _, chunk, width = probes[0].conditioning[0][0].shape
        widths = family.encoders if sum(family.encoders) == width else (width,)
        parts = [source, chunk, widths, *(tensor for probe in probes for tensor in (probe.c, probe.conditioning[0][0]))]
        spans = {name: span_of(clip, name, _LONGEST_SPAN) for name in {*scored.values()} - {""}}
        kept = _Kept(clip, texts, whole, scored, folder, [*parts, _LONGEST_SPAN])
        found = kept.found
        missing = [text for text in texts if text not in found]
        # Long texts take longer; kept ones take no time.
        sizes = [0, *accumulate(_SIZE_OF_TEXT + len(text) for text in missing)]

        def report(done: int, total: int) -> None:
            on_progress(sizes[done], max(1, sizes[total]))

        try:
            for prompts in encoding(versions, missing, source, report):
                text = prompts[0].text
                states = [prompt.conditioning[0][0][0, :chunk].float().cpu() for prompt in prompts]
                layers = torch.stack([chunk_features(part, widths) for part in states])
                own = None
                if text in scored:
                    own = _scored_states(clip, prompts, scored[text], spans, widths)
                found[text] = prompts[0] if text in whole else replace(prompts[0], conditioning=[]), layers, own
                kept.add(*found[text])
        finally:
            kept.flush()
        on_fit()
        encoded = {text: found[text][0] for text in texts}
        features = [{text: found[text][1][n] for text in texts} for n in range(len(versions))]
        tokens = {text: own for text in scored if (own := found[text][2]) is not None}
        if source != POOLED:
            return Prompts(encoded, [], _WHOLE_PROMPT, None, 0.0, tokens, spans, widths)
        c = [torch.stack([encoded[text].c for text in part]) for part in (train, held_out)]
        seen = [[torch.stack([layer[text] for text in part]) for part in (train, held_out)] for layer in features]
        regressor, known, r2 = fit_regressor(seen, c, widths)
    return Prompts(encoded, [features[layer] for layer in known], chunk, regressor, r2, tokens, spans, widths)


def _scored_states(
    clip: Any, prompts: Sequence[EncodedPrompt], name: str, spans: Mapping[str, int], widths: tuple[int, ...]
) -> Tensor:
    """The scaled states (n, in) of the name's tokens together, or without a name those of all tokens that differ.

    prompts: one text in each version of the CLIP.
    """
    versions, text = [prompt.conditioning[0][0][0] for prompt in prompts], prompts[0].text
    if name:
        chosen = last_tokens_of(clip, text, name, len(versions[0]))
    else:
        chosen = distinct_tokens(clip, text, len(versions[0]))
    found = []
    for states in versions:
        parts = [together(unit_states(part), spans.get(name, 1)) for part in states.float().cpu().split(widths, -1)]
        found.append(torch.cat([part[chosen] for part in parts], -1))
    tokens = torch.cat(found)
    return tokens[tokens.any(-1)].half()


class _Kept:
    """What is kept of the prompts of a run from earlier ones, and for later ones.

    found: text to its prompt, its features (layers, F) and its scored states, if it is scored. parts: see
    `encoder_fingerprint.fingerprint`.
    """

    def __init__(
        self,
        clip: Any,
        texts: Iterable[str],
        whole: set[str],
        scored: Mapping[str, str],
        folder: Path | None,
        parts: list[Any],
    ) -> None:
        self.found: dict[str, tuple[EncodedPrompt, Tensor, Tensor | None]] = {}
        self.scored = scored
        encoder = None if folder is None else fingerprint(clip, parts)
        self.cache = None if folder is None or encoder is None else EncodingCache(folder, encoder)
        if self.cache is None:
            return
        self.keys = {text: prompt_key(clip.tokenize(text)) for text in texts}
        wanted: dict[str, set[str]] = {}  # texts of the same tokens share a key
        for text, key in self.keys.items():
            if key is not None:
                wanted.setdefault(key, {"c", "features"})
                wanted[key] |= ({"states"} if text in whole else set()) | self._scored_names(text)
        known = self.cache.read(wanted)
        for text, key in self.keys.items():
            if key in known:
                c, features, conditioning = unpacked(known[key])
                own = [known[key][name] for name in self._scored_names(text)]
                prompt = EncodedPrompt(text, c, conditioning if text in whole else [])
                self.found[text] = prompt, features, own[0] if own else None

    def _scored_names(self, text: str) -> set[str]:
        """The name of the scored states of a text, if it is scored."""
        return {_scored_name(self.scored[text])} if text in self.scored else set()

    def add(self, prompt: EncodedPrompt, features: Tensor, scored: Tensor | None) -> None:
        """Keep a prompt, with its conditioning and its scored states if it has them."""
        if self.cache is None or (key := self.keys[prompt.text]) is None:
            return
        tensors = packed(prompt.c, features, prompt.conditioning or None)
        if tensors is not None:
            own = {} if scored is None else {_scored_name(self.scored[prompt.text]): scored}
            self.cache.add(key, tensors | own)

    def flush(self) -> None:
        """Write what was added."""
        if self.cache is not None:
            self.cache.flush()


def _scored_name(name: str) -> str:
    """What the scored states of a text are kept as: which tokens they are depends on the name in it."""
    return f"token_{hashlib.sha256(name.encode()).hexdigest()[:16]}" if name else "tokens"

"""The lab Flux's two text encoders, as Flux.1 has them: the lab's CLIP pooled, MiniLM's states as T5's token sequence.

CLIP reads the first 77 tokens and gives one vector; MiniLM reads up to 256 tokens, from both sides as T5 does.
"""

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.flux
import torch
from safetensors.torch import load_file
from torch import Tensor

from . import clip, storage, text

SEQUENCE = 256
_PASS = 16  # prompts encoded at once


class Sequence(text._FluxWords):
    """MiniLM's words: at least 24 tokens, at most 256; what is longer is cut off."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data)
        self.max_length = SEQUENCE


class Tokenizer(comfy.text_encoders.flux.FluxTokenizer):
    """What `clip.tokenize` calls: the same prompt for both."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.clip_l = clip.Words(embedding_directory, tokenizer_data)
        self.t5xxl = Sequence(embedding_directory, tokenizer_data)


class ClipModel(comfy.text_encoders.flux.FluxClipModel):
    """What `clip.encode_from_tokens` calls: MiniLM's states (1, tokens, 384) and CLIP's pooled vector (1, 256)."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        torch.nn.Module.__init__(self)  # the host's own would make a T5 of 4.7 billion numbers
        self.clip_l = clip.Encoder(device, dtype, model_options)
        self.t5xxl = text._Sentence(device, dtype, model_options)
        self.dtypes = {dtype}


def load_clip(path: Path = clip.PATH, embedding_directory: Any = None) -> comfy.sd.CLIP:
    """Both encoders as one CLIP, fp32; path: the weights of the lab's CLIP."""
    return loaded(Tokenizer, ClipModel, path, embedding_directory)


def loaded(tokenizer: type, model: type, path: Path = clip.PATH, embedding_directory: Any = None) -> comfy.sd.CLIP:
    """Encoders side by side as one CLIP, fp32: each of them the lab's CLIP with the weights at `path`, or MiniLM."""
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    options = {"dtype": torch.float32, "initial_device": torch.device("cpu")}
    made = comfy.sd.CLIP(target, embedding_directory=embedding_directory, model_options=options)
    minilm = load_file(text._folder() / "model.safetensors")
    for encoder in made.cond_stage_model.children():
        if isinstance(encoder, clip.Encoder):
            encoder.load_sd(storage.load(path))
        else:
            names = encoder.transformer.state_dict()
            encoder.load_sd({f"bert.{name}": own for name, own in minilm.items() if f"bert.{name}" in names})
    return made


def encode_all(made: comfy.sd.CLIP, texts: list[str]) -> list[tuple[Tensor, Tensor]]:
    """States (tokens, 384) and pooled vectors (256,) of prompts, as nodes get them, many in a pass.

    Sequences that are encoded together are padded to the longest one, with zeros.
    """
    made.load_model()
    made.cond_stage_model.reset_clip_options()
    tokens = [made.tokenize(text) for text in texts]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    plain = [number for number, one in enumerate(tokens) if _is_plain(one)]
    plain.sort(key=lambda number: len(tokens[number]["t5xxl"][0]))
    with torch.no_grad():
        for start in range(0, len(plain), _PASS):
            part = plain[start : start + _PASS]
            rows = [[token for token, _ in tokens[number]["t5xxl"][0]] for number in part]
            rows = [row + [text._SPECIAL["pad"]] * (len(rows[-1]) - len(row)) for row in rows]
            states = made.cond_stage_model.t5xxl(rows)[0]
            first = [[token for token, _ in tokens[number]["l"][0]] for number in part]
            pooled = made.cond_stage_model.clip_l(first)[1]
            found.update(zip(part, zip(states, pooled, strict=True), strict=True))
        for number in set(range(len(texts))) - set(plain):
            states, pooled = made.encode_from_tokens(tokens[number], return_pooled=True)
            found[number] = states[0], pooled[0]
    return [found[number] for number in range(len(texts))]


def _is_plain(tokens: dict[str, Any]) -> bool:
    """Without weights, which change states one by one."""
    return all(weight == 1 for chunks in tokens.values() for chunk in chunks for _, weight in chunk)

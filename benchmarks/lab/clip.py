"""The lab's CLIP: ComfyUI's own text encoder of SD 1.x in small.

Tokenizer and network are the host's classes, so all that people know of CLIP-L holds here as well: it reads from
left to right, 77 tokens a chunk, pads with end tokens, pools the state at the first end token (not projected),
and takes weights, clip-skip and textual inversion. Four layers of width 256 instead of twelve of 768, and a token
table of 96 numbers a token that one linear layer widens: 8 M numbers. `train_clip` distils it from MiniLM.

It knows what MiniLM could teach it about the lab's words. It never saw a picture, and it isn't CLIP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from torch import Tensor

from . import storage

PATH = Path(__file__).with_name("weights") / "clip.safetensors"
WIDTH, TOKENS, VOCABULARY, RANK = 256, 77, 49408, 96
CONFIG = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": TOKENS,
    "eos_token_id": 49407,
}


class TokenTable(torch.nn.Module):
    """Token ids to embeddings through a narrow table: (..., ) to (..., width). Every id of CLIP-L has a row."""

    def __init__(self, dtype, device, operations):
        super().__init__()
        self.rows = operations.Embedding(VOCABULARY, RANK, dtype=dtype, device=device)
        self.widen = operations.Linear(RANK, WIDTH, bias=False, dtype=dtype, device=device)

    @property
    def weight(self) -> Tensor:
        """Whose device ComfyUI looks up."""
        return self.rows.weight

    def forward(self, tokens: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return self.widen(self.rows(tokens, out_dtype=out_dtype))


class TextModel(comfy.clip_model.CLIPTextModel):
    """CLIP's text model with the narrow table."""

    def __init__(self, config_dict, dtype, device, operations):
        super().__init__(config_dict, dtype, device, operations)
        self.set_input_embeddings(TokenTable(dtype, device, operations))


class Encoder(comfy.sd1_clip.SDClipModel):
    """Chunks of 77 tokens to states (n, 77, 256) and pooled vectors (n, 256)."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(CONFIG),
            model_class=TextModel,
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class Words(comfy.sd1_clip.SDTokenizer):
    """CLIP-L's tokenizer; textual inversions have this encoder's width."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            embedding_directory=embedding_directory, embedding_size=WIDTH, tokenizer_data=tokenizer_data or {}
        )


class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    """What `clip.tokenize` calls."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=Words)


class ClipModel(comfy.sd1_clip.SD1ClipModel):
    """What `clip.encode_from_tokens` calls."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, clip_model=Encoder)


def build(embedding_directory: Any = None) -> comfy.sd.CLIP:
    """The encoder without weights, fp32: ComfyUI leaves its layers uninitialised."""
    target = comfy.supported_models_base.ClipTarget(Tokenizer, ClipModel)
    options = {"dtype": torch.float32, "initial_device": torch.device("cpu")}
    return comfy.sd.CLIP(target, embedding_directory=embedding_directory, model_options=options)


def load_clip(path: Path = PATH, embedding_directory: Any = None) -> comfy.sd.CLIP:
    """The distilled encoder. embedding_directory: where textual inversions lie, as ComfyUI's loaders give it."""
    if not path.is_file():
        raise FileNotFoundError(f"The lab's CLIP isn't trained yet, {path} is missing: python3 dev.py lab clip")
    clip = build(embedding_directory)
    clip.load_sd(storage.load(path))
    return clip


def encode_batch(clip: comfy.sd.CLIP, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Several prompts in one pass: states (n, 77, 256) and pooled vectors (n, 256) of each prompt's first chunk.

    Weights have no effect here; `clip.encode_from_tokens` is for prompts that have them.
    """
    clip.load_model()
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    tokens = [[token for token, _ in clip.tokenize(text)["l"][0]] for text in texts]
    with torch.no_grad():
        return clip.cond_stage_model.clip_l(tokens)[:2]


def encode_all(clip: comfy.sd.CLIP, texts: Sequence[str]) -> list[Tensor]:
    """States (chunks * 77, 256) of whole prompts with their weights, as nodes get them, many chunks in a pass."""
    clip.load_model()
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    tokens = [clip.tokenize(text)["l"] for text in texts]
    chunks = [chunk for prompt in tokens for chunk in prompt]
    with torch.no_grad():
        states = clip.cond_stage_model.clip_l.encode_token_weights(chunks)[0][0]
    return list(states.split([TOKENS * len(prompt) for prompt in tokens]))

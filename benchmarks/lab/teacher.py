"""MiniLM as the teacher of the lab's CLIP: sentence embeddings by its own recipe, the mean of all token states."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertModel, BertTokenizerFast

from .text import _folder as model_folder


class Teacher:
    """all-MiniLM-L6-v2 in bf16 or fp32; texts of up to 256 tokens, as it was trained."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16):
        self.words = BertTokenizerFast.from_pretrained(model_folder(), local_files_only=True)
        self.model = BertModel.from_pretrained(model_folder(), local_files_only=True, dtype=dtype).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch: int = 128) -> Tensor:
        """Unit vectors (n, 384), fp32."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        result = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            tokens = self.words(
                [texts[index] for index in part], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states = self.model(**tokens).last_hidden_state.float()
            kept = tokens["attention_mask"].unsqueeze(-1)
            result[part] = normalize((states * kept).sum(1), dim=1)
        return result

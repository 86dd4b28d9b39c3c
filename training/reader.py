"""Fitting the reader that tells a chunk's pooled vector from its token states.

Ridge regression over all prompts that training encodes anyway, once at the encoder's own layer and
once at clip-skip 2, if that gives other states for the same pooled vector.
"""

from dataclasses import dataclass, replace

import torch

from ..hypernet.embedding import Reader, chunk_features
from .frozen import encode, skipping_last_layer

# Ridge strengths that are tried, as shares of the features' mean variance.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Below this share of explained variance a reader would put words into the mouth of every prompt.
READABLE = 0.5


@dataclass(frozen=True)
class Prompts:
    """The encoded texts of a run.

    encoded: text to `EncodedPrompt`; of texts that are only kept, H needs no more than c. features: of each
    layer of the encoder that is read, text to the features of its first chunk, whose pooled vector is known.
    reader, explained: as `fit_reader` found them; chunk: tokens that the encoder makes at once.
    """

    encoded: dict
    features: list
    chunk: int
    reader: Reader | None
    explained: float

    @property
    def reading(self):
        """`Record.reading` of a file trained on these prompts."""
        return {"tokens": self.chunk, "features": 0 if self.reader is None else self.reader.weight.shape[1]}

    def views_of(self, rows, text_of=lambda text: text):
        """Rows of a list, repeated once for each view, and the c of all, (views * rows, width)."""
        texts = [text_of(row) for row in rows]
        views = [torch.stack([self.encoded[text].c for text in texts])]
        if self.reader is not None:
            views += [self.reader(torch.stack([layer[text] for text in texts])) for layer in self.features]
        return [*rows] * len(views), torch.cat(views)


def encode_prompts(clip, drawn, train, held_out, on_progress):
    """Encode every text once and fit the reader. drawn: texts that are drawn as well; returns `Prompts`."""
    texts = list(dict.fromkeys([*drawn, *train, *held_out]))
    skipped = skipping_last_layer(clip)
    encoded, features = {}, [{}] if skipped is None else [{}, {}]
    with torch.no_grad():
        chunk = encode(clip, "").conditioning[0][0].shape[1]
        for done, text in enumerate(texts):
            prompt = encode(clip, text)
            both = [prompt] if skipped is None else [prompt, encode(skipped, text)]
            for layer, version in zip(features, both, strict=True):
                layer[text] = chunk_features(version.conditioning[0][0][0, :chunk].float().cpu())
            encoded[text] = prompt if text in drawn else replace(prompt, conditioning=[])
            if done % 16 == 0:
                on_progress()
        pairs = [
            (
                torch.stack([layer[text] for layer in features for text in part]),
                torch.stack([encoded[text].c for _ in features for text in part]),
            )
            for part in (train, held_out)
        ]
        reader, share = fit_reader(*pairs)
    return Prompts(encoded, features, chunk, reader, share)


def ridge(features, c, strength):
    """The `Reader` that minimises sum |W f + b - c|^2 + strength * n * mean variance * |W|^2.

    features: (n, f); c: (n, width). Solved in the smaller of n and f, in fp64.
    """
    features, c = features.double(), c.double()
    center, mean = features.mean(0), c.mean(0)
    X, Y = features - center, c - mean
    weight = strength * X.square().sum() / X.shape[1]
    if X.shape[0] < X.shape[1]:
        gram = X @ X.T
        solution = X.T @ torch.linalg.solve(gram + weight * torch.eye(len(gram), dtype=gram.dtype), Y)
    else:
        gram = X.T @ X
        solution = torch.linalg.solve(gram + weight * torch.eye(len(gram), dtype=gram.dtype), X.T @ Y)
    return Reader(solution.T.float().contiguous(), (mean - center @ solution).float())


def explained(reader, features, c):
    """The share of the variance of c (n, width) that a reader tells from features (n, f)."""
    rest = (reader(features) - c).square().sum()
    return 1 - (rest / (c - c.mean(0)).square().sum()).item()


def fit_reader(train, held_out):
    """Fit on pairs (features, c) and choose the strength on held-out ones.

    Returns (reader, share of variance explained on the held-out pairs); the reader is None where tokens
    don't tell c.
    """
    readers = [ridge(*train, strength) for strength in _STRENGTHS]
    share, best = max((explained(reader, *held_out), -number) for number, reader in enumerate(readers))
    return readers[-best] if share >= READABLE else None, share

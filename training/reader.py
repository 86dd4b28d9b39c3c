"""Fitting the reader that tells a chunk's pooled vector from its token states.

Ridge regression over all prompts that training encodes anyway, once at the encoder's own layer and
once at clip-skip 2, if that gives other states for the same pooled vector. Each layer has a map of its
own: one for both reads the usual layer markedly worse.
"""

from dataclasses import dataclass, replace

import torch

from ..hypernet.embedding import Reader, chunk_features
from ..hypernet.families import POOLED
from .frozen import encode, skipping_last_layer

# Ridge strengths that are tried, as shares of the features' mean variance.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_KEY_STRENGTH = 1e-2
# Language models make a prompt of any length at once: no prompt has more tokens than this.
_WHOLE_PROMPT = 65_536
RANK = 32
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
        widths, layers, rank = [], 0, 0
        if self.reader is not None:
            widths, layers, rank = list(self.reader.widths), len(self.reader.up), self.reader.up.shape[-1]
        return {"tokens": self.chunk, "widths": widths, "layers": layers, "rank": rank}

    @property
    def usual_views(self):
        """How many of the views come from the encoder's usual layer; they are the first."""
        return 1 if self.reader is None else 1 + len(self.reader.widths)

    def compressed(self, readers_of_c):
        """The same prompts with a smaller reader, see `compressed`."""
        if self.reader is None:
            return self
        features = [torch.stack(list(layer.values())) for layer in self.features]
        return replace(self, reader=compressed(self.reader, features, readers_of_c))

    def views_of(self, rows, text_of=lambda text: text):
        """Rows of a list, repeated once for each view, and the c of all, (views * rows, width)."""
        texts = [text_of(row) for row in rows]
        views = [torch.stack([self.encoded[text].c for text in texts])]
        if self.reader is not None:
            read = [self.reader(torch.stack([layer[text] for text in texts])) for layer in self.features]
            views += [c for layer in read for c in layer]
        return [*rows] * len(views), torch.cat(views)


def encode_prompts(clip, drawn, train, held_out, encoders, on_progress, source=POOLED):
    """Encode every text once and fit the reader. drawn: texts that are drawn as well; returns `Prompts`.

    encoders: widths of the family's encoders where their states lie side by side. on_progress(done, total) may
    raise to interrupt. source: what drives H, one of ``families``'. Where that are the tokens themselves there is
    nothing to be read from them.
    """
    texts = list(dict.fromkeys([*drawn, *train, *held_out]))
    skipped = skipping_last_layer(clip) if source == POOLED else None
    encoded, features = {}, [{}] if skipped is None else [{}, {}]
    with torch.no_grad():
        _, chunk, width = encode(clip, "", source).conditioning[0][0].shape
        widths = encoders if sum(encoders) == width else (width,)
        # One version of the encoder after the other: ComfyUI loads it anew whenever they take turns.
        versions = [clip] if skipped is None else [clip, skipped]
        for number, (version, layer) in enumerate(zip(versions, features, strict=True)):
            for done, text in enumerate(texts):
                prompt = encode(version, text, source)
                layer[text] = chunk_features(prompt.conditioning[0][0][0, :chunk].float().cpu(), widths)
                if number == 0:
                    encoded[text] = prompt if text in drawn else replace(prompt, conditioning=[])
                if done % 16 == 0:
                    on_progress(number * len(texts) + done, len(versions) * len(texts))
        if source != POOLED:
            return Prompts(encoded, [], _WHOLE_PROMPT, None, 0.0)
        c = [torch.stack([encoded[text].c for text in part]) for part in (train, held_out)]
        seen = [[torch.stack([layer[text] for text in part]) for part in (train, held_out)] for layer in features]
        reader, known, share = fit_reader(seen, c, widths)
    return Prompts(encoded, [features[layer] for layer in known], chunk, reader, share)


def fit_reader(features, c, widths):
    """Fit a `Reader`; every layer gets its own map, a linear score tells the layers apart.

    features: of each layer a pair (train, held out), each (., F); c: the pair of vectors (., width) that
    they mean. Returns (reader, layers that it knows, share of variance that it explains on the usual layer's
    held-out rows). Where the usual layer can't be read the reader is None; another one is then left out.
    """
    maps = [fit_layer(*layer, *c, widths) for layer in features]
    known = [number for number, (*_, share) in enumerate(maps) if min(share, maps[0][-1]) >= READABLE]
    if not known:
        return None, [], maps[0][-1]
    weight, bias = (torch.stack([maps[number][part] for number in known]) for part in (0, 1))
    up, down = whole_maps(weight, len(widths))
    which = torch.eye(len(known)).repeat_interleave(len(c[0]), 0)
    score = ridge(torch.cat([features[number][0] for number in known]), which, _KEY_STRENGTH)
    return Reader(tuple(widths), up, down, bias, torch.cat([score[0], score[1].unsqueeze(1)], 1)), known, maps[0][-1]


def ridge(features, c, strength):
    """W and b that minimise sum |W f + b - c|^2 + strength * n * mean variance * |W|^2.

    features: (n, f); c: (n, width). Returns (W (width, f), b (width,)), fp32. Solved in the smaller of n
    and f, in fp64.
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
    return solution.T.float(), (mean - center @ solution).float()


def explained(found, c):
    """The share of the variance of c (n, width) that the vectors `found` tell."""
    return 1 - ((found - c).square().sum() / (c - c.mean(0)).square().sum()).item()


def fit_layer(train, held_out, train_c, held_out_c, widths):
    """Fit the map of one layer, each encoder for itself, and choose each one's strength on held-out prompts.

    train, held_out: features (., F); train_c, held_out_c: c (., width). Returns (weight (width, F), bias
    (encoders, width), share of the held-out variance that it explains, the least of the encoders).
    """
    sizes = [2 * width for width in widths]
    best = []
    for own, unseen in zip(train.split(sizes, -1), held_out.split(sizes, -1), strict=True):
        maps = [ridge(own, train_c, strength) for strength in _STRENGTHS]
        shares = [explained(unseen @ weight.T + bias, held_out_c) for weight, bias in maps]
        share = max(shares)
        best.append((*maps[shares.index(share)], share))
    weights, biases, shares = zip(*best, strict=True)
    return torch.cat(weights, 1), torch.stack(biases), min(shares)


def whole_maps(weight, encoders):
    """Maps of full rank for a `Reader`: weight (layers, width, F) as up (layers, encoders, width, width) and down."""
    layers, width, _ = weight.shape
    return torch.eye(width).expand(layers, encoders, width, width), weight


def compressed(reader, features, readers_of_c, rank=RANK):
    """The reader with maps of `rank` that differ least in what is made of c; a file would else be mostly reader.

    features: of each layer (n, F); readers_of_c: (m, width), the rows that c is multiplied with later, the
    errors of whose products are kept small. With S their Gram matrix and Y the fitted c, the best P of
    rank r for || (Y - Y P) S^1/2 || is S^1/2 V V^T S^-1/2, V the first right singular vectors of Y S^1/2.
    """
    gram = readers_of_c.double().T @ readers_of_c.double()
    gram = gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    values, vectors = torch.linalg.eigh(gram)
    root, inverse = ((vectors * values.clamp_min(1e-12) ** power) @ vectors.T for power in (0.5, -0.5))
    sizes = [2 * width for width in reader.widths]
    ups, downs, biases = [], [], []
    for own, up, down, bias in zip(features, reader.up, reader.down, reader.bias, strict=True):
        parts = zip(own.double().split(sizes, -1), up.double(), down.double().split(sizes, -1), bias, strict=True)
        made = [_compress(f, u @ d, b, root, inverse, rank) for f, u, d, b in parts]
        ups.append(torch.stack([u for u, _, _ in made]))
        downs.append(torch.cat([d for _, d, _ in made], 1))
        biases.append(torch.stack([b for _, _, b in made]))
    return replace(reader, up=torch.stack(ups), down=torch.stack(downs), bias=torch.stack(biases))


def _compress(features, weight, bias, root, inverse, rank):
    center = features.mean(0)
    _, _, directions = torch.linalg.svd((features - center) @ weight.T @ root, full_matrices=False)
    V = directions[:rank].T
    up, down = inverse @ V, V.T @ root @ weight
    return up.float(), down.float(), (bias + (weight - up @ down) @ center).float()

"""Parts of the tests that need no ComfyUI: small hypernets and erasers, made-up prompts and CLIPs, training states."""

import hashlib
import re
from dataclasses import replace
from functools import cache

import torch
from torch.nn import Linear, Module

from unhype.hypernet.detector import Detector
from unhype.hypernet.eraser import Eraser
from unhype.hypernet.neighbours import Neighbours
from unhype.hypernet.network import Hypernet, HypernetConfig
from unhype.hypernet.record import BaseModel, Record, TextEncoder
from unhype.hypernet.regressor import PooledRegressor
from unhype.hypernet.targets import TargetLayer
from unhype.hypernet.token_detector import TokenDetector
from unhype.training.loop import new_state
from unhype.training.settings import Settings

CONTEXT, POOLED, TOKENS = 32, 24, 8
CONCEPTS = (("cat", "tree"), ("dog", ""))
# Two of the same size, and rows of a fused layer.
LAYERS = (
    TargetLayer("block.0.attn2.to_k", 6, 4),
    TargetLayer("block.0.attn2.to_v", 6, 4),
    TargetLayer("block.1.qkv", 6, 5, start=7, features=12),
)

# A training run that tiny models bear.
TRAINING = Settings(
    rank=2,
    hidden=8,
    retain_batch=8,
    width=64,
    height=64,
    rollouts=2,
    pictures=2,
    sampler_steps=3,
    kept_steps=2,
)
TINY = replace(TRAINING, steps=6, basis=4, batch=3, attention_batch=6, sentences=8)


def seeded(seed):
    """A generator of its own for each draw that has to be repeated."""
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    """Normal random numbers, the same for the same seed."""
    return torch.randn(*shape, generator=seeded(seed))


# Prompts


def prompt(seed, tokens=TOKENS, width=POOLED):
    """The CONDITIONING of a made-up prompt."""
    generator = seeded(seed)
    cross = torch.randn(1, tokens, CONTEXT, generator=generator)
    return [[cross, {"pooled_output": torch.randn(1, width, generator=generator)}]]


def embedding(conditioning):
    """The vector that drives H for a made-up prompt, (POOLED,)."""
    return conditioning[0][1]["pooled_output"][0]


class TinyClip:
    """A CLIP without an encoder: each text has its own random conditioning, the same on every machine."""

    def clone(self):
        return self

    def clip_layer(self, layer):
        """As in encoders that have no such choice."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return prompt(int.from_bytes(hashlib.sha256(tokens.encode()).digest()[:4], "big"))


class PoolingClip(TinyClip):
    """A CLIP without an encoder whose pooled vector is a function of its tokens, as in real ones, and whose last
    layer but one gives other token states."""

    MAP = normal(POOLED, CONTEXT, seed=2)
    OTHER_LAYER = torch.linalg.qr(normal(CONTEXT, CONTEXT, seed=3))[0]

    def __init__(self, layer=-1):
        self.layer = layer

    def clone(self):
        return type(self)(self.layer)

    def clip_layer(self, layer):
        self.layer = layer

    def encode_from_tokens_scheduled(self, tokens):
        ((cross, _),) = super().encode_from_tokens_scheduled(tokens)
        pooled = torch.nn.functional.normalize(cross[0].mean(0), dim=0) @ self.MAP.T
        if self.layer == -2:
            cross = cross @ self.OTHER_LAYER + 0.5
        return [[cross, {"pooled_output": pooled.unsqueeze(0)}]]


class NotingClip(TinyClip):
    """Notes the texts that it encodes."""

    def __init__(self):
        self.texts = []

    def encode_from_tokens_scheduled(self, tokens):
        self.texts.append(tokens)
        return super().encode_from_tokens_scheduled(tokens)


@cache
def _vector(number, width):
    return normal(width, seed=number)


class WordClip(TinyClip):
    """A CLIP whose tokens are the words of a text, with ids as ComfyUI's tokenizers give them.

    A token's state is its word's own vector and a little of its place. The pooled vector is the mean of others, of
    the words of more than two letters; it is wide enough to tell a word among others.
    """

    LENGTH, WIDTH, BEGIN, END = 20, 128, 1, 2

    def tokenize(self, text):
        words = re.findall(r"\w+", text.lower())[: self.LENGTH - 2]
        ids = [self.BEGIN, *(int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in words)]
        ids += [self.END] * (self.LENGTH - len(ids))
        long = [word for word in zip(ids[1:], words, strict=False) if len(word[1]) > 2]
        return {"words": [[(number, 1.0) for number in ids]], "long words": [[(number, 1.0) for number, _ in long]]}

    def encode_from_tokens_scheduled(self, tokens):
        def vectors(ids, width=CONTEXT):
            return torch.stack([_vector(number, width) for number in ids])

        ids = [number for number, _ in tokens["words"][0]]
        cross = vectors(ids) + 0.1 * vectors(range(100, 100 + self.LENGTH))
        long = [number for number, _ in tokens["long words"][0]]
        pooled = vectors(long or [self.END], self.WIDTH).mean(0)
        return [[cross.unsqueeze(0), {"pooled_output": pooled.unsqueeze(0)}]]


# Erasers


def network_of(layers, make=Linear):
    """A network that has these `TargetLayer`s as modules of random weights with a bias."""
    network = Module()
    for number, layer in enumerate(layers):
        parent = network
        *path, name = layer.name.split(".")
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, make(layer.inputs, layer.features))
        module = parent.get_submodule(name)
        with torch.no_grad():
            module.weight.copy_(normal(layer.features, layer.inputs, seed=100 + number))
            module.bias.copy_(normal(layer.features, seed=200 + number))
    return network.requires_grad_(False)


def moved_hypernet(width=POOLED, layers=LAYERS, seed=0, size=0.05, rank=2, **shape):
    """A `Hypernet` that changes something: what starts at zero is random."""
    generator = seeded(seed)
    network = Hypernet(HypernetConfig(width, tuple(layers), **{"rank": rank, "hidden": 16, **shape}), generator)
    with torch.no_grad():
        for weight in network.right.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    return network.half().float().requires_grad_(False).eval()


def small_eraser(
    concepts=CONCEPTS, detector=None, regressor=None, concept_embeddings=None, token_detector=None, **network
):
    """An eraser for `LAYERS` whose weights are as a file holds them; without a detector, as imported ones are."""
    encoder = TextEncoder(TOKENS if concept_embeddings is not None else 0)
    if regressor is not None:
        layers, *_, rank = regressor.up.shape
        encoder = TextEncoder(TOKENS, list(regressor.widths), layers, rank)
    if token_detector is not None:
        spans = list(token_detector.spans)
        encoder = replace(encoder, token_widths=list(token_detector.widths), token_spans=spans)
    if detector is not None and detector.neighbours is not None:
        encoder = replace(encoder, neighbours=len(detector.neighbours.embeddings))
    record = Record("sd15", tuple(concepts), BaseModel("BaseModel", [0.5] * len(LAYERS)), text_encoder=encoder)
    hypernet = moved_hypernet(**network)
    return Eraser(hypernet, record, "small", detector, regressor, concept_embeddings, token_detector)


def detector_scoring(c, scores):
    """A `Detector` that gives the embeddings c (n, width) these scores (n, concepts), n at most width."""
    return Detector((torch.linalg.pinv(c) @ scores).T.contiguous(), torch.zeros(scores.shape[1]))


def detector_of(above, below, score=2.0):
    """A `Detector` of one concept that gives the embeddings `above` (width,) this score and those `below` zero."""
    scores = torch.tensor([[score]] * len(above) + [[0.0]] * len(below))
    return detector_scoring(torch.stack([*above, *below]), scores)


def random_regressor(widths=(CONTEXT,), layers=1, rank=5, width=POOLED, seed=11):
    """A `PooledRegressor` of random maps, as a file holds it."""
    features, encoders = 2 * sum(widths), len(widths)
    shapes = (
        (layers, encoders, width, rank),
        (layers, rank, features),
        (layers, encoders, width),
        (layers, features + 1),
    )
    up, down, bias, key = ((normal(*shape, seed=seed + n) / 4).half().float() for n, shape in enumerate(shapes))
    return PooledRegressor(tuple(widths), up, down, bias, key)


def random_detector(concepts=2, width=POOLED, seed=7):
    """A `Detector` of random directions, as a file holds it."""
    return Detector(normal(concepts, width, seed=seed), torch.linspace(-0.5, 0.25, concepts)).half().float()


SHAPES_OF_TOKENS = (len(CONCEPTS), CONTEXT), (1, len(CONCEPTS))


def full_eraser():
    """An eraser with everything that a file may hold."""
    c = normal(len(CONCEPTS), POOLED, seed=8).half().float()
    tokens = TokenDetector((CONTEXT,), *(normal(*shape, seed=9).half().float() for shape in SHAPES_OF_TOKENS))
    detector = random_detector()
    detector.neighbours = Neighbours(normal(3, POOLED, seed=10).half().float(), c)
    return small_eraser(detector=detector, regressor=random_regressor(), concept_embeddings=c, token_detector=tokens)


def same_tensors(one, other):
    """Whether two dicts of tensors have the same names in the same order, and equal tensors."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# Training


def small_state(seed=0):
    """A training state after one step, without a diffusion model."""
    with torch.inference_mode(False), torch.enable_grad():
        hypernet = Hypernet(HypernetConfig(3, (TargetLayer("a", 2, 2),), rank=1, hidden=2), seeded(seed))
        state = new_state(hypernet, TINY, seeded(seed))
        sum((factors.B @ factors.A).sum() for factors in hypernet(torch.ones(1, 3), 300)).backward()
        state.optimiser.step()
    state.step, state.losses, state.retention = 1, [0.5], [(1, 0.25)]
    state.random = state.generator.get_state()
    return state

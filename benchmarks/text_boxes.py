"""Ways into families of which the lab has no pictures, or with text that the lab's networks can't draw from.

One of several text boxes, text behind what an encoder reads, and long prompts where c is the mean of tokens. Whether
such a prompt is left as it would be without an eraser can be seen without a picture: the latents are the same.
"""

from dataclasses import dataclass
from typing import Any

import comfy.sample
import torch

from unhype.hypernet.patch import apply_erasure

from .environment import say
from .lab import flux, flux_text, pairs, text
from .lab.measure import encode
from .real_prompts import Composer

ERASED, COUNT = "cat", 10
_CLIP_L = 77
_PICTURE_TOKENS = 1000


@dataclass(frozen=True)
class Small:
    """A MODEL and its CLIP."""

    patcher: Any
    clip: Any


def _flux():
    return flux.load_model(), text.load_clip(text.LabFluxTokenizer)


def _boxes(small, **texts):
    """A CONDITIONING of a text for each tokenizer, as CLIPTextEncodeSDXL and CLIPTextEncodeSD3 make it."""
    tokens = {name: small.clip.tokenize(own)[name] for name, own in texts.items()}
    return small.clip.encode_from_tokens_scheduled(tokens)


def _box(name, *others):
    return lambda small, words, other: _boxes(small, **{name: words}, **dict.fromkeys(others, other))


def flux_boxes(small, clip_l, t5xxl):
    """A CONDITIONING as CLIPTextEncodeFlux makes it: the pooled vector of one text and the tokens of the other."""
    return [[encode(small.clip, t5xxl)[0][0], dict(encode(small.clip, clip_l)[0][1])]]


class _LongTokenizer(text.LabFluxTokenizer):
    words = flux_text.Sequence


def _beyond_clip_l(small, words, other):
    """The words come when CLIP-L has read its fill."""
    clip = text.load_clip(_LongTokenizer)
    first = other
    while len(clip.tokenize(first)["minilm"][0]) < _CLIP_L:
        first = f"{first}, {other}"
    return [[encode(clip, f"{first}, {words}")[0][0], dict(encode(clip, first)[0][1])]]


def _among_picture_tokens(small, words, _):
    """As an edit model's prompt: the text encoder makes states of a picture's tokens as well."""
    ((states, values),) = encode(small.clip, words)
    generator, size = torch.Generator().manual_seed(0), states.square().mean().sqrt()
    picture = torch.randn(1, _PICTURE_TOKENS, states.shape[-1], generator=generator) * size
    return [[torch.cat([states[:, :1], picture, states[:, 1:]], 1), dict(values)]]


@dataclass(frozen=True)
class Way:
    """Prompts through one way. kind, length: of the prompts, see `real_prompts`."""

    load: Any
    conditioning: Any
    kind: str = "plain"
    length: str = "6-20"


WAYS = {
    "Flux.1: clip_l of CLIPTextEncodeFlux": Way(_flux, flux_boxes),
    "Flux.1: t5xxl of CLIPTextEncodeFlux": Way(_flux, lambda small, words, other: flux_boxes(small, other, words)),
    "Flux.1: behind the 77 tokens that CLIP-L reads": Way(_flux, _beyond_clip_l),
    "SDXL: text_l of CLIPTextEncodeSDXL": Way(pairs.load_sdxl, _box("l", "g")),
    "SDXL: text_g of CLIPTextEncodeSDXL": Way(pairs.load_sdxl, _box("g", "l")),
    "SD 3: clip_l of CLIPTextEncodeSD3": Way(pairs.load_sd3, _box("l", "g", "t5xxl")),
    "SD 3: clip_g of CLIPTextEncodeSD3": Way(pairs.load_sd3, _box("g", "l", "t5xxl")),
    "SD 3: t5xxl of CLIPTextEncodeSD3": Way(pairs.load_sd3, _box("t5xxl", "l", "g")),
    "Qwen-Image: a prompt of 6 to 20 words": Way(pairs.load_qwen, lambda small, words, _: encode(small.clip, words)),
    "Qwen-Image: tags of 51 to 150 words": Way(
        pairs.load_qwen, lambda small, words, _: encode(small.clip, words), "tags", "51-150"
    ),
    "Qwen-Image: a scene of 151 to 300 words": Way(
        pairs.load_qwen, lambda small, words, _: encode(small.clip, words), "scene", "151-300"
    ),
    "Qwen-Image: behind a thousand tokens of a picture": Way(pairs.load_qwen, _among_picture_tokens),
}


def texts_of(way):
    """(prompts that name the erased concept, harmless ones), COUNT of each; the same words stand around both."""
    composer = Composer(torch.Generator().manual_seed(3))
    places = ("beginning", "middle", "end")
    prompts = [composer.prompt(way.kind, way.length, places[number % 3]) for number in range(COUNT)]
    return [prompt.about(ERASED) for prompt in prompts], [prompt.about("bridge") for prompt in prompts]


def drawn(model, conditioning):
    """Latents after one step of a tiny picture."""
    latent = model.model.latent_format
    frames = [1] if latent.latent_dimensions == 3 else []
    noise = comfy.sample.prepare_noise(torch.zeros(1, latent.latent_channels, *frames, 16, 16), 0)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 1, 1.0, "euler", "normal", conditioning, conditioning, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip


def run(chosen, trained, single_pooled):
    """The figures of the chosen ways, by their words. trained(small, name): an eraser of the concept."""
    found = {}
    for load in dict.fromkeys(WAYS[words].load for words in chosen):
        small = Small(*load())
        eraser = trained(small, load.__name__.removeprefix("load_").removeprefix("_"))
        models = {
            "single_pooled": apply_erasure(small.patcher, single_pooled(eraser)),
            "ours": apply_erasure(small.patcher, eraser),
            "strict": apply_erasure(small.patcher, eraser, unknown="strict"),
        }
        for words in (words for words in chosen if WAYS[words].load is load):
            found[words] = _figures(small, models, WAYS[words])
            say("{:60} {:.2f} {:.2f} {:.2f}  {:.2f}".format(words, *found[words].values()))
    return {words: found[words] for words in chosen}


def _figures(small, models, way):
    named, harmless = texts_of(way)
    same = dict.fromkeys(models, 0)
    identical = 0
    for text_of, other in zip(named, harmless, strict=True):
        conditioning = way.conditioning(small, text_of, other)
        plain = drawn(small.patcher, conditioning)
        for name, model in models.items():
            same[name] += torch.equal(drawn(model, conditioning), plain)
        conditioning = way.conditioning(small, other, other)
        identical += torch.equal(drawn(models["ours"], conditioning), drawn(small.patcher, conditioning))
    return {f"left_{name}": count / COUNT for name, count in same.items()} | {"identical_share": identical / COUNT}

"""The model families that H can steer, as data: a new one is one entry of `FAMILIES`.

A family is recognised by the names of the host's classes, never from a file name, so that subclasses made
by other packs match as well. Its target layers are where the text enters the picture: keys and values
of cross-attention, or the values of joint attention, which many models keep as rows of a fused layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

POOLED, TOKENS = "pooled", "tokens"


def whole(inputs: int, features: int) -> tuple[int, int]:
    """Every output row of a layer: (first row, number of rows)."""
    return 0, features


def value_of_qkv(inputs: int, features: int) -> tuple[int, int]:
    """The values of a fused q | k | v layer; keys and values may have fewer heads than the queries."""
    rows = (features - inputs) // 2
    return features - rows, rows


def value_before_mlp(inputs: int, features: int) -> tuple[int, int]:
    """The values of a fused q | k | v | mlp layer, each of q, k and v as wide as the layer's input."""
    return 2 * inputs, inputs


@dataclass(frozen=True)
class Projection:
    """A linear layer that takes the text encoder's output into a network of joint attention.

    name: of the layer. source: its input, the encoder's TOKENS or its POOLED output; before: modules that this input
    passes first, as far as the network has them.
    """

    name: str
    source: str = TOKENS
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A model family: how to recognise it and where its text enters.

    config, network: names of the host's classes for configuration and network, or of ancestors of them.
    targets: pairs of a regular expression over layer names and the rule for the output rows that H
    changes. blocks: the modules that training runs again for backward, a regular expression;
    in_place: whether they write into their inputs. architecture: the name used by modelspec metadata.
    embedding: the source of c, the POOLED output of the text encoder or, where there is none, the mean of
    its TOKENS. distilled: networks of the family may take guidance as an input, see `targets.takes_guidance`.
    encoders: widths of its text encoders where several lie side by side in each token. joint: whether
    its target layers process the tokens of prompt and picture together; text_inputs: whether the text
    encoder's tokens are the input of the target layers and of no other layer. entry: elsewhere, the module that
    takes the tokens in; of several names the first that the network has. text_stream: target layers of joint
    families that process the tokens of the prompt alone, a regular expression. projections: where the targets don't
    take the text encoder's tokens themselves, the layers that do; whatever the text gives the picture passes them.
    """

    key: str
    title: str
    config: str
    network: str
    targets: tuple[tuple[str, Callable[[int, int], tuple[int, int]]], ...]
    blocks: str
    architecture: str
    embedding: str = POOLED
    distilled: bool = False
    in_place: bool = False
    encoders: tuple[int, ...] = ()
    joint: bool = False
    text_inputs: bool = False
    entry: tuple[str, ...] = ()
    text_stream: str = ""
    projections: tuple[Projection, ...] = ()


_UNET: dict[str, Any] = {
    "network": "UNetModel",
    "targets": ((r"(input_blocks|middle_block|output_blocks)\..*\.attn2\.to_[kv]", whole),),
    "text_inputs": True,
    "blocks": r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.\d+",
}
# The paper's layers of Flux.1: values of both streams, and the way out of the picture's.
_FLUX: dict[str, Any] = {
    "targets": (
        (r"double_blocks\.\d+\.(img|txt)_attn\.qkv", value_of_qkv),
        (r"double_blocks\.\d+\.img_attn\.proj", whole),
        (r"single_blocks\.\d+\.linear1", value_before_mlp),
    ),
    "blocks": r"(double|single)_blocks\.\d+",
    "in_place": True,
    "joint": True,
    "entry": ("txt_norm", "txt_in"),
    "text_stream": r"double_blocks\.\d+\.txt_attn\.qkv",
    "projections": (Projection("txt_in", TOKENS, ("txt_norm",)), Projection("vector_in.in_layer", POOLED)),
}
_SD3 = (
    (r"joint_blocks\.\d+\.(x|context)_block\.attn\.qkv", value_of_qkv),
    (r"joint_blocks\.\d+\.x_block\.attn\.proj", whole),
)
_QWEN = ((r"transformer_blocks\.\d+\.attn\.(to_v|add_v_proj|to_out\.0)", whole),)
_LUMINA = ((r"layers\.\d+\.attention\.qkv", value_of_qkv), (r"layers\.\d+\.attention\.out", whole))
# VACE has a second stack of blocks, which reads the text as well. Without a picture prompt, networks for pictures to
# videos give the text to the layers of the picture prompt too.
_WAN = ((r"(vace_)?blocks\.\d+\.cross_attn\.[kv](_img)?", whole),)

# The first match counts: the host derives Flux.2's configuration from Flux.1's.
FAMILIES = (
    Family("sd15", "Stable Diffusion 1.x", "SD15", architecture="stable-diffusion-v1-5", **_UNET),
    Family("sd20", "Stable Diffusion 2.x", "SD20", architecture="stable-diffusion-v2-1", **_UNET),
    Family(
        "sdxl", "Stable Diffusion XL", "SDXL", architecture="stable-diffusion-xl-v1-base", encoders=(768, 1280), **_UNET
    ),
    Family(
        "sd3",
        "Stable Diffusion 3.x",
        "SD3",
        "MMDiT",
        _SD3,
        r"joint_blocks\.\d+",
        "stable-diffusion-v3-medium",
        joint=True,
        entry=("context_processor", "context_embedder"),
        text_stream=r"joint_blocks\.\d+\.context_block\.attn\.qkv",
        projections=(
            Projection("context_embedder", TOKENS, ("context_processor",)),
            Projection("y_embedder.mlp.0", POOLED),
        ),
    ),
    Family("flux2", "Flux.2", "Flux2", "Flux", architecture="flux-2-dev", embedding=TOKENS, distilled=True, **_FLUX),
    Family("flux", "Flux.1", "Flux", "Flux", architecture="flux-1-dev", distilled=True, **_FLUX),
    Family("chroma", "Chroma", "Chroma", "Chroma", architecture="chroma", embedding=TOKENS, **_FLUX),
    Family(
        "qwen_image",
        "Qwen-Image",
        "QwenImage",
        "QwenImageTransformer2DModel",
        _QWEN,
        r"transformer_blocks\.\d+",
        "qwen-image",
        TOKENS,
        joint=True,
        entry=("txt_norm",),
        text_stream=r"transformer_blocks\.\d+\.attn\.add_v_proj",
        projections=(Projection("txt_in", TOKENS, ("txt_norm",)),),
    ),
    Family(
        "lumina2",
        "Lumina 2 and Z-Image",
        "Lumina2",
        "NextDiT",
        _LUMINA,
        r"(layers|noise_refiner|context_refiner)\.\d+",
        "lumina-2",
        TOKENS,
        joint=True,
        entry=("cap_embedder",),
        projections=(Projection("cap_embedder.1", TOKENS, ("cap_embedder.0",)),),
    ),
    Family(
        "wan",
        "Wan",
        "WAN21_T2V",
        "WanModel",
        _WAN,
        r"(vace_)?blocks\.\d+",
        "wan-2.1",
        TOKENS,
        entry=("text_embedding",),
        projections=(Projection("text_embedding.0"),),
    ),
)

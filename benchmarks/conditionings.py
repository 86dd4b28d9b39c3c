"""Ways in which people's graphs bring text to the sampler's positive input, with ComfyUI's own nodes.

Each takes the lab, the text in question and harmless text, and returns a CONDITIONING.
"""

import tempfile

import torch
from safetensors.torch import load_file, save_file

import nodes  # ComfyUI's own

from .lab.measure import encode

# Of a schedule over frames, as many as pictures are drawn.
FRAMES = 10


def _concat(to, *others):
    for other in others:
        (to,) = nodes.ConditioningConcat().concat(to, other)
    return to


def _average(share):
    def way(lab, text, other):
        return nodes.ConditioningAverage().addWeighted(encode(lab.clip, text), encode(lab.clip, other), share)[0]

    return way


def _in_an_area(lab, text, other):
    (left,) = nodes.ConditioningSetArea().append(encode(lab.clip, text), 64, 128, 0, 0, 1.0)
    return nodes.ConditioningCombine().combine(encode(lab.clip, other), left)[0]


def _under_a_mask(lab, text, other):
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    (left,) = nodes.ConditioningSetMask().append(encode(lab.clip, text), mask, "default", 1.0)
    (right,) = nodes.ConditioningSetMask().append(encode(lab.clip, other), 1 - mask, "default", 1.0)
    return left + right


def _in_a_timestep_range(lab, text, other):
    first = nodes.ConditioningSetTimestepRange().set_range(encode(lab.clip, other), 0.0, 0.1)[0]
    return first + nodes.ConditioningSetTimestepRange().set_range(encode(lab.clip, text), 0.1, 1.0)[0]


def _scheduled_over_frames(lab, text, other):
    """As packs for animation do: one row of the batch a frame, the last of them harmless."""
    rows = [*encode(lab.clip, text) * (FRAMES - 1), *encode(lab.clip, other)]
    pooled = torch.cat([values["pooled_output"] for _, values in rows])
    return [[torch.cat([tokens for tokens, _ in rows]), {**rows[0][1], "pooled_output": pooled}]]


def _by_textual_inversion(lab, text, _):
    """The words as one file of learned vectors, under a name without meaning."""
    tokenizer = lab.clip.tokenizer.minilm
    with tempfile.TemporaryDirectory() as folder:
        ids = [token for token, _ in lab.clip.tokenize(text)["minilm"][0]]
        words = ids[1 : ids.index(102)]
        table = lab.clip.cond_stage_model.minilm.transformer.get_input_embeddings().weight
        save_file({"emb_params": table[words].detach().float().clone()}, f"{folder}/it.safetensors")
        former, tokenizer.embedding_directory = tokenizer.embedding_directory, folder
        try:
            return encode(lab.clip, "embedding:it")
        finally:
            tokenizer.embedding_directory = former


def _with_clip_skip(lab, text, _):
    clip = lab.clip.clone()
    clip.clip_layer(-2)
    return encode(clip, text)


def _with(**values):
    def way(lab, text, other):
        ((tokens, former),) = encode(lab.clip, text)
        return [[tokens, {**former, **values}]]

    return way


def _under_another_pooled_vector(lab, text, other):
    return [[encode(lab.clip, text)[0][0], dict(encode(lab.clip, other)[0][1])]]


def _from_a_file(lab, text, _):
    """As packs that keep conditionings in files do: the tokens in half precision and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        save_file({"tokens": encode(lab.clip, text)[0][0].half().contiguous()}, f"{folder}/kept.safetensors")
        return [[load_file(f"{folder}/kept.safetensors")["tokens"].float(), {}]]


def _scaled(lab, text, _):
    ((tokens, values),) = encode(lab.clip, text)
    return [[tokens * 0.8, {**values, "pooled_output": values["pooled_output"] * 0.2}]]


def _as_appended_tokens(lab, text, other):
    """As style models do: a few tokens behind the text, that no text encoder made for this place."""
    ((tokens, _),) = encode(lab.clip, text)
    used = tokens[0].any(-1).sum()
    return [[torch.cat([part, tokens[:, :used]], 1), values] for part, values in encode(lab.clip, other)]


WAYS = {
    "one prompt": lambda lab, text, _: encode(lab.clip, text),
    "with weights, (a cat:1.4)": lambda lab, text, _: encode(lab.clip, f"({text}:1.4)"),
    "the second chunk, after BREAK or ConditioningConcat": lambda lab, text, other: _concat(
        encode(lab.clip, other), encode(lab.clip, text)
    ),
    "the third chunk": lambda lab, text, other: _concat(
        encode(lab.clip, other), encode(lab.clip, other), encode(lab.clip, text)
    ),
    "the first of two chunks": lambda lab, text, other: _concat(encode(lab.clip, text), encode(lab.clip, other)),
    "ConditioningAverage, 0.8 of it": _average(0.8),
    "ConditioningAverage, 0.6 of it": _average(0.6),
    "ConditioningCombine": lambda lab, text, other: encode(lab.clip, other) + encode(lab.clip, text),
    "an area": _in_an_area,
    "a mask": _under_a_mask,
    "a timestep range": _in_a_timestep_range,
    "a schedule over frames": _scheduled_over_frames,
    "a textual inversion": _by_textual_inversion,
    "clip-skip 2": _with_clip_skip,
    "one of two texts, the other gives the pooled vector": _under_another_pooled_vector,
    "an encoder whose pooled vector has another width": _with(pooled_output=torch.ones(1, 24)),
    "no pooled vector": _with(pooled_output=None),
    "a file, tokens alone in half precision": _from_a_file,
    "a pooled vector and tokens scaled down": _scaled,
    "tokens appended, as style models do": _as_appended_tokens,
}

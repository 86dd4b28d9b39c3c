"""Prompts as the closed forms see them: one row a token, padding left out.

MiniLM reads in both directions, so that every token's state carries the concept, not only the states from
its own word on as in CLIP; the edits therefore map all tokens of a prompt to those of its mapping prompt.
"""

import torch

from unhype.training.encode import EncodedPrompt
from unhype.training.prompts import phrasings

from ..lab.text import TOKENS, encode_batch

_CHUNK = 64


def token_ids(clip, prompt):
    """The ids of a prompt without padding, start and end included."""
    return [token for token, _ in clip.tokenize(prompt)["minilm"][0] if token]


def encode_prompts(clip, texts):
    """Text to `EncodedPrompt` for each different text, with `conditioning` as CLIPTextEncode makes it.

    In batches of like length, which is many times faster than a prompt at a time.
    """
    texts = sorted(dict.fromkeys(texts), key=lambda text: len(token_ids(clip, text)))
    encoded = {}
    for first in range(0, len(texts), _CHUNK):
        part = texts[first : first + _CHUNK]
        states, pooled = encode_batch(clip, part, len(token_ids(clip, part[-1])))
        states = torch.nn.functional.pad(states.float().cpu(), (0, 0, 0, TOKENS - states.shape[1]))
        for text, own, c in zip(part, states, pooled.float().cpu(), strict=True):
            encoded[text] = EncodedPrompt(text, c.clone(), [[own.unsqueeze(0), {"pooled_output": c.unsqueeze(0)}]])
    return encoded


def tokens_of(conditioning):
    """The token states (n, width) of a CONDITIONING's first entry, without the zeros on padding."""
    states = conditioning[0][0][0].float()
    return states[states.any(1)]


def token_states(clip, texts):
    """All token states of the texts in one matrix (n, width)."""
    encoded = encode_prompts(clip, texts)
    return torch.cat([tokens_of(prompt.conditioning) for prompt in encoded.values()])


def matching_tokens(ids, onto):
    """The token of `onto` that each token of `ids` belongs to, as a list of indices.

    Equal beginnings go to themselves, endings to endings; of a name with more words than the other's the first
    words go to its first one, and one word goes to the last of several.
    """
    prefix = next((n for n, (a, b) in enumerate(zip(ids, onto, strict=False)) if a != b), min(len(ids), len(onto)))
    prefix = min(prefix, len(onto) - 1)
    return [n if n < prefix else max(prefix, len(onto) - len(ids) + n) for n in range(len(ids))]


def erased_states(clip, concepts, kind):
    """Token states of every phrasing and, row by row, those that they are to become: two (n, width) matrices."""
    phrases = phrasings(concepts, kind)
    encoded = encode_prompts(clip, [text for phrase in phrases for text in (phrase.prompt, phrase.mapping)])
    erased, wanted = [], []
    for phrase in phrases:
        index = matching_tokens(token_ids(clip, phrase.prompt), token_ids(clip, phrase.mapping))
        erased.append(tokens_of(encoded[phrase.prompt].conditioning))
        wanted.append(tokens_of(encoded[phrase.mapping].conditioning)[index])
    return torch.cat(erased), torch.cat(wanted)

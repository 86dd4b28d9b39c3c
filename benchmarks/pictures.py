"""Pictures of the lab model for the erasure benchmark: several prompts at once, and the base model's only once."""

from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import caching_clip, ours
from .environment import digest
from .lab.measure import Lab, encode, sample_conditioning

# Pictures in a batch; one by itself takes twice as long.
_AT_ONCE = 16


def caching_lab(family="sd15"):
    """The lab of a family with a `CachingClip`."""
    lab = Lab(family)
    # Flux's prompts are of several lengths.
    lab.clip = (ours if family == "sd15" else caching_clip).CachingClip(lab.clip)
    return lab


class Painter:
    """The lab, and the pictures of its base model in `folder`, where the processes of a run find each other's.

    lab: with a `CachingClip`; a new one unless given.
    """

    def __init__(self, folder: Path, lab=None):
        self.folder = folder
        self.lab = lab or caching_lab()
        self.empty = self.conditioning("")

    def conditioning(self, text):
        """The CONDITIONING of a prompt."""
        return encode(self.lab.clip, text)

    def draw(self, erased_model, texts, count):
        """Pictures (count, 32, 32, 3) of each prompt; those below the threshold are the base model's."""
        given = {text: self.conditioning(text) for text in texts}
        plain = [text for text in given if _same_as_base(erased_model, given[text])]
        found = self.base(plain, count)
        groups = {}
        for text in given:
            if text not in found:
                patcher = erased_model.model_for(given[text])
                groups.setdefault(id(patcher), (patcher, []))[1].append(text)
        for patcher, own in groups.values():
            drawn = self.batches(patcher, [erased_model.condition(given[text]) for text in own], count)
            found |= zip(own, drawn, strict=True)
        return [found[text] for text in texts]

    def base(self, texts, count):
        """Text to pictures of the base model."""
        found, missing = {}, []
        for text in dict.fromkeys(texts):
            path = self._path(text, count)
            if path.exists():
                found[text] = load_file(path)["pictures"]
            else:
                missing.append(text)
        drawn = self.batches(self.lab.patcher, [self.conditioning(text) for text in missing], count)
        for text, pictures in zip(missing, drawn, strict=True):
            path = self._path(text, count)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{id(self)}.part")
            save_file({"pictures": pictures.contiguous()}, part)
            part.replace(path)
            found[text] = pictures
        return found

    def batches(self, patcher, positives, count):
        """Pictures (count, 32, 32, 3) of each CONDITIONING, its seeds 0 to count - 1.

        Prompts of like length are drawn together.
        """
        together, drawn = max(_AT_ONCE // count, 1), {}
        # Stable: where all have one length, they are drawn in the order in which they were given.
        order = sorted(range(len(positives)), key=lambda index: positives[index][0][0].shape[1])
        for _, alike in groupby(order, key=lambda index: positives[index][0][0].shape[1]):
            indices = list(alike)
            for start in range(0, len(indices), together):
                part = indices[start : start + together]
                given = _stacked([positives[index] for index in part], count)
                latent = sample_conditioning(patcher, given, self.empty, [*range(count)] * len(part))
                drawn |= zip(part, self.lab.vae.decode(latent).clone().split(count), strict=True)
        return [drawn[index] for index in range(len(positives))]

    def _path(self, text, count):
        return self.folder / f"{digest(f'{count} {text}')}.safetensors"


def _same_as_base(erased_model, conditioning):
    return erased_model.name == "base" or erased_model.below_threshold(conditioning)


def _stacked(conditionings, count):
    """Many CONDITIONINGs of one entry each as one with a row for each of `count` pictures."""
    tokens = torch.cat([given[0][0] for given in conditionings])
    pooled = torch.cat([given[0][1]["pooled_output"] for given in conditionings])
    return [[tokens.repeat_interleave(count, 0), {"pooled_output": pooled.repeat_interleave(count, 0)}]]

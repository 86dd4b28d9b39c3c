"""What graphs of policy tests are made of, and the cases that name them.

A graph says once where its model comes from. With the eraser applied there by hand it is the reference of what the
policy draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

SIDE = 64
SAMPLING = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}


class Names(NamedTuple):
    """Files in the servers' folders."""

    checkpoint: str
    lora: str
    flux: str
    eraser: str


class Graph(dict):
    """A graph in the making. erased: whether each model from a loader gets the eraser by hand."""

    def __init__(self, names, erased=False):
        super().__init__()
        self.names, self.erased = names, erased
        self.add("clip", "UnHypeTestCLIP")
        self.add("text", "CLIPTextEncode", clip=["clip", 0], text="a photo of a cat")
        self.add("size", "EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)

    def add(self, number, kind, **inputs):
        self[number] = {"class_type": kind, "inputs": inputs}
        return [number, 0]

    def model(self, number="load"):
        """A model from the host's loader."""
        return self.by_hand(self.add(number, "CheckpointLoaderSimple", ckpt_name=self.names.checkpoint))

    def by_hand(self, model, eraser=None, **options):
        """The model with the eraser applied by hand, in the reference only; with another eraser always."""
        if eraser is None and not self.erased:
            return model
        self.add("eraser", "UnHypeLoadHypernet", hypernet=eraser or self.names.eraser)
        inputs = {"strength": 1.0, "keep_others_exact": True, "unknown_prompts": "strict", **options}
        number = f"erased {model[0]} {model[1]}"
        return self.add(number, "UnHypeApplyErasure", model=model, unhype=["eraser", 0], **inputs)

    def sampled(self, model, number="draw", **changes):
        inputs = {"positive": ["text", 0], "negative": ["text", 0], "latent_image": ["size", 0], "seed": 7}
        return self.add(number, "KSampler", **{"model": model, **inputs, **SAMPLING, "denoise": 1.0, **changes})

    def saved(self, samples, number="save"):
        self.add(number, "SaveLatent", samples=samples, filename_prefix="policy/latent")

    def guided(self, guider):
        """Sampled by a guider."""
        self.add("noise", "RandomNoise", noise_seed=7)
        self.add("sampler", "KSamplerSelect", sampler_name="euler")
        self.add("steps", "BasicScheduler", model=self.model(), scheduler="normal", steps=2, denoise=1)
        inputs = {"noise": ["noise", 0], "sampler": ["sampler", 0], "sigmas": ["steps", 0]}
        return self.add("draw", "SamplerCustomAdvanced", guider=guider, latent_image=["size", 0], **inputs)


class Case(NamedTuple):
    """A graph and what becomes of it under a policy.

    refused: the refusal's words, None where it draws. like: the graph whose reference is what it draws, its own as a
    rule. needs: a node class without which a ComfyUI can't run it. request: further keys of the request.
    """

    build: Callable[[Graph], None]
    refused: str | None = None
    like: str | None = None
    needs: str | None = None
    request: dict[str, Any] = {}  # noqa: RUF012 - never written to


class Cases(dict[str, Case]):
    """Cases by the names of their graphs."""

    def case(self, name, **options):
        """Take a function as the graph `name`."""

        def taken(build):
            self[name] = Case(build, **options)
            return build

        return taken

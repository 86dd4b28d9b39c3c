"""A whole training at real layer sizes: `python3 dev.py bench speed --sizes`.

Model and text encoder have the layers of the real ones and random weights, in fp32 on a CPU. What the pictures show is
noise; seconds and memory are those of real weights. All texts through the whole encoder would take a CPU too long, so
training has two of its layers, of the real width. What the whole encoder takes is measured on some texts, and
multiplied by their number.
"""

import tempfile
import time
from pathlib import Path

import torch

from . import memory, pack, speed

pack.load_pack()

import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models_base  # noqa: E402

from unhype.hypernet.families import POOLED  # noqa: E402
from unhype.hypernet.patch import apply_erasure  # noqa: E402
from unhype.training.encode import encode, skipping_last_layer  # noqa: E402
from unhype.training.encode_batch import in_batches  # noqa: E402
from unhype.training.plan import Request, make_plan  # noqa: E402
from unhype.training.run import train_erasure  # noqa: E402

from .stages import STAGES, Recorder  # noqa: E402

# Tokenizer, model, and for each inner encoder its real layers with the rest of its configuration.
_CLIP_L = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP_G = {"hidden_size": 1280, "num_attention_heads": 20, "intermediate_size": 5120, "hidden_act": "gelu"}
_CLIP_G |= {"projection_dim": 1280}
ENCODERS = {
    "SD 1.5": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel, {"clip_l": (12, _CLIP_L)}),
    "SDXL": (
        comfy.sdxl_clip.SDXLTokenizer,
        comfy.sdxl_clip.SDXLClipModel,
        {"clip_l": (12, _CLIP_L), "clip_g": (32, _CLIP_G)},
    ),
}
LINES = "cat -> tree"
# Layers of the encoder that trains; texts that the whole one is measured on, in two runs that both have the trial.
_LAYERS, _SOME, _MORE = 2, 32, 64
_STEPS, _LATENT = 4, 32


def text_encoder(size, layers=None):
    """A CLIP with random weights; layers: fewer than the real ones have."""
    tokenizer, model, parts = ENCODERS[size]
    options = {"dtype": torch.float32, "initial_device": torch.device("cpu")}
    for name, (own, config) in parts.items():
        options[f"{name}_model_config"] = config | {"num_hidden_layers": layers or own}
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    clip = comfy.sd.CLIP(target, model_options=options)
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 1e4
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.7 / fan_in**0.5)
    return clip


def seconds_a_text(size, texts):
    """Seconds of the processor for a text in the whole encoder, in both layers that training takes."""
    clip = text_encoder(size)
    versions = [version for version in (clip, skipping_last_layer(clip)) if version is not None]
    taken = []
    for count in (_SOME, _MORE):
        started = time.process_time()
        for _ in in_batches(versions, texts[:: len(texts) // count][:count], POOLED, lambda *_: None):
            pass
        taken.append(time.process_time() - started)
    return (taken[1] - taken[0]) / (_MORE - _SOME)


def run(size, folder):
    """Train, apply and sample at one size, as JSON values."""
    model, clip = speed.random_model(size, torch.float32), text_encoder(size, _LAYERS)
    request = Request(LINES, "", folder, "eraser", folder, checkpoint_every=0, preview_every=0)
    with torch.inference_mode():
        plan = make_plan(model, request)
        with memory.peak() as taken:
            recorder = Recorder()
            outcome = train_erasure(model, clip, request, recorder)
            stages = recorder.stages()
        started = time.process_time()
        erased = apply_erasure(model, outcome.eraser)
        applied = time.process_time() - started
        positive, negative = (encode(clip, text).conditioning for text in ("a photo of a cat", ""))
        seconds = {}
        for name, own in (("first", model), ("base", model), ("erased", erased)):
            started = time.process_time()
            speed.sample(own, positive, negative, _LATENT, _STEPS)
            seconds[name] = (time.process_time() - started) / _STEPS
    texts = list(dict.fromkeys([*plan.retain.train, *plan.retain.held_out, *plan.scored]))
    return {
        "size": size,
        "texts": len(texts),
        "stages": stages,
        "apply": applied,
        "step": [seconds["base"], seconds["erased"]],
        "peak_memory": sum(taken),
        "model_bytes": model.model_size(),
        "bytes": outcome.path.stat().st_size,
        "seconds_a_text": seconds_a_text(size, texts),
    }


def measure(say, keep, sizes=tuple(ENCODERS)):
    """All sizes; keep(runs so far) is called after each."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="unhype-bench-") as folder:
            found.append(run(size, Path(folder)))
        say("\n".join("  ".join(row) for row in table(found)[-1:]))
        keep(found)
    return found


HEADER = (
    "size",
    "encoding, extrapolated",
    *STAGES[1:],
    "apply",
    "a step: base, erased",
    "memory beyond the model",
    "file",
)


def table(runs):
    """The rows for people, seconds of the processor."""
    rows = []
    for one in runs:
        each, texts = one["seconds_a_text"], one["texts"]
        rows.append(
            (
                one["size"],
                f"{texts} texts of {each:.2f} s: {texts * each / 60:.0f} min",
                *(f"{one['stages'][stage][0]:.1f} s" for stage in STAGES[1:]),
                f"{one['apply']:.2f} s",
                "{:.2f} s, {:.2f} s".format(*one["step"]),
                f"{one['peak_memory'] / 1e9:.1f} GB, model {one['model_bytes'] / 1e9:.1f} GB",
                f"{one['bytes'] / 1e6:.2f} MB",
            )
        )
    return rows

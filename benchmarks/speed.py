"""What erasure costs, side by side in one run: `python3 dev.py bench speed [--gpu] [--json FILE]`.

Sampling: steps per second of the base model, of the patched model on a prompt that is erased, and on
one below the detector's threshold, at real layer sizes with random weights. Training: seconds per
(concept, t, s) sample of our loop against a loop that runs as the released code does.
"""

import importlib
import json
import statistics
import time
from dataclasses import replace

import torch

from . import commandline, pack
from .environment import say
from .publish import MEASURED, device, markdown, publish

pack.load_pack()

import comfy.model_base  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402

from unhype.hypernet.detector import Detector  # noqa: E402
from unhype.hypernet.eraser import Eraser  # noqa: E402
from unhype.hypernet.network import Hypernet, HypernetConfig  # noqa: E402
from unhype.hypernet.patch import apply_erasure  # noqa: E402
from unhype.hypernet.record import Record  # noqa: E402
from unhype.hypernet.targets import recognise, target_layers  # noqa: E402

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "disable_self_attentions": None,
}
# Layer sizes as the host detects them in the real checkpoints.
SIZES = {
    "SD 1.5": {
        "config": "SD15",
        "base": "BaseModel",
        "pooled": 768,
        "unet": {
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": (1, 2, 4, 4),
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
            "context_dim": 768,
            "use_linear_in_transformer": False,
        },
    },
    "SDXL": {
        "config": "SDXL",
        "base": "SDXL",
        "pooled": 1280,
        "unet": {
            "num_res_blocks": [2, 2, 2],
            "channel_mult": (1, 2, 4),
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
            "context_dim": 2048,
            "use_linear_in_transformer": True,
            "num_heads": -1,
            "num_head_channels": 64,
            "adm_in_channels": 2816,
            "num_classes": "sequential",
        },
    },
}

# Of a training by an objective that runs diffusion.
_STEPS = 200


# A variant with a region's text in it.
REGION = ", a region beside it"


def random_model(size, dtype):
    """A ComfyUI MODEL of real layer sizes with random weights."""
    entry = SIZES[size]
    config = getattr(comfy.supported_models, entry["config"])({**_UNET, **entry["unet"]})
    config.set_inference_dtype(dtype, None)
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    kind = getattr(comfy.model_base, entry["base"])
    model = kind(config, model_type=comfy.model_base.ModelType.EPS, device=offload)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 1e4
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.7 / fan_in**0.5)
    return comfy.model_patcher.ModelPatcher(model.eval().requires_grad_(False), device, offload)


def random_eraser(model, pooled):
    """An eraser of default size for the model, whose deltas are not zero; every prompt is above the threshold."""
    family = recognise(model.model)
    generator = torch.Generator().manual_seed(0)
    network = Hypernet(HypernetConfig(pooled, target_layers(model.model, family)), generator)
    for parameter in network.right.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 1e-3)
    return Eraser(network.requires_grad_(False), Record(family.key, ()), "random")


def _prompt(context, pooled, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(1, 77, context, generator=generator), torch.randn(1, pooled, generator=generator)
    return [[vectors[0], {"pooled_output": vectors[1]}]]


def with_region(model, region):
    """A clone in which an attention patch reads a region's text beside the prompt's, as regional prompting does."""

    def patch(q, keys, values, options):
        longer = torch.cat([keys, region[0][0].to(keys).expand(len(keys), -1, -1)], 1)
        return q, longer, longer

    clone = model.clone()
    clone.set_model_attn2_patch(patch)
    return clone


def sample(model, positive, negative, latent, steps):
    """Draw with a model of random weights."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(7.0)
    noise = torch.randn(1, 4, latent, latent, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sampling(size, latent, steps, rounds, dtype):
    """Ratios of steps per second to the base model's, by variant: medians over interleaved rounds.

    With a region's text, the base model has it too.
    """
    entry = SIZES[size]
    model = random_model(size, dtype)
    eraser = random_eraser(model, entry["pooled"])
    nothing_detected = replace(eraser, detector=Detector(torch.zeros(1, entry["pooled"]), torch.zeros(1)))
    context = entry["unet"]["context_dim"]
    variants = {
        "base": model,
        "erased prompt": apply_erasure(model, eraser),
        "benign prompt": apply_erasure(model, nothing_detected),
    }
    region = _prompt(context, entry["pooled"], 3)
    variants |= {f"{name}{REGION}": with_region(variant, region) for name, variant in variants.items()}
    seconds = {name: [] for name in variants}
    prompts = _prompt(context, entry["pooled"], 1), _prompt(context, entry["pooled"], 2)
    for variant in variants.values():
        sample(variant, *prompts, latent, 1)
    for turn in range(rounds):
        # Another order every round, so that a machine that slows down hurts all alike.
        names = list(variants)[turn % len(variants) :] + list(variants)[: turn % len(variants)]
        for name in names:
            started = time.perf_counter()
            sample(variants[name], *prompts, latent, steps)
            seconds[name].append(time.perf_counter() - started)
    comfy.model_management.unload_all_models()
    rows = {}
    for name in variants:
        alone = f"base{REGION}" if name.endswith(REGION) else "base"
        ratios = [own / base for own, base in zip(seconds[name], seconds[alone], strict=True)]
        rows[name] = {
            "steps_per_second": steps / statistics.median(seconds[name]),
            "time_ratio": statistics.median(ratios),
        }
    return rows


def training(rounds):
    """Seconds per (concept, t, s) sample on the lab model, ours and as released."""
    from unhype.training.encode import encode
    from unhype.training.frozen import FrozenModel, differentiable
    from unhype.training.loop import new_state, train_step
    from unhype.training.prompts import phrasings
    from unhype.training.retention import Retention
    from unhype.training.settings import Settings
    from unhype.training.tasks.direct import DirectTask
    from unhype.training.tasks.samples import diffusion_samples

    from .lab.model import load_model
    from .lab.text import load_clip

    # The default objective has no sample (concept, t, s) at all: it runs no diffusion steps.
    settings = Settings(objective="direct", width=128, height=128, guidance=3.0, sampler_steps=25, checkpointing=False)
    phrases, clip = phrasings([("cat", "tree")], "object"), load_clip()
    encoded = {text: encode(clip, text) for phrase in phrases for text in (phrase.prompt, phrase.mapping, "")}
    frozen = FrozenModel(load_model())
    frozen.load()
    probe = frozen.noise(1, settings.height, settings.width, torch.Generator().manual_seed(0))
    conds = {text: frozen.model_conds(prompt, probe) for text, prompt in encoded.items()}
    c = torch.stack([encoded[phrase.prompt].c for phrase in phrases]).to(frozen.device)
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    samples = diffusion_samples(frozen, phrases, c, encoded, settings, generator, lambda *_: None)
    samples_seconds = time.perf_counter() - started
    retention = Retention(c, c, c)
    network = Hypernet(HypernetConfig(c.shape[1], frozen.layers), generator).to(frozen.device)
    state, single = new_state(network, settings, generator), replace(settings, batch=1)

    def step(own):
        with differentiable():
            train_step(state, DirectTask(samples, own), retention, own)

    batched, released = [], []
    for turn in range(rounds):
        started = time.perf_counter()
        step(settings)
        batched.append((time.perf_counter() - started) / settings.batch)
        started = time.perf_counter()
        # As released: 25 sampler steps on average, two evaluations each, then e_p, e_m and one step of batch 1.
        phrase = phrases[turn % len(phrases)]
        noise = frozen.noise(1, settings.height, settings.width, generator)
        ((z, sigma),) = frozen.rollout(encoded[phrase.prompt], encoded[""], noise, 25, 3.0, {24})
        with torch.no_grad():
            for text in (phrase.prompt, phrase.mapping):
                frozen.predict(z.to(frozen.device), torch.tensor([sigma], device=frozen.device), [conds[text]])
        step(single)
        released.append(time.perf_counter() - started)
    own = statistics.median(batched) + samples_seconds / (_STEPS * settings.batch)
    return {
        "ours_seconds_per_sample": own,
        "released_seconds_per_sample": statistics.median(released),
        "times_cheaper": statistics.median(released) / own,
        "samples_seconds": samples_seconds,
        "samples_of_a_default_run": _STEPS * settings.batch,
    }


def table(results):
    """The rows for people: what, and how it compares."""
    lines = [
        (f"time per step, {size}, {name}", f"{variants[name]['time_ratio']:.3f} of the model alone")
        for size, variants in results["sampling"].items()
        for name in variants
        if not name.startswith("base")
    ]
    cheaper = results["training"]["times_cheaper"]
    return [*lines, ("training, per sample (concept, t, s)", f"{cheaper:.1f} times cheaper than the loop as released")]


def whole_trainings(name, options):
    """Measure whole trainings, keep them after each, and publish them. name: of the module that has them."""
    kind = importlib.import_module(f".{name}", __package__)

    def keep(runs):
        found = {"device": device(), "runs": runs}
        if options.json:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        if options.publish:
            publish(name, found, markdown(kind.HEADER, kind.table(runs)), page=MEASURED)

    kind.measure(say, keep)


def main():
    """Command line."""
    parser = commandline.parser("bench speed")
    options = parser.parse_args()
    if options.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA GPU, and there is none here.")
    for kind in ("stages", "starts", "sizes"):
        if getattr(options, kind):
            whole_trainings(kind, options)
            return
    results = {"device": device(), "sampling": {}, "training": {}}
    plan = {"SD 1.5": (64, 20), "SDXL": (128, 20)} if options.gpu else {"SD 1.5": (32, 4)}
    dtype = torch.float16 if options.gpu else torch.float32
    say(f"On {results['device']}, random weights, {options.rounds} rounds, medians.")
    for size, (latent, steps) in plan.items():
        rows = results["sampling"][size] = sampling(size, latent, steps, options.rounds, dtype)
        for name, row in rows.items():
            say(
                f"{size:8} {latent * 8:5} px  {name:14} {row['steps_per_second']:7.3f} steps/s  "
                f"{row['time_ratio']:.3f} x base time"
            )
    results["training"] = row = training(options.rounds)
    say(
        f"training, small model: {row['ours_seconds_per_sample'] * 1e3:.1f} ms a sample, all included; as released "
        f"{row['released_seconds_per_sample'] * 1e3:.1f} ms: {row['times_cheaper']:.1f} times cheaper"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.publish:
        figures = markdown(("on " + results["device"], ""), table(results))
        publish("speed_gpu" if options.gpu else "speed", results, figures, page=MEASURED)


if __name__ == "__main__":
    main()

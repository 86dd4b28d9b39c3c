"""Graphs that a visitor may queue, each with what a policy makes of it: a picture through the eraser, or a refusal.

A graph says once where its model comes from. With the eraser applied there by hand it is the reference of what the
policy draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

SIDE = 64
SAMPLING = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
CAME_WITHOUT = r"This server draws only with the eraser 'school'\. The model that draws here came without 'school'"
REPLACED = r"This server draws only with the eraser 'school'\. Another node has replaced the way"


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


CASES: dict[str, Case] = {}


def case(name, **options):
    """Take a function as the graph `name`."""

    def taken(build):
        CASES[name] = Case(build, **options)
        return build

    return taken


@case("KSampler")
def _(graph):
    graph.saved(graph.sampled(graph.model()))


@case("KSampler with CFG")
def _(graph):
    graph.add("nothing", "CLIPTextEncode", clip=["clip", 0], text="")
    graph.saved(graph.sampled(graph.model(), cfg=5.0, negative=["nothing", 0]))


@case("two pictures of one model")
def _(graph):
    model = graph.model()
    graph.saved(graph.sampled(model))
    graph.saved(graph.sampled(model, "again", seed=8), "save again")


@case("picture from a picture")
def _(graph):
    model = graph.model()
    graph.saved(graph.sampled(model, "again", latent_image=graph.sampled(model), denoise=0.6, seed=8))


@case("batch")
def _(graph):
    graph["size"]["inputs"]["batch_size"] = 3
    graph.saved(graph.sampled(graph.model()))


@case("KSampler Advanced")
def _(graph):
    inputs = {"positive": ["text", 0], "negative": ["text", 0], "latent_image": ["size", 0], "noise_seed": 7}
    inputs |= {"add_noise": "enable", "start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "disable"}
    graph.saved(graph.add("draw", "KSamplerAdvanced", model=graph.model(), **inputs, **SAMPLING))


@case("SamplerCustom")
def _(graph):
    model = graph.model()
    graph.add("sampler", "KSamplerSelect", sampler_name="euler")
    graph.add("steps", "BasicScheduler", model=model, scheduler="normal", steps=2, denoise=1.0)
    inputs = {"positive": ["text", 0], "negative": ["text", 0], "latent_image": ["size", 0], "noise_seed": 7}
    inputs |= {"add_noise": True, "cfg": 1.0, "sampler": ["sampler", 0], "sigmas": ["steps", 0]}
    graph.saved(graph.add("draw", "SamplerCustom", model=model, **inputs))


@case("BasicGuider")
def _(graph):
    guider = graph.add("guider", "BasicGuider", model=graph.model(), conditioning=["text", 0])
    graph.saved(graph.guided(guider))


@case("CFGGuider")
def _(graph):
    inputs = {"positive": ["text", 0], "negative": ["text", 0], "cfg": 3.0}
    graph.saved(graph.guided(graph.add("guider", "CFGGuider", model=graph.model(), **inputs)))


@case("DualCFGGuider")
def _(graph):
    inputs = {"cond1": ["text", 0], "cond2": ["text", 0], "negative": ["text", 0]}
    inputs |= {"cfg_conds": 3.0, "cfg_cond2_negative": 2.0, "style": "regular"}
    graph.saved(graph.guided(graph.add("guider", "DualCFGGuider", model=graph.model(), **inputs)))


@case("PerpNegGuider")
def _(graph):
    graph.add("nothing", "CLIPTextEncode", clip=["clip", 0], text="")
    graph.add("dog", "CLIPTextEncode", clip=["clip", 0], text="a dog")
    inputs = {"positive": ["text", 0], "negative": ["dog", 0], "empty_conditioning": ["nothing", 0]}
    graph.saved(graph.guided(graph.add("guider", "PerpNegGuider", model=graph.model(), **inputs, cfg=3.0, neg_scale=1)))


def _dual(graph, second):
    inputs = {"positive": ["text", 0], "negative": ["text", 0], "cfg": 3.0}
    return graph.add("guider", "DualModelGuider", model=graph.model(), model_negative=second, **inputs)


@case("second model of a guider", needs="DualModelGuider")
def _(graph):
    graph.saved(graph.guided(_dual(graph, graph.model("second"))))


@case("second model of a guider out of a list that says nothing", needs="DualModelGuider")
def _(graph):
    graph.add("any", "UnHypeTestAnyLoader", ckpt_name=graph.names.checkpoint)
    graph.saved(graph.guided(_dual(graph, graph.by_hand(["any", 1]))))


@case("LoRA")
def _(graph):
    inputs = {"lora_name": graph.names.lora, "strength_model": 1.0}
    graph.saved(graph.sampled(graph.add("lora", "LoraLoaderModelOnly", model=graph.model(), **inputs)))


@case("chain of LoRAs")
def _(graph):
    inputs = {"lora_name": graph.names.lora, "strength_model": 0.5, "strength_clip": 0.0, "clip": ["clip", 0]}
    model = graph.add("lora", "LoraLoader", model=graph.model(), **inputs)
    model = graph.add("lora 2", "LoraLoader", model=model, **inputs | {"strength_model": -0.7})
    graph.saved(graph.sampled(model))


@case("merge")
def _(graph):
    merged = graph.add("merge", "ModelMergeSimple", model1=graph.model(), model2=graph.model("second"), ratio=0.5)
    graph.saved(graph.sampled(merged))


@case("sum and difference")
def _(graph):
    model = graph.model()
    less = graph.add("less", "ModelMergeSubtract", model1=model, model2=graph.model("second"), multiplier=0.5)
    graph.saved(graph.sampled(graph.add("more", "ModelMergeAdd", model1=less, model2=model)))


@case("patches")
def _(graph):
    model = graph.add("rescale", "RescaleCFG", model=graph.model(), multiplier=0.7)
    model = graph.add("sampling", "ModelSamplingDiscrete", model=model, sampling="lcm", zsnr=False)
    model = graph.add("freeu", "FreeU_V2", model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    graph.saved(graph.sampled(graph.add("diff", "DifferentialDiffusion", model=model)))


@case("areas and ranges")
def _(graph):
    inputs = {"width": SIDE, "height": SIDE, "x": 0, "y": 0, "strength": 1.0}
    graph.add("area", "ConditioningSetArea", conditioning=["text", 0], **inputs)
    graph.add("range", "ConditioningSetTimestepRange", conditioning=["text", 0], start=0.2, end=1.0)
    graph.add("both", "ConditioningCombine", conditioning_1=["area", 0], conditioning_2=["range", 0])
    graph.saved(graph.sampled(graph.model(), positive=["both", 0], cfg=4.0))


@case("mask")
def _(graph):
    graph.add("mask", "SolidMask", value=0.5, width=SIDE, height=SIDE)
    masked = graph.add("masked", "SetLatentNoiseMask", samples=["size", 0], mask=["mask", 0])
    graph.saved(graph.sampled(graph.model(), latent_image=masked))


@case("ids of a subgraph", like="KSampler")
def _(graph):
    model = graph.model("57:12")
    graph.saved(graph.sampled(model, "57:13"), "58")


@case("ids that collide", like="KSampler")
def _(graph):
    model = graph.model("load")
    graph.add("unhype_policy_load_0", "EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    graph.saved(graph.sampled(model, latent_image=["unhype_policy_load_0", 0]))


@case("negative slot", like="KSampler")
def _(graph):
    graph.model()
    graph.saved(graph.sampled(["load", -3]))


@case("partial execution", request={"partial_execution_targets": ["save"]}, like="KSampler")
def _(graph):
    model = graph.model()
    graph.saved(graph.sampled(model))
    graph.saved(graph.sampled(model, "again", seed=8), "left out")


@case("list of models")
def _(graph):
    models = graph.add("models", "UnHypeTestModels", ckpt_name=graph.names.checkpoint, count=2)
    graph.saved(graph.sampled(graph.by_hand(models)))


@case("last of a list", like="KSampler")
def _(graph):
    models = graph.add("models", "UnHypeTestModels", ckpt_name=graph.names.checkpoint, count=2)
    graph.saved(graph.sampled(graph.by_hand(graph.add("last", "UnHypeTestLastModel", models=models))))


@case("through a node that says nothing", like="KSampler")
def _(graph):
    graph.saved(graph.sampled(graph.add("any", "UnHypeTestAnything", value=graph.model())))


@case("out of a loader that says nothing", like="KSampler")
def _(graph):
    graph.add("any", "UnHypeTestAnyLoader", ckpt_name=graph.names.checkpoint)
    graph.saved(graph.sampled(["any", -1]))


@case("into a sampler that says nothing", like="KSampler")
def _(graph):
    inputs = {"conditioning": ["text", 0], "latent": ["size", 0]}
    graph.saved(graph.add("draw", "UnHypeTestAnySampler", model=graph.model(), **inputs))


@case("nothing says anything", refused=CAME_WITHOUT)
def _(graph):
    graph.add("any", "UnHypeTestAnyLoader", ckpt_name=graph.names.checkpoint)
    inputs = {"conditioning": ["text", 0], "latent": ["size", 0]}
    graph.saved(graph.add("draw", "UnHypeTestAnySampler", model=["any", 1], **inputs))


@case("switch", needs="ComfySwitchNode", like="KSampler")
def _(graph):
    inputs = {"on_false": graph.model("other"), "on_true": graph.model()}
    graph.saved(graph.sampled(graph.add("switch", "ComfySwitchNode", switch=True, **inputs)))


def _piped(graph, pipe):
    inputs = {"conditioning": ["text", 0], "latent": ["size", 0]}
    graph.saved(graph.add("draw", "UnHypeTestPipeSampler", pipe=pipe, **inputs))


@case("pipe", like="KSampler")
def _(graph):
    _piped(graph, graph.add("pipe", "UnHypeTestToPipe", model=graph.model()))


@case("in and out of a pipe", like="KSampler")
def _(graph):
    pipe = graph.add("pipe", "UnHypeTestToPipe", model=graph.model())
    graph.saved(graph.sampled(graph.add("out", "UnHypeTestFromPipe", pipe=pipe)))


@case("loaded into a pipe and taken out", like="KSampler")
def _(graph):
    pipe = graph.add("pipe", "UnHypeTestLoadPipe", ckpt_name=graph.names.checkpoint)
    graph.saved(graph.sampled(graph.add("out", "UnHypeTestFromPipe", pipe=pipe)))


@case("loaded into a pipe and sampled from it", refused=CAME_WITHOUT)
def _(graph):
    _piped(graph, graph.add("pipe", "UnHypeTestLoadPipe", ckpt_name=graph.names.checkpoint))


@case("loaded and sampled in a node", refused=CAME_WITHOUT)
def _(graph):
    inputs = {"conditioning": ["text", 0], "latent": ["size", 0]}
    graph.saved(graph.add("draw", "UnHypeTestLoadAndSample", ckpt_name=graph.names.checkpoint, **inputs))


def _expanded(graph, **model):
    inputs = {"ckpt_name": graph.names.checkpoint, "conditioning": ["text", 0], "latent": ["size", 0]}
    graph.saved(graph.add("draw", "UnHypeTestExpand", **inputs, **model))


@case("expands to a sampler", like="KSampler")
def _(graph):
    _expanded(graph, model=graph.model())


@case("expands to a loader and a sampler", refused=CAME_WITHOUT)
def _(graph):
    _expanded(graph)


def _changed(change, piped):
    def build(graph):
        graph.add("changed", "UnHypeTestChanged", model=graph.model(), change=change)
        if piped:
            _piped(graph, ["changed", 0])
        else:
            graph.saved(graph.sampled(["changed", 1]))

    return build


for _change, _when_piped in {
    "clone": None,
    "deep copy": None,
    "remade": CAME_WITHOUT,
    "no wrappers": CAME_WITHOUT,
    "replaced call": REPLACED,
}.items():
    CASES[f"{_change}, piped"] = Case(_changed(_change, piped=True), _when_piped, "KSampler")
    _refused = REPLACED if _change == "replaced call" else None
    CASES[f"{_change}, linked"] = Case(_changed(_change, piped=False), _refused, "KSampler")


def _own_way(way):
    def build(graph):
        inputs = {"conditioning": ["text", 0], "latent": ["size", 0], "way": way}
        graph.saved(graph.add("draw", "UnHypeTestOwnWay", model=graph.model(), **inputs))

    return build


CASES["options that were reset"] = Case(_own_way("reset options"), like="KSampler")
CASES["sampler that drops its options"] = Case(_own_way("forgetful sampler"), CAME_WITHOUT)
CASES["guider that prepares nothing"] = Case(_own_way("careless guider"), CAME_WITHOUT)


@case("a handler that fails", like="KSampler", request={"extra_data": {"unhype_test": "throw"}})
def _(graph):
    graph.saved(graph.sampled(graph.model()))


@case(
    "model of another family",
    refused=r"It is for Stable Diffusion 1\.x, and this model is Flux\.1\. Load one of that kind\.",
    needs="ComfySwitchNode",  # hosts without it load no small Flux
)
def _(graph):
    graph.add("flux", "UNETLoader", unet_name=graph.names.flux, weight_dtype="default")
    size = graph.add("size 16", "EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1)
    graph.saved(graph.sampled(["flux", 0], latent_image=size))

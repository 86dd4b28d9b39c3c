"""Graphs of ComfyUI's own nodes that a visitor may queue, each with what a policy makes of it: see ``policy_graph``."""

from policy_graph import SAMPLING, SIDE, Cases

CASES = Cases()
case = CASES.case


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


@case(
    "model of another family",
    refused=r"It is for Stable Diffusion 1\.x, and this model is Flux\.1\. Load one of that kind\.",
    needs="ComfySwitchNode",  # hosts without it load no small Flux
)
def _(graph):
    graph.add("flux", "UNETLoader", unet_name=graph.names.flux, weight_dtype="default")
    size = graph.add("size 16", "EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1)
    graph.saved(graph.sampled(["flux", 0], latent_image=size))

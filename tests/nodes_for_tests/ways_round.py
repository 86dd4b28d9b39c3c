"""Nodes that bring a model to a sampler where no link shows it, as node packs do, for tests of a policy."""

import copy
import itertools

import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder
from server import PromptServer

import nodes

_Pipe = io.Custom("UNHYPE_TEST_PIPE")
_STEPS, _CFG, _SEED = 2, 1.0, 7


def _loaded(name):
    path = folder_paths.get_full_path_or_raise("checkpoints", name)
    return comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]


def _sampled(model, conditioning, latent):
    samples = latent["samples"]
    noise = comfy.sample.prepare_noise(samples, _SEED)
    options = ("euler", "normal", conditioning, conditioning, samples)
    return {"samples": comfy.sample.sample(model, noise, _STEPS, _CFG, *options, disable_pbar=True, seed=_SEED)}


def _schema(name, inputs, outputs, **options):
    return io.Schema(node_id=f"UnHypeTest{name}", category="UnHype", inputs=inputs, outputs=outputs, **options)


def _drawn(conditioning=True):
    return [io.Conditioning.Input("conditioning"), io.Latent.Input("latent")] if conditioning else []


class LoadPipe(io.ComfyNode):
    """A loader that puts its model into a pipe."""

    @classmethod
    def define_schema(cls):
        return _schema("LoadPipe", [io.String.Input("ckpt_name")], [_Pipe.Output()])

    @classmethod
    def execute(cls, ckpt_name):
        return io.NodeOutput({"model": _loaded(ckpt_name)})


class ToPipe(io.ComfyNode):
    """A model into a pipe."""

    @classmethod
    def define_schema(cls):
        return _schema("ToPipe", [io.Model.Input("model")], [_Pipe.Output()])

    @classmethod
    def execute(cls, model):
        return io.NodeOutput({"model": model})


class FromPipe(io.ComfyNode):
    """A model out of a pipe."""

    @classmethod
    def define_schema(cls):
        return _schema("FromPipe", [_Pipe.Input("pipe")], [io.Model.Output()])

    @classmethod
    def execute(cls, pipe):
        return io.NodeOutput(pipe["model"])


class PipeSampler(io.ComfyNode):
    """Samples with the model of a pipe."""

    @classmethod
    def define_schema(cls):
        return _schema("PipeSampler", [_Pipe.Input("pipe"), *_drawn()], [io.Latent.Output()])

    @classmethod
    def execute(cls, pipe, conditioning, latent):
        return io.NodeOutput(_sampled(pipe["model"], conditioning, latent))


class LoadAndSample(io.ComfyNode):
    """Loads and samples."""

    @classmethod
    def define_schema(cls):
        return _schema("LoadAndSample", [io.String.Input("ckpt_name"), *_drawn()], [io.Latent.Output()])

    @classmethod
    def execute(cls, ckpt_name, conditioning, latent):
        return io.NodeOutput(_sampled(_loaded(ckpt_name), conditioning, latent))


def _remade(model):
    return comfy.model_patcher.ModelPatcher(model.model, model.load_device, model.offload_device)


def _without_wrappers(model):
    clone = model.clone()
    clone.wrappers = {}
    return clone


def _copied(model):
    clone = model.clone()
    clone.wrappers = copy.deepcopy(clone.wrappers)
    clone.model_options = copy.deepcopy(clone.model_options)
    return clone


def _replaced(model):
    clone = model.clone()
    network = clone.model
    clone.add_object_patch("apply_model", lambda x, t, *args, **kwargs: network._apply_model(x, t, *args, **kwargs))
    return clone


CHANGES = {
    "clone": lambda model: model.clone(),
    "remade": _remade,
    "no wrappers": _without_wrappers,
    "deep copy": _copied,
    "replaced call": _replaced,
}


class Changed(io.ComfyNode):
    """A model that another node has changed, in a pipe so that nothing mends it."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Model.Input("model"), io.Combo.Input("change", options=list(CHANGES))]
        return _schema("Changed", inputs, [_Pipe.Output(), io.Model.Output()])

    @classmethod
    def execute(cls, model, change):
        changed = CHANGES[change](model)
        return io.NodeOutput({"model": changed}, changed)


class HiddenSampler(io.ComfyNode):
    """Samples with a patcher of its own over the model that it gets."""

    @classmethod
    def define_schema(cls):
        return _schema("HiddenSampler", [io.Model.Input("model"), *_drawn()], [io.Latent.Output()])

    @classmethod
    def execute(cls, model, conditioning, latent):
        return io.NodeOutput(_sampled(_remade(model), conditioning, latent))


class _Forgetful(comfy.samplers.Sampler):
    """A sampler that drops the options that it gets."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *_, **__):
        x = noise
        for sigma, following in itertools.pairwise(sigmas):
            denoised = model_wrap(x, sigma.expand(len(x)), model_options={"transformer_options": {}}, seed=0)
            x = denoised + (x - denoised) * following / sigma
        return x


class _Careless(comfy.samplers.CFGGuider):
    """A guider that skips the host's preparations."""

    def sample(self, noise, latent_image, sampler, sigmas, *_, **__):
        import comfy.model_management

        comfy.model_management.load_models_gpu([self.model_patcher])
        context = self.original_conds["positive"][0]["cross_attn"]
        return self.model_patcher.model.apply_model(noise, sigmas[:1], c_crossattn=context, transformer_options={})


class OwnWay(io.ComfyNode):
    """Samples with the host's classes in a way of its own."""

    @classmethod
    def define_schema(cls):
        ways = ["forgetful sampler", "careless guider", "reset options"]
        return _schema(
            "OwnWay", [io.Model.Input("model"), *_drawn(), io.Combo.Input("way", options=ways)], [io.Latent.Output()]
        )

    @classmethod
    def execute(cls, model, conditioning, latent, way):
        guider = (_Careless if way == "careless guider" else comfy.samplers.CFGGuider)(model)
        guider.set_conds(conditioning, conditioning)
        if way == "reset options":
            guider.model_options = {"transformer_options": {}}
        sampler = _Forgetful() if way == "forgetful sampler" else comfy.samplers.sampler_object("euler")
        samples = latent["samples"]
        noise = comfy.sample.prepare_noise(samples, _SEED)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", _STEPS)
        return io.NodeOutput({"samples": guider.sample(noise, samples, sampler, sigmas, disable_pbar=True, seed=_SEED)})


class Expand(io.ComfyNode):
    """Becomes a whole graph when it runs: a sampler, and without a model of its own also a loader."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Model.Input("model", optional=True), io.String.Input("ckpt_name"), *_drawn()]
        return _schema("Expand", inputs, [io.Latent.Output()], enable_expand=True)

    @classmethod
    def execute(cls, ckpt_name, conditioning, latent, model=None):
        graph = GraphBuilder()
        if model is None:
            model = graph.node("CheckpointLoaderSimple", ckpt_name=ckpt_name).out(0)
        drawn = graph.node(
            "KSampler", model=model, positive=conditioning, negative=conditioning, latent_image=latent, seed=_SEED,
            steps=_STEPS, cfg=_CFG, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        return io.NodeOutput(drawn.out(0), expand=graph.finalize())


class Models(io.ComfyNode):
    """A list of models, each loaded by itself."""

    @classmethod
    def define_schema(cls):
        inputs = [io.String.Input("ckpt_name"), io.Int.Input("count")]
        return _schema("Models", inputs, [io.Model.Output(is_output_list=True)])

    @classmethod
    def execute(cls, ckpt_name, count):
        return io.NodeOutput([_loaded(ckpt_name) for _ in range(count)])


class LastModel(io.ComfyNode):
    """The last of a list of models."""

    @classmethod
    def define_schema(cls):
        return _schema("LastModel", [io.Model.Input("models")], [io.Model.Output()], is_input_list=True)

    @classmethod
    def execute(cls, models):
        return io.NodeOutput(models[-1])


class _Anything(str):
    """The type by which node packs take and give anything, on every ComfyUI."""

    __slots__ = ()

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


class Anything:
    """Hands on whatever comes."""

    CATEGORY, FUNCTION, RETURN_TYPES = "UnHype", "run", (_Anything("*"),)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (_Anything("*"),)}}

    def run(self, value):
        return (value,)


class AnyLoader:
    """A loader whose output says nothing of what it is."""

    CATEGORY, FUNCTION, RETURN_TYPES = "UnHype", "run", (_Anything("*"), _Anything("*"))

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"ckpt_name": ("STRING",)}}

    def run(self, ckpt_name):
        return ("nothing", _loaded(ckpt_name))


class AnySampler:
    """A sampler whose inputs say nothing of what they take."""

    CATEGORY, FUNCTION, RETURN_TYPES = "UnHype", "run", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {name: (_Anything("*"),) for name in ("model", "conditioning", "latent")}}

    def run(self, model, conditioning, latent):
        return (_sampled(model, conditioning, latent),)


def _thrown(request):
    """Another pack's handler of queued graphs that fails."""
    if request.get("extra_data", {}).get("unhype_test") == "throw":
        raise RuntimeError("a handler of another pack fails")
    return request


def _undone(request):
    """Another pack that puts the host's function back, or its own in its place."""
    if request.get("extra_data", {}).get("unhype_test") == "undo":
        comfy.sampler_helpers.prepare_sampling = lambda *args, **kwargs: comfy.sampler_helpers._prepare_sampling(*args)
    return request


NODES = [
    LoadPipe,
    ToPipe,
    FromPipe,
    PipeSampler,
    LoadAndSample,
    HiddenSampler,
    Changed,
    OwnWay,
    Expand,
    Models,
    LastModel,
]


def register():
    """Have ComfyUI take the nodes of the old kind, and the handlers."""
    old = {"UnHypeTestAnything": Anything, "UnHypeTestAnyLoader": AnyLoader, "UnHypeTestAnySampler": AnySampler}
    nodes.NODE_CLASS_MAPPINGS.update(old)
    for handler in (_thrown, _undone):
        PromptServer.instance.add_on_prompt_handler(handler)

"""Graphs with nodes of other packs, which hide models or sample in their own ways: see ``policy_graph``."""

from policy_graph import Case, Cases

CAME_WITHOUT = r"This server draws only with the eraser 'school'\. The model that draws here came without 'school'"
REPLACED = r"This server draws only with the eraser 'school'\. Another node has replaced the way"
CASES = Cases()
case = CASES.case


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

"""The inputs of Train Erasure."""

from typing import Any

from comfy_api.latest import io

from ..training.presets import CUSTOM, PRESETS
from ..training.prompts import TEMPLATES
from ..training.settings import OBJECTIVES, Settings
from .schema import Hypernet, advanced

NAME = "my_erasure"
_DEFAULT = Settings()


def main_inputs() -> list[Any]:
    """Model, preset, lists, file name and the settings that everybody sees.

    All with a widget are optional, so that a program sends only what differs from the defaults. The interface saves
    values in the order of the widgets: web/js/older_workflows.js puts those of older workflows in their places.
    """
    preset = io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        optional=True,
        tooltip="A list to start from. It fills the fields below, for you to change. 'custom' brings back your own "
        "text.",
    )
    preset.extra_dict = {"presets": {name: chosen._asdict() for name, chosen in PRESETS.items()}}  # for web/js
    return [
        io.Model.Input("model", tooltip="The model to train on. It stays as it is."),
        io.Clip.Input("clip", optional=True, tooltip="The CLIP that belongs to the model."),
        preset,
        io.String.Input(
            "concepts",
            multiline=True,
            default="cat -> tree",
            optional=True,
            tooltip="What to erase, one a line: 'cat, kitten -> tree'. After the arrow: what is drawn instead. Put a "
            "name with a comma in quotes.",
        ),
        io.String.Input(
            "preserve",
            multiline=True,
            default="",
            optional=True,
            tooltip="What must stay, one a line. Everyday prompts are retained anyway. Name close relatives, such as "
            "'tiger' when you erase 'cat'.",
        ),
        io.String.Input("name", default=NAME, optional=True, tooltip="Name of the file in models/unhype."),
        io.Combo.Input(
            "kind",
            options=list(TEMPLATES),
            default=_DEFAULT.kind,
            optional=True,
            tooltip="The sort of concepts. It selects the sentences in which they are trained.",
        ),
        io.Int.Input(
            "steps",
            default=_DEFAULT.steps,
            min=1,
            max=100_000,
            optional=True,
            tooltip="Training steps. 20 are enough for the objective attention, also for many concepts; the others "
            "need about 200. Training stops by itself before others change.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,
            optional=True,
            tooltip="The same inputs and seed train the same file on the same kind of machine.",
        ),
    ]


def advanced_inputs() -> list[Any]:
    """Settings that newer hosts fold away."""
    return [
        advanced(
            io.Int.Input,
            "width",
            default=_DEFAULT.width,
            min=64,
            max=2048,
            step=8,
            tooltip="Width of the previews, and of the training pictures where the objective draws some.",
        ),
        advanced(
            io.Int.Input,
            "height",
            default=_DEFAULT.height,
            min=64,
            max=2048,
            step=8,
            tooltip="Height of the previews, and of the training pictures where the objective draws some.",
        ),
        advanced(
            io.Int.Input,
            "batch",
            default=_DEFAULT.batch,
            min=1,
            max=256,
            tooltip="Pictures a step, for the objectives that draw some: direct, paper and released. Lower it when the "
            "GPU runs out of memory.",
        ),
        advanced(
            io.Float.Input,
            "guidance",
            default=_DEFAULT.guidance,
            min=1.0,
            max=30.0,
            step=0.5,
            tooltip="The CFG scale of previews and training pictures. Use that of your pictures: 3.5 as a rule for "
            "Flux dev, 1 for schnell.",
        ),
        advanced(
            io.Int.Input,
            "rank",
            default=_DEFAULT.rank,
            min=1,
            max=64,
            tooltip="Rank of the generated LoRA weights. Higher for many concepts; the file grows with it.",
        ),
        advanced(
            io.Float.Input,
            "learning_rate",
            default=_DEFAULT.learning_rate,
            min=1e-6,
            max=1.0,
            step=1e-5,
            round=False,
            tooltip="How fast the hypernet learns. Lower it if the loss jumps.",
        ),
        advanced(
            io.Float.Input,
            "gamma",
            default=_DEFAULT.gamma,
            min=0.0,
            max=10.0,
            step=0.1,
            tooltip="How hard training pushes away from the erased concept, beyond drawing the other one. Not used by "
            "the objective attention.",
        ),
        advanced(
            io.Float.Input,
            "retain_weight",
            default=_DEFAULT.retain_weight,
            min=0.0,
            max=1000.0,
            step=0.1,
            tooltip="Weight of retaining other prompts, relative to erasing.",
        ),
        advanced(
            io.Combo.Input,
            "objective",
            options=list(OBJECTIVES),
            default=_DEFAULT.objective,
            tooltip="The training method. attention: by far the fastest, draws no pictures. direct: trains on noisy "
            "pictures. paper, released: to compare with the UnHype paper.",
        ),
        advanced(
            io.Boolean.Input,
            "checkpointing",
            default=_DEFAULT.checkpointing,
            tooltip="Saves most of the memory of training for about a third more time. Not needed by the objective "
            "attention.",
        ),
        advanced(
            io.Boolean.Input,
            "resume",
            default=True,
            tooltip="Go on from the last checkpoint of the same settings, if there is one.",
        ),
        advanced(
            io.Int.Input,
            "checkpoint_every",
            default=50,
            min=0,
            max=100_000,
            tooltip="Steps between checkpoints, 0 for none. One is also saved when you stop.",
        ),
        advanced(
            io.Int.Input,
            "preview_every",
            default=50,
            min=0,
            max=100_000,
            tooltip="Steps between previews of an erased and a retained prompt, 0 for none. Each takes as long as "
            "drawing two pictures.",
        ),
    ]


def optional_inputs() -> list[Any]:
    """Sockets that few connect."""
    return [
        Hypernet.Input(
            "start_from",
            optional=True,
            tooltip="A hypernet to continue from: its concepts stay erased and the new ones are added.",
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="The VAE of the model, for previews and pictures in full quality. Without it they are rough.",
        ),
    ]

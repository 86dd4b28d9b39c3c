"""Train Erasure."""

import json
import logging
from typing import Any

from comfy.cli_args import args
from comfy_api.latest import io

from ..evaluation.cards import tally
from ..evaluation.compare import Pair, compare, own_prompts
from ..evaluation.decoding import Decode, decoder
from ..evaluation.training_page import ended, in_words, training_page
from ..hypernet.eraser import Eraser
from ..training.frozen import out_of_memory_errors
from ..training.plan import Request
from ..training.presets import CUSTOM, PRESETS, with_preset
from ..training.prompts import TEMPLATES, PromptError, parse_concepts
from ..training.run import train_erasure
from ..training.sampling import Drawing
from ..training.settings import OBJECTIVES, Settings
from .folders import checkpoint_folder, safe_name, training_folder
from .progress import DrawingProgress, Progress, show_page, there_is_a_new_file
from .schema import CATEGORY, Hypernet, advanced, only_links, schema
from .shown import shown

log = logging.getLogger("unhype")

_DEFAULT = Settings()


class TrainErasure(io.ComfyNode):
    """MODEL, CLIP and a list of concepts to an UNHYPE and its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeTrainErasure",
            display_name="Train Erasure",
            category=CATEGORY,
            description="Trains a concept eraser for this model and saves it in models/unhype. Stop it whenever you "
            "like: queue the same settings again and it goes on from its last checkpoint.",
            search_aliases=["erase", "unlearn", "remove concept", "safety", "train hypernet", "concept erasure"],
            is_output_node=True,
            inputs=[*_main_inputs(), *_advanced_inputs(), *_optional_inputs()],
            outputs=[
                Hypernet.Output("unhype", display_name="UNHYPE", tooltip="The eraser, for Apply Concept Erasure."),
                io.Custom("LOSS_MAP").Output("loss_map", display_name="LOSS_MAP", tooltip="For Plot Loss Graph."),
                io.Image.Output("report", display_name="report", tooltip="The run on one page, for Save Image."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, concepts: str | None, preset: str = CUSTOM) -> bool | str:
        if concepts is None:
            return True  # another node gives the list; training checks it
        try:
            parse_concepts(with_preset(preset, "", concepts, "")[1])
        except PromptError as error:
            return f"Train Erasure, 'concepts': {error}"
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        concepts: str,
        preserve: str,
        name: str,
        kind: str,
        clip: Any = None,
        start_from: Eraser | None = None,
        vae: Any = None,
        preset: str = CUSTOM,
        **options: Any,
    ) -> io.NodeOutput:
        sockets = {"model": model, "clip": clip, "start_from": start_from, "vae": vae}
        # A missing CLIP is an error of training's own.
        only_links("Train Erasure", sockets)
        kind, concepts, preserve = with_preset(preset, kind, concepts, preserve)
        decode = decoder(model, vae)
        request = Request(
            concepts=concepts,
            preserve=preserve,
            folder=training_folder(),
            name=safe_name(name),
            checkpoints=checkpoint_folder(),
            start_from=start_from,
            resume=options.pop("resume"),
            checkpoint_every=options.pop("checkpoint_every"),
            preview_every=options.pop("preview_every"),
            settings=Settings(kind=kind, **options),
            file_metadata=_workflow(cls.hidden),
            decode=decode,
        )
        progress = Progress(cls.hidden.unique_id)
        try:
            outcome = train_erasure(model, clip, request, progress)
        except PromptError as error:
            raise PromptError(f"Train Erasure: {error}") from error
        finally:
            progress.close()
        there_is_a_new_file(cls.hidden.unique_id)
        pairs = _thumbnails(model, clip, decode, outcome.eraser, request, cls.hidden.unique_id)
        sheet = training_page(outcome, pairs)
        show_page(cls.hidden.unique_id, sheet, f"{ended(outcome)}\n{tally(pairs)}".strip())
        image, display = shown(cls, sheet, in_words(outcome))
        return io.NodeOutput(outcome.eraser, {"loss": outcome.losses}, image, ui=display)


def _thumbnails(
    model: Any, clip: Any, decode: Decode | None, eraser: Eraser, request: Request, node_id: str | None
) -> list[Pair]:
    """An erased and a retained prompt before and after, unless the user wants no previews; the file is safe by now."""
    if not request.preview_every or decode is None:
        return []
    own = request.settings
    drawing = Drawing(own.sampler_steps, own.guidance, width=own.width, height=own.height)
    progress = DrawingProgress(node_id)
    try:
        return compare(model, clip, eraser, own_prompts(eraser.record, 1, 1), drawing, decode, progress)
    except out_of_memory_errors():
        log.warning("UnHype: no memory for the pictures of the report. Lower 'width' and 'height', or connect no VAE.")
        return []


def _main_inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="The model to train on. It stays as it is."),
        io.Clip.Input("clip", optional=True, tooltip="The CLIP that belongs to the model."),
        io.String.Input(
            "concepts",
            multiline=True,
            default="cat -> tree",
            tooltip="The concepts to erase, one a line: 'concept -> what to draw instead'. Without the arrow a concept "
            "turns into whatever the model draws for an empty prompt. Lines that start with # are ignored.",
        ),
        io.String.Input(
            "preserve",
            multiline=True,
            default="",
            tooltip="Things that must stay as they are, one a line. Several hundred everyday prompts are retained "
            "anyway. Name close relatives of the erased concept here, such as 'tiger' when you erase 'cat'.",
        ),
        io.String.Input("name", default="my_erasure", tooltip="Name of the file in models/unhype."),
        io.Combo.Input(
            "kind",
            options=list(TEMPLATES),
            default=_DEFAULT.kind,
            tooltip="The sort of concepts. It selects the sentences in which they are trained.",
        ),
        io.Int.Input(
            "steps",
            default=_DEFAULT.steps,
            min=1,
            max=100_000,
            tooltip="Training steps. More for many concepts. Training stops by itself when it begins to change prompts "
            "that it should leave alone.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,
            tooltip="The same inputs and seed train the same file on the same kind of machine.",
        ),
    ]


def _advanced_inputs() -> list[Any]:
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
            tooltip="The CFG scale of previews and training pictures. Use the one you generate with. For Flux.1 "
            "and Flux.2 it is the model's own guidance, 3.5 as a rule.",
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
            tooltip="The training method. attention: gives the words of the concept the effect of the replacement in "
            "the model's attention layers; by far the fastest, and it draws no pictures at all. direct: trains on "
            "noisy pictures to draw the replacement; chosen automatically for models that attention doesn't cover. "
            "paper: as the UnHype paper describes it. released: as the program of its authors runs. The last two are "
            "there to compare.",
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


def _optional_inputs() -> list[Any]:
    """Sockets, and what came later: values are saved in the order of the widgets, so a new one goes last."""
    preset = io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        optional=True,
        tooltip="A list to start from. Choosing one here fills 'concepts', 'preserve' and 'kind', for you to change; "
        "'custom' brings back your own text. Training uses the text in 'concepts'. Only if that is empty, as a program "
        "may leave it, training uses the preset's lists and kind.",
    )
    preset.extra_dict = {"presets": {name: chosen._asdict() for name, chosen in PRESETS.items()}}  # for web/js
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
        preset,
    ]


def _workflow(hidden: Any) -> dict[str, str]:
    """The graph that trained a file, so that the file dragged onto the canvas brings it back."""
    if args.disable_metadata:
        return {}
    parts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(part) for name, part in parts.items() if part is not None}

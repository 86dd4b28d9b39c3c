"""Train Erasure."""

from typing import Any

from comfy_api.latest import io

from ..evaluation.decoding import decoder
from ..evaluation.page import to_tensor
from ..evaluation.training_page import example_pairs, in_words, training_page
from ..hypernet.merged import AnyEraser
from ..training.plan import Request
from ..training.presets import CUSTOM, with_preset
from ..training.prompts import PromptError, parse_concepts
from ..training.run import train_erasure
from ..training.settings import Settings
from .folders import checkpoint_folder, encodings_folder, safe_name, training_folder
from .progress import Progress, show_page, there_is_a_new_file
from .running import pace_of, running, workflow
from .schema import CATEGORY, PURPOSES, Hypernet, node_id, only_choices, only_links, schema
from .shown import shown
from .train_inputs import NAME, advanced_inputs, main_inputs, optional_inputs
from .written import fingerprint, remember


class TrainErasure(io.ComfyNode):
    """MODEL, CLIP and a list of concepts to an UNHYPE and its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeTrainErasure",
            display_name="Train Erasure",
            category=CATEGORY,
            description="Trains an eraser for this model and saves it in models/unhype. Stop it whenever you like; "
            "the same settings go on from there.",
            search_aliases=[*PURPOSES, "train hypernet", "train lora"],
            is_output_node=True,
            inputs=[*main_inputs(), *advanced_inputs(), *optional_inputs()],
            outputs=[
                Hypernet.Output("unhype", display_name="UNHYPE", tooltip="The eraser, for Apply Concept Erasure."),
                io.Custom("LOSS_MAP").Output("loss_map", display_name="LOSS_MAP", tooltip="For Plot Loss Graph."),
                io.Image.Output(
                    "report",
                    display_name="report",
                    tooltip="The run on one page with curves and settings, for Save Image.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, concepts: str | None = "", preset: str | None = CUSTOM) -> bool | str:
        if concepts is None or preset is None:
            return True  # another node gives it; `execute` checks it
        try:
            only_choices(cls, preset=preset)
            parse_concepts(with_preset(preset, "", concepts, "")[1])
        except PromptError as error:
            return f"Train Erasure, 'concepts': {error}"
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return fingerprint()

    @classmethod
    def execute(
        cls,
        model: Any,
        concepts: str = "",
        preserve: str = "",
        name: str = NAME,
        kind: str = Settings.kind,
        clip: Any = None,
        start_from: AnyEraser | None = None,
        vae: Any = None,
        preset: str = CUSTOM,
        resume: bool = True,
        checkpoint_every: int = 50,
        preview_every: int = 50,
        **options: Any,
    ) -> io.NodeOutput:
        # A missing CLIP is an error of training's own.
        only_links("Train Erasure", {"model": model, "clip": clip, "start_from": start_from, "vae": vae})
        only_choices(cls, kind=kind, preset=preset)
        node, (kind, concepts, preserve) = node_id(cls), with_preset(preset, kind, concepts, preserve)
        settings = Settings(kind=kind, **options)
        only_choices(cls, objective=settings.objective)
        request = Request(
            concepts=concepts,
            preserve=preserve,
            folder=training_folder(),
            name=safe_name(name),
            checkpoints=checkpoint_folder(),
            encodings=encodings_folder(),
            start_from=start_from,
            resume=resume,
            checkpoint_every=checkpoint_every,
            preview_every=preview_every,
            settings=settings,
            file_metadata=workflow(cls.hidden),
            decode=decoder(model, vae),
        )
        with running("Train Erasure", Progress(node, pace_of(request))) as progress:
            outcome = train_erasure(model, clip, request, progress)
            remember(outcome.path.name)
            there_is_a_new_file(node)  # before the pictures, which an interrupt may end
            pairs = example_pairs(model, clip, outcome.eraser, request, progress.drawing)
        sheet = training_page(outcome, pairs)
        show_page(node, sheet, "Done.")
        _, display = shown(cls, sheet, in_words(outcome))
        report = to_tensor(training_page(outcome, pairs, details=True))
        return io.NodeOutput(outcome.eraser, {"loss": outcome.losses}, report, ui=display)

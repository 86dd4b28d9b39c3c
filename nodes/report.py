"""Erasure Report."""

from contextlib import closing
from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..evaluation.compare import compare, own_prompts, prompts_of
from ..evaluation.decoding import vae_decoder
from ..evaluation.report_page import report_page, report_text
from ..evaluation.similarity import picture_encoder
from ..hypernet.merged import AnyEraser
from ..hypernet.patch import is_erased
from ..training.pace import Pace
from ..training.prompts import PromptError
from ..training.sampling import Drawing
from .progress import DRAWING, PAIR, Progress, show_page
from .schema import CATEGORY, Hypernet, node_id, only_choices, only_links, schema
from .shown import shown

_DEFAULT = Drawing()
_ERASED_BEFORE = "The model already has an eraser on it: 'before' is with that one."


class ErasureReport(io.ComfyNode):
    """MODEL, CLIP, VAE, UNHYPE and prompts to a page of pictures before and after."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeErasureReport",
            display_name="Erasure Report",
            category=CATEGORY,
            description="Checks an eraser: draws prompts with and without it and shows what changed. Use it before "
            "you rely on somebody's file.",
            search_aliases=["erase", "unlearn", "remove concept", "safety", "concept erasure", "compare", "check"],
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                io.Image.Output("report", display_name="report", tooltip="The page, for Save Image."),
                io.String.Output("text", display_name="text", tooltip="The same in words."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        unhype: AnyEraser,
        prompts: str = "",
        sampler_name: str = _DEFAULT.sampler,
        clip_vision: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        only_links("Erasure Report", {"clip_vision": clip_vision}, model=model, clip=clip, vae=vae, unhype=unhype)
        drawing = Drawing(sampler=sampler_name, **settings)
        only_choices(cls, sampler_name=sampler_name, scheduler=drawing.scheduler)
        try:
            texts = prompts_of(prompts)
        except PromptError as error:
            raise PromptError(f"Erasure Report, 'prompts': {error}") from error
        own = {} if texts else own_prompts(unhype.record)
        headings = {text: heading for heading, group in own.items() for text in group}
        texts, node = texts or list(headings), node_id(cls)
        told, encoder = list[str](), picture_encoder(clip_vision)
        with closing(Progress(node, Pace({DRAWING: PAIR * len(texts)}))) as progress:
            report, decode = progress.drawing, vae_decoder(vae)
            pairs = compare(model, clip, unhype, texts, drawing, decode, report, encoder, told.append)
        warnings = [*dict.fromkeys(told), *([_ERASED_BEFORE] if is_erased(model) else [])]
        sheet = report_page(unhype, pairs, warnings, headings)
        show_page(node, sheet, "Done.")
        text = report_text(unhype, pairs, drawing, warnings, headings)
        image, display = shown(cls, sheet, text)
        return io.NodeOutput(image, text, ui=display)


def _inputs() -> list[Any]:
    size: dict[str, Any] = {"min": 64, "max": 2048, "step": 8, "optional": True}
    return [
        io.Model.Input("model", tooltip="The model without the eraser; don't put Apply Concept Erasure in front."),
        io.Clip.Input("clip", tooltip="The CLIP that belongs to the model."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
        Hypernet.Input("unhype", tooltip="From Load UnHype Hypernet or Train Erasure."),
        io.String.Input(
            "prompts",
            multiline=True,
            default="",
            optional=True,
            tooltip="The prompts to draw, one a line. Left empty: the concepts, other wordings, close relatives and "
            "two everyday prompts.",
        ),
        io.Int.Input(
            "steps", default=_DEFAULT.steps, min=1, max=200, optional=True, tooltip="Sampler steps of each picture."
        ),
        io.Float.Input(
            "cfg",
            default=_DEFAULT.cfg,
            min=1.0,
            max=30.0,
            step=0.5,
            optional=True,
            tooltip="The CFG scale: 3.5 as a rule for Flux dev, where it is the model's own guidance, 1 for schnell.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(comfy.samplers.KSampler.SAMPLERS),
            default=_DEFAULT.sampler,
            optional=True,
            tooltip="As in KSampler. With the same settings it draws the same pictures.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            default=_DEFAULT.scheduler,
            optional=True,
            tooltip="As in KSampler.",
        ),
        io.Int.Input(
            "seed",
            default=_DEFAULT.seed,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,
            optional=True,
            tooltip="The noise that every picture starts from.",
        ),
        io.Int.Input("width", default=_DEFAULT.width, tooltip="Use the size the model was made for.", **size),
        io.Int.Input("height", default=_DEFAULT.height, tooltip="Use the size the model was made for.", **size),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="From Load CLIP Vision. Compares each erased picture with the replacement and with the picture "
            "before. Draws one more picture for each.",
        ),
    ]

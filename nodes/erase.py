"""Erase Concept."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..evaluation.sentences import erases
from ..hypernet.merging import merge
from ..hypernet.patch import apply_erasure
from ..training.parts import in_parts, trained
from ..training.plan import Request
from ..training.prompts import TEMPLATES, PromptError, parse_concepts
from ..training.run import Outcome
from ..training.settings import Settings
from .folders import checkpoint_folder, encodings_folder, safe_name, training_folder
from .progress import NodeText, Progress, there_is_a_new_file
from .running import pace_of, running, workflow
from .schema import APPLIED, CATEGORY, advanced, node_id, only_choices, only_links, schema, strength_input
from .written import fingerprint, remember

_NAME = "Erase Concept"
_KIND = Settings.kind


class EraseConcept(io.ComfyNode):
    """MODEL, CLIP and a list to a MODEL that can't draw what is in it. Each line is an eraser of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="UnHypeEraseConcept",
            display_name=_NAME,
            category=CATEGORY,
            description="Makes a model unable to draw what you write here; other prompts stay the same. The first run "
            "trains, later ones find it in models/unhype.",
            search_aliases=[*APPLIED],
            inputs=[
                io.Model.Input("model", tooltip="The model to protect. The one you connect here stays as it is."),
                io.Clip.Input("clip", tooltip="The CLIP that belongs to the model."),
                io.String.Input(
                    "concepts",
                    multiline=True,
                    default="cat -> tree",
                    optional=True,
                    tooltip="What to erase, one a line: 'cat, kitten -> tree'. After the arrow: what is drawn instead. "
                    "Put a name with a comma in quotes.",
                ),
                strength_input(
                    "How far the erasure goes. 0 changes and trains nothing, 1 erases fully, more may erase stubborn "
                    "wordings and spoil pictures."
                ),
                advanced(
                    io.Combo.Input,
                    "kind",
                    options=list(TEMPLATES),
                    default=_KIND,
                    optional=True,
                    tooltip="The sort of concepts, which selects their training sentences. For several sorts, put one "
                    "Erase Concept after the other.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the erasure on it.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, concepts: str | None = "") -> bool | str:
        if concepts is None:
            return True  # another node gives it; `execute` checks it
        try:
            parse_concepts(concepts)
        except PromptError as error:
            return f"{_NAME}, 'concepts': {error}"
        return True

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return fingerprint()

    @classmethod
    def execute(
        cls, model: Any, clip: Any, concepts: str = "", strength: float = 1.0, kind: str = _KIND
    ) -> io.NodeOutput:
        only_links(_NAME, model=model, clip=clip)
        only_choices(cls, kind=kind)
        if strength <= 0:
            return io.NodeOutput(model)
        node = node_id(cls)
        try:
            lines = in_parts(concepts, 1)
        except PromptError as error:
            raise PromptError(f"{_NAME}: {error}") from error
        outcomes: list[Outcome] = []
        for number, line in enumerate(lines):
            request = Request(
                concepts=line,
                preserve="",
                folder=training_folder(),
                name=safe_name(parse_concepts(line)[0][0]),
                checkpoints=checkpoint_folder(),
                encodings=encodings_folder(),
                preview_every=0,
                settings=Settings(kind=kind),
                file_metadata=workflow(cls.hidden),
            )
            title = f"{number + 1} of {len(lines)}: {line}" if len(lines) > 1 else ""
            report = Progress(node, pace_of(request), (number, len(lines)), title, pictures=False)
            with running(_NAME, report) as progress:
                outcomes.append(trained(model, clip, request, progress))
            remember(outcomes[-1].path.name)
        there_is_a_new_file(node)
        text = NodeText(node)
        eraser = merge([outcome.eraser for outcome in outcomes], ", ".join(one.eraser.name for one in outcomes[:3]))
        text(f"{erases(eraser.record)} {_found(outcomes)}", True)
        return io.NodeOutput(apply_erasure(model, eraser, strength, tell=lambda line: text(line, True), joins=True))


def _found(outcomes: Sequence[Outcome]) -> str:
    """Which files are new, and that the others were there."""
    new = [outcome.path.name for outcome in outcomes if outcome.reason != "already trained"]
    return f"Saved as {', '.join(new)}." if new else "Trained before."

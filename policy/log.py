"""The lines of a policy in ComfyUI's log: each sampling and each refusal, with the graph's id."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from comfy_execution.utils import get_executing_context

from ..hypernet.errors import UserError
from ..hypernet.targets import recognise
from .file import PolicyError
from .rewrite import texts_of

log = logging.getLogger("unhype")


class Log:
    """Writes the lines. texts: whether they hold the texts of the graph, which may be its author's secrets."""

    def __init__(self, texts: bool = False) -> None:
        self.texts = texts

    def sampling(self, model: Any, erasers: Sequence[str]) -> None:
        """A line about a model that starts to draw with these erasers."""
        with_what = ", ".join(erasers) or "no eraser, as the policy allows"
        log.info("UnHype policy: %s: %s draws with %s.%s", _place(), _kind(model), with_what, self._texts())

    @contextmanager
    def refusals(self, model: Any) -> Generator[None]:
        """While open, a `PolicyError` leaves a line."""
        try:
            yield
        except PolicyError as error:
            log.warning("UnHype policy: %s: %s is refused. %s%s", _place(), _kind(model), error, self._texts())
            raise

    def refused_graph(self, prompt_id: Any, reason: str) -> None:
        """A line about a graph that isn't looked at."""
        log.warning("UnHype policy: graph %s is refused. %s", prompt_id or "without an id", reason)

    def _texts(self) -> str:
        return "" if not self.texts else f" Its texts: {' | '.join(_texts_of_running_graph())}"


def _place() -> str:
    """The graph and the node that run, as ids."""
    context = get_executing_context()
    return "outside of a graph" if context is None else f"graph {context.prompt_id}, node {context.node_id}"


def _kind(model: Any) -> str:
    base_model = getattr(model, "model", model)
    try:
        return recognise(base_model).title
    except UserError:
        return type(base_model).__name__


def _texts_of_running_graph() -> list[str]:
    from server import PromptServer  # scripts have none

    context, instance = get_executing_context(), PromptServer.instance
    running, _ = instance.prompt_queue.get_current_queue()
    graphs = [item[2] for item in running if context is not None and item[1] == context.prompt_id]
    return [text.replace("\n", " ") for graph in graphs for text in texts_of(graph)]

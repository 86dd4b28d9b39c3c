"""Every graph on its way into ComfyUI's queue: rewritten so that its models pass the policy, or refused."""

import logging
from typing import Any

from server import PromptServer

import nodes

from .file import PolicyError
from .guard import Guard
from .rewrite import NodeTypes, refused, rewritten

log = logging.getLogger("unhype")


def types_of(class_type: str) -> NodeTypes | None:
    """The types of a node class as this ComfyUI has it, None for one that it doesn't have."""
    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    if node is None:
        return None
    declared = node.INPUT_TYPES()
    groups = (declared.get(group, {}) for group in ("required", "optional"))
    return NodeTypes(node.RETURN_TYPES, {name: entry[0] for group in groups for name, entry in group.items()})


class Queued:
    """Called with each request to queue a graph, before ComfyUI validates it."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def set(self) -> None:
        """Have ComfyUI call it. Raises `PolicyError` where that isn't possible.

        A script, such as the training command, has no server and no graphs; the guard stands there all the same.
        """
        running: Any = getattr(PromptServer, "instance", None)
        if running is None:
            log.warning("UnHype policy: no server runs here. Models without the erasers of the policy draw nothing.")
            return
        if not hasattr(running, "add_on_prompt_handler") or not hasattr(running, "trigger_on_prompt"):
            raise PolicyError("this ComfyUI has no PromptServer.add_on_prompt_handler, where graphs could be rewritten")
        running.add_on_prompt_handler(self)

    def __call__(self, request: Any) -> Any:
        """The request with its graph rewritten, or with one that is refused: ComfyUI goes on after an exception."""
        if not isinstance(request, dict) or "prompt" not in request:
            return request  # ComfyUI refuses it
        try:
            return {**request, "prompt": self._rewritten(request["prompt"])}
        except Exception as error:
            if isinstance(error, PolicyError):
                reason = str(error)
            else:
                log.exception("UnHype policy: a graph could not be rewritten")
                reason = f"This server draws no graph that it can't check, and this one could not be read ({error!r})."
            self.guard.log.refused_graph(request.get("prompt_id"), reason)
            return refused(request, reason)

    def _rewritten(self, prompt: Any) -> Any:
        if not self.guard.hold():
            self.guard.rules.problem = (
                "another node pack has replaced the functions that check models. Take out the one that was loaded last"
            )
        self.guard.rules.check_whole()
        manager = getattr(PromptServer.instance, "node_replace_manager", None)
        if manager is not None:
            manager.apply_replacements(prompt)  # as ComfyUI is about to: the types are those of the new nodes
        return rewritten(prompt, types_of)

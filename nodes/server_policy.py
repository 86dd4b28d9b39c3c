"""The nodes that a policy puts into graphs. They are there only where a policy is enforced."""

from typing import Any

from comfy_api.latest import io

from ..policy.enforced import protected
from ..policy.file import PolicyError
from ..policy.rewrite import POLICY_NODE, REFUSAL_NODE
from .schema import CATEGORY, schema


class ServerPolicy(io.ComfyNode):
    """A MODEL to the MODEL that may draw here."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=POLICY_NODE,
            display_name="Server Policy",
            category=CATEGORY,
            description="Put into every graph by the owner of this server: applies the erasers of the policy.",
            is_dev_only=True,
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(protected(model))


class ServerRefusal(io.ComfyNode):
    """Ends a graph that is refused, with the reason."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id=REFUSAL_NODE,
            display_name="Refused by Server Policy",
            category=CATEGORY,
            description="In place of a graph that the policy of this server refuses.",
            is_dev_only=True,
            is_output_node=True,
            inputs=[io.String.Input("reason")],
            outputs=[],
        )

    @classmethod
    def execute(cls, reason: str) -> io.NodeOutput:
        raise PolicyError(reason)

"""A policy set to work, once, when ComfyUI loads the pack. Without a policy file nothing of this runs."""

import logging
from pathlib import Path

from ..hypernet.errors import UserError
from .enforced import enforce
from .file import Policy, PolicyError, read_policy
from .guard import Guard
from .log import Log
from .place import VARIABLE, is_kept_from_visitors
from .queued import Queued
from .rules import Rules, rules_of

log = logging.getLogger("unhype")

_OUTSIDE = (
    "Not covered: node packs that bring a pipeline of their own (--disable-all-custom-nodes with "
    "--whitelist-custom-nodes keeps them out), nodes that draw on other servers (--disable-api-nodes), a LoRA that "
    "draws a concept under another name, pictures as prompts."
)


def start(path: Path) -> None:
    """Enforce the policy in a file from now on.

    With a broken file or eraser nothing is drawn, and the reason is shown. Raises `PolicyError` where this ComfyUI
    can't be made to keep a policy.
    """
    policy, rules = Policy(()), Rules(())
    try:
        if not is_kept_from_visitors(path):
            raise PolicyError(
                f"this ComfyUI may let visitors write to {path.parent.name}. Update it, or name a file elsewhere in "
                f"{VARIABLE}"
            )
        policy = read_policy(path)
        rules = rules_of(policy)
    except UserError as error:
        rules.problem = str(error).rstrip(".")
    guard = Guard(rules, Log(policy.log_prompts))
    guard.set()
    Queued(guard).set()
    enforce(rules)
    if rules.problem is not None:
        log.error("UnHype policy: %s: nothing is drawn, since %s.", path, rules.problem)
        return
    log.info("UnHype policy: %s: %s", path, _summary(policy, rules))


def _summary(policy: Policy, rules: Rules) -> str:
    listed = "; ".join(
        f"'{rule.eraser.name}' on {rule.family.title} (erases {', '.join(c for c, _ in rule.eraser.record.concepts)}; "
        f"strength {rule.strength:g}, unknown prompts {rule.unknown})"
        for rule in rules.rules
    )
    others = "may draw without an eraser" if policy.other_models == "allow" else "are refused"
    replaced = "Replaced in ComfyUI: comfy.sampler_helpers.prepare_sampling, BaseModel.apply_model."
    return f"every graph draws with {listed}. Models of other families {others}. {replaced} {_OUTSIDE}"

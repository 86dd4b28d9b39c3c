"""The policy file: what its owner may say in it, read once at start.

JSON. Everything but the list of erasers has a default, and nothing else may be in it, since a misspelt key would
otherwise be a rule that isn't kept.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hypernet.deltas import POLICIES
from ..hypernet.errors import UserError
from ..hypernet.record import short

OTHER_MODELS = ("refuse", "allow")
_MOST_STRENGTH = 3.0


class PolicyError(UserError, ValueError):
    """The policy file isn't one that can be kept, or a graph doesn't keep to it."""


@dataclass(frozen=True)
class EraserEntry:
    """One eraser of the list. file: where it lies. strength, unknown_prompts: as in Apply Concept Erasure."""

    file: Path
    strength: float = 1.0
    unknown_prompts: str = "strict"


@dataclass(frozen=True)
class Policy:
    """A policy file.

    erasers: each for the models of its own family. other_models: whether models of other families may draw.
    log_prompts: whether the log holds the texts of a graph that draws.
    """

    erasers: tuple[EraserEntry, ...]
    other_models: str = OTHER_MODELS[0]
    log_prompts: bool = False


def read_policy(path: Path) -> Policy:
    """The policy in a file. Raises `PolicyError` for a file that is missing, unreadable or says anything unknown."""
    try:
        text = path.read_text("utf-8-sig")  # editors on Windows put a mark in front
    except FileNotFoundError as error:
        raise PolicyError(f"there is no file {path.name}") from error
    except (OSError, UnicodeError) as error:
        raise PolicyError(f"{path.name} can't be read ({short(error)})") from error
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PolicyError(f"{path.name} is no JSON ({short(error)})") from error
    return parsed(content, path.parent)


def parsed(content: Any, folder: Path) -> Policy:
    """The `Policy` of a file's JSON value. folder: where the file lies, and relative names of erasers begin."""
    fields = _fields(content, "the policy", ("erasers", "other_models", "log_prompts"))
    listed = fields.get("erasers")
    if not isinstance(listed, list) or not listed:
        raise PolicyError("'erasers' must be a list with at least one eraser in it")
    erasers = tuple(_entry(entry, number, folder) for number, entry in enumerate(listed, 1))
    twice = [entry.file.name for entry in erasers if sum(entry.file == other.file for other in erasers) > 1]
    if twice:
        raise PolicyError(f"'{twice[0]}' is listed twice")
    other_models = fields.get("other_models", OTHER_MODELS[0])
    _one_of("other_models", other_models, OTHER_MODELS)
    log_prompts = fields.get("log_prompts", False)
    if not isinstance(log_prompts, bool):
        raise PolicyError("'log_prompts' must be true or false")
    return Policy(erasers, other_models, log_prompts)


def _entry(entry: Any, number: int, folder: Path) -> EraserEntry:
    where = f"eraser {number}"
    fields = _fields(entry, where, ("file", "strength", "unknown_prompts"))
    name = fields.get("file")
    if not isinstance(name, str) or not name.strip():
        raise PolicyError(f"{where}: 'file' must be the name of an eraser file beside the policy, or its whole path")
    path = Path(name.strip()).expanduser()
    strength = fields.get("strength", 1.0)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= _MOST_STRENGTH:
        raise PolicyError(f"{where}: 'strength' must be a number above 0 and up to {_MOST_STRENGTH:g}")
    unknown = fields.get("unknown_prompts", "strict")
    _one_of(f"{where}: unknown_prompts", unknown, POLICIES)
    return EraserEntry(path if path.is_absolute() else folder / path, float(strength), unknown)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises `PolicyError` for a key that is there twice, of which JSON takes the last."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise PolicyError(f"'{short(key)}' is there twice")
    return dict(pairs)


def _fields(value: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PolicyError(f"{what} must be an object in braces")
    for key in value:
        if key not in known:
            raise PolicyError(f"{what}: '{short(key)}' is unknown. It may hold {', '.join(known)}")
    return value


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PolicyError(f"'{name}' must be {' or '.join(known)}, not {short(repr(value))}")

"""What a source file says of itself, without running it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from benchmarks.environment import ROOT


def _nodes(tree: ast.AST, typing: bool) -> Iterator[ast.AST]:
    """The nodes of a tree; without `typing`, those that only a type checker sees are left out."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if typing or not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _nodes(child, typing)


def imports_of(path: Path, typing: bool = True) -> Iterator[str]:
    """The modules that a file imports, anywhere in it, with the pack's own as `.room.module`.

    typing: with those imported under TYPE_CHECKING.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in _nodes(ast.parse(path.read_text("utf-8")), typing):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            base = ["", *package[: len(package) + 1 - node.level]]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield ".".join([*base, name])

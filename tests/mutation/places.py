"""Places of a module where a change is no change of behaviour: left out before anything is drawn.

The rule is syntactic, so that it can be read off a file: annotations, ``if TYPE_CHECKING``, protocols, ``__repr__``,
f-strings, the arguments of a ``raise`` (what an error says), the marks ``*`` and ``/`` between parameters, and a
module's constants that nothing reads.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

Span = tuple[tuple[int, int], tuple[int, int]]
"""Begin and end, each (line from 1, column from 0)."""


class Places:
    """What is where in one module.

    Parameters
    ----------
    source : str
    read : set of str
        Names that any module of the package reads.
    """

    def __init__(self, source: str, read: set[str]) -> None:
        tree = ast.parse(source)
        self.lines = source.splitlines()
        self._silent = [_span(node) for node in _silent(tree, read)]
        self._definitions = list(_definitions(tree))

    def is_silent(self, start: tuple[int, int], end: tuple[int, int]) -> bool:
        """Whether a change between `start` and `end` changes nothing that a program does."""
        line = self.lines[end[0] - 1]
        if line[start[1] : end[1]] in ("*", "/") and line[end[1] : end[1] + 1] in (",", ")"):
            return True
        return any(first <= start and end <= last for first, last in self._silent)

    def function_at(self, start: tuple[int, int]) -> str:
        """Qualified name of the innermost function or class there; empty in the module itself."""
        inside = [name for (first, last), name in self._definitions if first <= start < last]
        return inside[-1] if inside else ""


def names_read(sources: Iterable[str]) -> set[str]:
    """Names and attributes that are read anywhere in `sources`."""
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def _silent(tree: ast.Module, read: set[str]) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns
        if isinstance(node, ast.JoinedStr) or _is_only_said(node):
            yield node
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from node.exc.args
    for statement in tree.body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id not in read:
            yield statement


def _is_only_said(node: ast.AST) -> bool:
    """``__repr__``, or what only a type checker reads: ``if TYPE_CHECKING``, a protocol."""
    if isinstance(node, ast.ClassDef):
        return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef) and node.name == "__repr__"


def _definitions(tree: ast.AST, inside: str = "") -> Iterator[tuple[Span, str]]:
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{node.name}".lstrip(".")
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            yield ((first, 0), _span(node)[1]), name
        yield from _definitions(node, name)


def _span(node: ast.AST) -> Span:
    at = ast.copy_location(ast.Pass(), node)
    return (at.lineno, at.col_offset), (at.end_lineno or at.lineno, at.end_col_offset or at.col_offset)

"""From a place such as ``lazypv.host.walk:destroy_range`` to its file and line, without importing the module.

Only the top package is looked up by the import system, which runs none of its code; from there on it is paths and
syntax trees. To import the place itself would bring in numba.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from lazypv.errors import UsageError


def locate(place: str) -> str:
    """File and line of `place`, such as ``"lazypv/host/walk.py:42"``; the path begins with the package's name.

    Raises
    ------
    UsageError
        There is no such module, or nothing of that name in it.
    """
    module, _, qualname = place.partition(":")
    path = source_file(module)
    line = _line_of(ast.parse(path.read_bytes()), qualname)
    if line is None:
        raise UsageError(f"{place}: {path.name} defines no {qualname!r}")
    depth = module.count(".") + (path.name == "__init__.py")
    return f"{path.relative_to(path.parents[depth]).as_posix()}:{line}"


def source_file(module: str) -> Path:
    """Where the source of `module` lies.

    Raises
    ------
    UsageError
        There is no such module.
    """
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package) if package else None
    for root in (spec and spec.submodule_search_locations) or ():
        inside = Path(root, *rest)
        for path in (inside.with_suffix(".py"), inside / "__init__.py"):
            if path.is_file():
                return path
    raise UsageError(f"there is no module {module!r}")


def _line_of(tree: ast.Module | ast.ClassDef, qualname: str) -> int | None:
    """Line on which the last part of `qualname` is defined inside `tree`."""
    first, _, rest = qualname.partition(".")
    for node in tree.body:
        if first in _names(node):
            if not rest:
                return node.lineno
            return _line_of(node, rest) if isinstance(node, ast.ClassDef) else None
    return None


def _names(node: ast.stmt) -> list[str]:
    """Names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        return []
    return [target.id for target in targets if isinstance(target, ast.Name)]

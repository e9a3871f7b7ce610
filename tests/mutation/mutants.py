"""Mutants: all that there can be, a draw of them that edits elsewhere do not change, one applied to a copy."""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from .places import Places, names_read

Place = tuple[str, str, str, int, int, int]
ROOMS = ("host", "ultravisor")
"""Packages of lazypv whose code is mutated."""
ELSEWHERE = ("ultravisor/snapshots.py", "ultravisor/restores.py")
"""Not the series: neither an explored world nor a reboot or shutdown saves a snapshot. tests/snapshot look at it."""


@dataclass(frozen=True, order=True)
class Key:
    """What names a mutant as long as its line stays as it is.

    Attributes
    ----------
    module : str
        ``host/exit.py``
    function : str
        Qualified name of the innermost function or class; empty in the module itself.
    line : str
        Text of the line, without indentation.
    operator : str
        Cosmic Ray's name of the change.
    occurrence : int
        Which of the places where that operator can change this very line, counted through the function.
    """

    module: str
    function: str
    line: str
    operator: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.module}, {self.function or 'module'}, {self.operator} {self.occurrence} of `{self.line}`"


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes
    ----------
    place : tuple
        What is changed, whatever it becomes: module, function, text of the line, columns, which of equal lines.
    index : int
        Which of all places of the module where the operator can be applied.
    """

    key: Key
    place: Place
    lineno: int
    index: int

    def source(self, package: Path) -> str:
        """The changed module of `package`, the folder of lazypv."""
        changed = mutate_code((package / self.key.module).read_text(), _operators()[self.key.operator], self.index)
        if changed is None:
            raise LookupError(f"{self.key} is no mutant of {package}")
        return str(changed)

    def change(self, package: Path) -> str:
        """What it does, as the new text of its line."""
        before, after = (package / self.key.module).read_text(), self.source(package)
        added = [
            line[2:].strip() for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:2] == "+ "
        ]
        return " ".join(added) or "(gone)"


def all_mutants(package: Path) -> list[Mutant]:
    """Every mutant of host and Ultravisor code in `package` that can change what the program does."""
    read = names_read(path.read_text() for path in package.rglob("*.py"))
    found: list[Mutant] = []
    for room in ROOMS:
        for path in sorted((package / room).glob("*.py")):
            if f"{room}/{path.name}" in ELSEWHERE:
                continue
            found += _mutants_of(path.read_text(), f"{room}/{path.name}", read)
    return found


def draw(mutants: list[Mutant], count: int, seed: int, package: Path) -> list[Mutant]:
    """`count` of them, no two at one place, each place as likely as any other.

    Where a place stands depends on `seed` and on itself alone: a smaller draw is the beginning of a larger one, and
    stays what it is when other lines change. What would be no Python any more is passed over.
    """
    at: dict[Place, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        at[mutant.place].append(mutant)
    ranked = sorted(at, key=lambda place: _rank(seed, place))
    found = (_first_program(sorted(at[place], key=lambda mutant: _rank(seed, mutant.key)), package) for place in ranked)
    return list(islice((mutant for mutant in found if mutant is not None), count))


def _rank(seed: int, thing: Place | Key) -> bytes:
    return hashlib.sha256(repr((seed, thing)).encode()).digest()


def _first_program(mutants: list[Mutant], package: Path) -> Mutant | None:
    return next((mutant for mutant in mutants if _is_python(mutant.source(package))), None)


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _mutants_of(source: str, module: str, read: set[str]) -> Iterator[Mutant]:
    places = Places(source, read)
    nodes = list(ast_nodes(get_ast(source)))
    seen: Counter[tuple[str, str, str]] = Counter()
    equal_lines: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, operator in _operators().items():
        positions = (span for node in nodes for span in operator.mutation_positions(node))
        for index, (start, end) in enumerate(positions):
            function, text = places.function_at(start), places.lines[start[0] - 1]
            line = text.strip()
            occurrence = seen[function, line, name]
            seen[function, line, name] += 1
            equal = equal_lines[function, line]
            if start[0] not in equal:
                equal.append(start[0])
            indent = len(text) - len(text.lstrip())
            place = (module, function, line, start[1] - indent, end[1] - indent, equal.index(start[0]))
            if not places.is_silent(start, end):
                yield Mutant(Key(module, function, line, name, occurrence), place, start[0], index)


@cache
def _operators() -> dict[str, Any]:
    """Cosmic Ray's operators that need no arguments, by name."""
    kinds = {name: get_operator(name) for name in sorted(operator_names())}
    return {name.removeprefix("core/"): kind() for name, kind in kinds.items() if not kind.arguments()}

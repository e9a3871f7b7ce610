"""Traces in files: one JSON object a line, the first of which says what was run. `docs/traces.md` has the format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lazypv._version import __version__
from lazypv.clocks.trace import END, KINDS, Line
from lazypv.errors import LazyPVError, UsageError
from lazypv.explore.scenarios import scenario
from lazypv.explore.switches import Switches
from lazypv.files import replaced_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from lazypv.explore.world import World

SCHEMA: Final = "lazypv.trace/1"
OPERATIONS: Final = frozenset({"Bulk", "Call"})
MOST_PAGES: Final = 8
_COUNTS: Final = ("done", "noop", "busy", "refused")
_ERROR: Final = {"error": str}
_ANSWER: Final = {"answer": object}


class TraceError(LazyPVError):
    """A file that is no trace, or one of another version; says which line, and what is wrong with it."""

    def __init__(self, path: object, line: int, problem: str) -> None:
        super().__init__(f"{path}: line {line}: {problem}")


@dataclass(frozen=True)
class Setting:
    """What was run: the first line of a trace."""

    scenario: str
    pages: int
    switches: Switches

    def build(self) -> World:
        """Its world, ready to be run any number of times.

        Raises
        ------
        UsageError
            There is no such scenario, size or switch.
        """
        of = scenario(self.scenario)
        least = max(2, of.shape.sync_below)
        if not least <= self.pages <= MOST_PAGES:
            raise UsageError(f"{self.pages} pages are refused: {self.scenario} takes {least} to {MOST_PAGES}")
        return self.switches.build(of, self.pages)

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        what = {"scenario": self.scenario, "pages": self.pages, "switches": self.switches.as_object()}
        return {"schema": SCHEMA, "version": __version__, **what}


@dataclass(frozen=True)
class TraceFile:
    """A trace: what was run, and the steps in the order in which they took effect."""

    setting: Setting
    lines: list[Line]

    def text(self) -> str:
        """As it stands in a file."""
        return "".join(f"{json.dumps(each)}\n" for each in (self.setting.as_object(), *self.lines))

    def save(self, path: Path) -> None:
        """Write it."""
        with replaced_atomically(path) as file:
            file.write(self.text().encode())

    @classmethod
    def load(cls, path: Path) -> TraceFile:
        """Read one.

        Raises
        ------
        TraceError
            No trace, or one of another version.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TraceError(path, 1, "is not text") from error
        found = [_object(path, number, line) for number, line in enumerate(text.splitlines(), 1)]
        if not found:
            raise TraceError(path, 1, "the file is empty, a header was expected")
        setting = _setting(path, found[0])
        for number, line in enumerate(found[1:], 2):
            problem = _problem_with(line)
            if problem:
                raise TraceError(path, number, problem)
        return cls(setting, found[1:])


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise TraceError(path, number, f"is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise TraceError(path, number, f"an object was expected, not {line[:40]}")
    return found


def _setting(path: Path, header: dict[str, Any]) -> Setting:
    if header.get("schema") != SCHEMA:
        raise TraceError(path, 1, f"schema {header.get('schema')!r} is not {SCHEMA!r}")
    try:
        name, pages, switches = header["scenario"], header["pages"], header["switches"]
        chosen = Switches(str(switches["preset"]), _names(switches["without"]), _names(switches["defects"]))
    except (KeyError, TypeError) as error:
        raise TraceError(path, 1, f"the header lacks something, or has it in another form: {error!r}") from error
    if not isinstance(name, str) or type(pages) is not int:
        raise TraceError(path, 1, f"scenario {name!r} of {pages!r} pages: a name and a number were expected")
    return Setting(name, pages, chosen)


def _names(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise TypeError(f"{found!r} is not a list of names")
    return tuple(found)


_FORMS: Final[dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]] = {
    "Acquire": [({"shared": bool}, _ERROR)],
    "Release": [({"shared": bool}, _ERROR)],
    "Touch": [({"write": bool}, _ERROR)],
    "Alloc": [(_ANSWER, {}), (_ERROR, {})],
    "Wait": [({}, _ERROR)],
    "Spawn": [(_ANSWER, {}), (_ERROR, {})],
}
"""Of each kind of step the fields that a line must have, and those that it may have, besides actor, kind and what."""
_FORMS_OF_OPERATIONS: Final[dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]]] = {
    ("Bulk", "begin"): [({"pages": list}, {})],
    ("Bulk", "end"): [({"answer": dict}, {}), (_ERROR, {})],
    ("Bulk", "resume"): [({}, _ERROR)],
    ("Call", "begin"): [({}, {})],
    ("Call", "end"): [(_ANSWER, {}), (_ERROR, {})],
    ("Call", "resume"): [({}, _ERROR)],
}


def _problem_with(line: Line) -> str:
    """What is wrong with the form of a line; empty if nothing is."""
    kind = line.get("kind")
    if not isinstance(line.get("actor"), str):
        return "names no actor"
    if kind == END:
        return "" if _fits(line, {"actor": str, "kind": str}, _ERROR) else f"an {END} has nothing but an error"
    if kind not in KINDS.values():
        return f"kind {kind!r} is none of {', '.join([*KINDS.values(), END])}"
    common = {"actor": str, "kind": str, "what": str}
    forms = _FORMS.get(str(kind), [])
    if kind in OPERATIONS:
        common["at"] = str
        forms = _FORMS_OF_OPERATIONS.get((str(kind), str(line.get("at"))), [])
    if not any(_fits(line, {**common, **must}, may) for must, may in forms):
        return f"is not how a {kind} is written"
    if kind == "Bulk" and not _numbers_fit(line):
        return "pages, codes and counts are whole numbers"
    return ""


def _fits(line: Line, must: dict[str, Any], may: dict[str, Any]) -> bool:
    fields = {**must, **may}
    return must.keys() <= line.keys() <= fields.keys() and all(isinstance(line[each], fields[each]) for each in line)


def _numbers_fit(line: Line) -> bool:
    answer = line.get("answer", {"rc": [], **dict.fromkeys(_COUNTS, 0)})
    if answer.keys() != {"rc", *_COUNTS} or not isinstance(answer["rc"], list):
        return False
    numbers = [*line.get("pages", []), *answer["rc"], *(answer[each] for each in _COUNTS)]
    return all(type(each) is int for each in numbers)

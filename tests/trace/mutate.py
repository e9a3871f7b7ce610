"""One step of a trace dropped, swapped or altered.

What comes out is still a trace in form: whoever reads it has to look at what it says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lazypv.clocks.trace import END, Line

OTHER_CODES = (0x0000, 0x0001, 0x0103, 0x010A, 0x0F01, 0xFFFF)


@dataclass(frozen=True)
class Mutant:
    """A trace with one step that is not as it was: `kind` says how, `at` which line, not counting the header."""

    kind: str
    at: int
    lines: list[Line]


def mutated(lines: list[Line], kind: str, chance: random.Random) -> Mutant:
    """One mutant of `kind`, which is one of `KINDS`; never the trace itself."""
    while True:
        mutant = KINDS[kind](lines, chance)
        if mutant is not None and mutant.lines != lines:
            return mutant


def dropped(lines: list[Line], chance: random.Random) -> Mutant:
    """A line is left out."""
    at = chance.randrange(len(lines))
    return Mutant("dropped", at, lines[:at] + lines[at + 1 :])


def swapped(lines: list[Line], chance: random.Random) -> Mutant:
    """A line and the next one change places, whoever they belong to."""
    return _swapped_at(lines, chance.randrange(len(lines) - 1), "swapped")


def crossed(lines: list[Line], chance: random.Random) -> Mutant | None:
    """A line and the next one, which is another actor's, change places."""
    borders = [at for at in range(len(lines) - 1) if lines[at]["actor"] != lines[at + 1]["actor"]]
    return _swapped_at(lines, chance.choice(borders), "crossed") if borders else None


def _swapped_at(lines: list[Line], at: int, kind: str) -> Mutant:
    return Mutant(kind, at, [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])


def altered(lines: list[Line], chance: random.Random) -> Mutant | None:
    """A line says something else: another actor, lock or call, page, flag, or answer."""
    at = chance.randrange(len(lines))
    line = lines[at]
    possible = [change for field, change in CHANGES.items() if field in line]
    changed = chance.choice(possible)(line, lines, chance)
    return None if changed is None else Mutant("altered", at, [*lines[:at], {**line, **changed}, *lines[at + 1 :]])


def _other_actor(line: Line, lines: list[Line], chance: random.Random) -> Line | None:
    others = sorted({each["actor"] for each in lines} - {line["actor"]})
    return {"actor": chance.choice(others)} if others else None


def _other_name(line: Line, lines: list[Line], chance: random.Random) -> Line:
    others = sorted({each["what"] for each in lines if each["kind"] != END} - {line["what"]})
    return {"what": chance.choice(others)}


def _other_page(line: Line, _lines: list[Line], chance: random.Random) -> Line | None:
    pages = list(line["pages"])
    if not pages:
        return None
    pages[chance.randrange(len(pages))] += chance.choice((-1, 1))
    return {"pages": pages}


def _other_flag(field: str) -> Callable[[Line, list[Line], random.Random], Line]:
    return lambda line, _lines, _chance: {field: not line[field]}


def _other_answer(line: Line, _lines: list[Line], chance: random.Random) -> Line:
    return {"answer": _other(line["answer"], chance)}


def _other(answer: Any, chance: random.Random) -> Any:
    """The same with one value changed."""
    if isinstance(answer, dict):
        field = chance.choice(sorted(answer))
        return {**answer, field: _other(answer[field], chance)}
    if isinstance(answer, list) and answer:
        at = chance.randrange(len(answer))
        return [*answer[:at], _other(answer[at], chance), *answer[at + 1 :]]
    if isinstance(answer, bool) or answer is None:
        return None if answer else True
    if isinstance(answer, int):
        return chance.choice([each for each in (*OTHER_CODES, answer + 1) if each != answer])
    return [1] if isinstance(answer, list) else f"{answer} 2"


CHANGES = {
    "actor": _other_actor,
    "what": _other_name,
    "pages": _other_page,
    "shared": _other_flag("shared"),
    "write": _other_flag("write"),
    "answer": _other_answer,
}
KINDS = {"dropped": dropped, "swapped": swapped, "altered": altered, "crossed": crossed}

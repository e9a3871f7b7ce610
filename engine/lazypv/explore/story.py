"""A counterexample as a story: who did what, in the field's words, and what it broke."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazypv.clocks.explore import Taken
    from lazypv.explore.search import Broken

_SETTING = ("take ", "release ", "go on after ")
"""Steps that say how, not what: left out of the story, kept in the schedule."""


def story(broken: Broken) -> list[str]:
    """Numbered lines; the last one says what is broken, and by the steps of whom."""
    told = [taken for taken in broken.steps if taken.fault or not taken.step.startswith(_SETTING)]
    lines = []
    for (actor, step, fault), group in groupby(told, key=lambda taken: (taken.actor, taken.step, taken.fault)):
        lines.append(_line(actor, step, fault, list(group)))
    actors = list(dict.fromkeys(taken.actor for taken in told[-2:]))
    lines.append(f"invariant {broken.violation.number} is broken, {' against '.join(actors)}: {broken.violation.text}")
    return [f"{number}. {line}" for number, line in enumerate(lines, 1)]


def _line(actor: str, step: str, fault: str, group: list[Taken]) -> str:
    pages = [page for taken in group for page in taken.pages]
    which = f" ({', '.join(map(str, pages))})" if pages else f" {len(group)} times" if len(group) > 1 else ""
    answers = list(dict.fromkeys(taken.answer for taken in group if taken.answer))
    said = f": {', '.join(answers)}" if answers else ""
    return f"{actor}: {step}{which}{f' fails, {fault}' if fault else said}"

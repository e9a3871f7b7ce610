"""A counterexample as a story: who did what, in the field's words, which steps raced, and what that broke.

Told are calls, work on pages, threads that are made, and what fails. Locks, allocations that succeed and looks at
counters are setting: they are told only where they race, and all of them are in the schedule.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lazypv.clocks.explore import Taken
    from lazypv.explore.run import Broken

_LOCKS = ("take ", "release ", "go on after ")
_SETTING = (*_LOCKS, "read ", "write ", "allocate ", "gather", "wait for ")
_LONG, _SHORT = "kvm_s390_pv_destroy_vm_thread", "destroy thread"


class Race(NamedTuple):
    """Positions of the steps between which somebody came, and of the last step of those who did."""

    before: int
    intruder: int
    after: int


def story(broken: Broken) -> list[str]:
    """Numbered lines; the last one says which invariant is broken, and by which steps."""
    race = race_of(broken.steps)
    shown = {*(race or ()), _first(broken.steps, range(len(broken.steps) - 1, -1, -1))}
    told = [step for at, step in enumerate(broken.steps) if step.fault or at in shown or not _is_setting(step)]
    lines = []
    for (actor, step, fault), group in groupby(told, key=lambda taken: (taken.actor, taken.step, taken.fault)):
        lines.append(_line(actor, step, fault, list(group)))
    text = broken.violation.text.removeprefix(f"{broken.steps[-1].actor}: " if broken.steps else "")
    lines.append(f"invariant {broken.violation.number} is broken{_by(broken, race)}: {_named(text)}")
    return [f"{number}. {line}" for number, line in enumerate(lines, 1)]


def race_of(steps: tuple[Taken, ...]) -> Race | None:
    """The last place where an actor that could go on was left for another, and came back."""
    for at in range(len(steps) - 1, 0, -1):
        actor = steps[at].actor
        if steps[at - 1].actor == actor or _is_wait(steps[at]):
            continue
        before = _first(steps, range(at - 1, -1, -1), actor)
        if before is not None:
            inside = _first(steps, range(at - 1, before, -1))
            after = _first(steps, range(at, len(steps)), actor)
            return Race(before, at - 1 if inside is None else inside, at if after is None else after)
    return None


def _first(steps: tuple[Taken, ...], positions: range, actor: str | None = None) -> int | None:
    """The first of `positions` with a step, of `actor` if one is named, that is more than a lock."""
    for at in positions:
        if actor in (None, steps[at].actor) and not steps[at].step.startswith(_LOCKS):
            return at
    return None


def _is_wait(step: Taken) -> bool:
    """What an actor does first that had to wait: nobody left it, it could not go on."""
    return step.step.startswith(("take ", "wait for "))


def _is_setting(step: Taken) -> bool:
    return step.step.startswith(_SETTING)


def _by(broken: Broken, race: Race | None) -> str:
    if race is None:
        return f" by {_named(broken.steps[-1].actor)}" if broken.steps else ""
    before, intruder, after = (broken.steps[at] for at in race)
    came = f"{intruder.actor}: {intruder.step}"
    return _named(f", since '{came}' came between '{before.actor}: {before.step}' and '{after.step}'")


def _line(actor: str, step: str, fault: str, group: list[Taken]) -> str:
    pages = [page for taken in group for page in taken.pages]
    which = f" ({', '.join(map(str, dict.fromkeys(pages)))})" if pages else ""
    if len(group) > max(1, len(set(pages))):
        which += f" {len(group)} times"
    answers = list(dict.fromkeys(taken.answer for taken in group if taken.answer))
    said = f": {', '.join(answers)}" if answers else ""
    return _named(f"{actor}: {step}{which}{f' fails, {fault}' if fault else said}")


def _named(text: str) -> str:
    return text.replace(_LONG, _SHORT)

"""The smallest counterexample: fewest faults, then fewest preemptions, then fewest lines, then fewest steps.

A candidate is the schedule with something left out or moved; it is run again, and kept if the same invariant breaks.
Steps that a candidate leaves out at its end are taken as they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from lazypv.clocks.explore import Choice
from lazypv.errors import LazyPVError
from lazypv.explore.run import Broken
from lazypv.explore.search import Explorer
from lazypv.explore.story import story

Schedule = tuple[Choice, ...]
Size = tuple[int, int, int, int]

MOST_RUNS = 400
"""Candidates that are run at most."""


def shrink(explorer: Explorer, broken: Broken) -> Broken:
    """The smallest counterexample that can be had from `broken` by leaving out and moving steps."""
    best, size = broken, size_of(broken)
    tried: set[Schedule] = {broken.schedule}
    again = True
    while again:
        again = False
        for candidate in _candidates(best.schedule):
            if candidate in tried or len(tried) >= MOST_RUNS:
                continue
            tried.add(candidate)
            found = _run(explorer, candidate, broken)
            if found is not None and size_of(found) < size:
                best, size, again = found, size_of(found), True
                break
    return best


def size_of(broken: Broken) -> Size:
    """Faults, context switches, lines of the story, steps."""
    faults = sum(choice.fault != 0 for choice in broken.schedule)
    switches = sum(1 for _ in groupby(broken.schedule, key=lambda choice: choice.actor))
    return faults, switches, len(story(broken)), len(broken.schedule)


def _run(explorer: Explorer, schedule: Schedule, wanted: Broken) -> Broken | None:
    try:
        run = explorer.replay(schedule)
    except (LookupError, LazyPVError):
        # A fault that the step at its place cannot have.
        return None
    if run.violation is None or run.violation.number != wanted.violation.number:
        return None
    return Broken(run.violation, run.schedule, run.steps, run.fingerprint)


def _candidates(schedule: Schedule) -> Iterator[Schedule]:
    """Without a fault; without a stretch; with two stretches of one actor merged; with a stretch made shorter."""
    for at, choice in enumerate(schedule):
        if choice.fault:
            yield (*schedule[:at], Choice(choice.actor), *schedule[at + 1 :])
    stretches = [tuple(same) for _, same in groupby(schedule, key=lambda choice: choice.actor)]
    for at, stretch in enumerate(stretches):
        before, behind = stretches[:at], stretches[at + 1 :]
        yield _joined(before + behind)
        away = next((i for i, other in enumerate(behind) if other[0].actor == stretch[0].actor), None)
        if away is not None:
            between, both, rest = behind[:away], stretch + behind[away], behind[away + 1 :]
            yield _joined([*before, both, *between, *rest])
            yield _joined([*before, *between, both, *rest])
    for at, stretch in enumerate(stretches):
        for kept in (len(stretch) // 2, len(stretch) - 1):
            if kept:
                yield _joined([*stretches[:at], stretch[:kept], *stretches[at + 1 :]])
    yield schedule[: len(schedule) // 2]


def _joined(stretches: list[Schedule]) -> Schedule:
    return tuple(choice for stretch in stretches for choice in stretch)

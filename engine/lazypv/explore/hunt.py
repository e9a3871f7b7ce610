"""Hunting for counterexamples from small to large: the same scenarios and the same ladder of bounds for everybody."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from lazypv.explore.faults import faults_for
from lazypv.explore.run import Broken
from lazypv.explore.scenarios import SCENARIOS, Scenario
from lazypv.explore.search import Bounds, Explorer, Outcome
from lazypv.explore.switches import Switches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazypv.invariants import Violation


class Rung(NamedTuple):
    """How large a search is: guest pages, and the bounds on preemptions and failing steps."""

    pages: int
    preemptions: int
    faults: int

    def __str__(self) -> str:
        return f"{self.pages} pages, {self.preemptions} preemptions, {self.faults} faults"


LADDER: Final = (
    Rung(2, 0, 0),
    Rung(3, 0, 0),
    Rung(2, 1, 0),
    Rung(2, 0, 1),
    Rung(3, 1, 0),
    Rung(2, 2, 0),
    Rung(2, 1, 1),
)
"""Searches from small to large; one list for all hunts."""
MOST_SCHEDULES: Final = 4000
"""Schedules of one search; a hunt that needs more is not a cheap one."""


@dataclass(frozen=True)
class Case:
    """One search: where, how far, and of which series."""

    scenario: Scenario
    rung: Rung
    switches: Switches

    @property
    def pages(self) -> int:
        """Pages of a guest: never fewer than lie below the scenario's limit."""
        return max(self.rung.pages, self.scenario.shape.sync_below if self.scenario.shape.limit else 0)

    def explorer(self) -> Explorer:
        """The search, in a world of its own."""
        world = self.switches.build(self.scenario, self.pages)
        bounds = Bounds(self.rung.preemptions, self.rung.faults)
        return Explorer(world, self.scenario.scene, bounds, faults_for(world.machine.ultravisor))

    def search(self, *, stop_at_first: bool = False) -> Outcome:
        """Run it."""
        return self.explorer().exhaust(most_schedules=MOST_SCHEDULES, stop_at_first=stop_at_first)

    def of(self, switches: Switches) -> Case:
        """The same search of another series."""
        return replace(self, switches=switches)


def search_all(rung: Rung, switches: Switches) -> Iterator[tuple[Case, Outcome]]:
    """Every scenario on one rung of the ladder."""
    for scenario in SCENARIOS.values():
        case = Case(scenario, rung, switches)
        yield case, case.search()


Kind = tuple[int, str]
"""An invariant, and what was seen but for numbers."""


def kind_of(violation: Violation) -> Kind:
    """What is alike in two violations."""
    return violation.number, re.sub(r"0x[0-9a-f]+|\d+", "#", violation.text)


def smallest(broken: list[Broken]) -> dict[Kind, Broken]:
    """Of each kind the counterexample with the fewest steps, the first found where there are several."""
    found: dict[Kind, Broken] = {}
    for each in broken:
        kind = kind_of(each.violation)
        if kind not in found or len(each.schedule) < len(found[kind].schedule):
            found[kind] = each
    return found

"""Hunting: the smallest counterexample of a series over all scenarios, from small worlds and few preemptions up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lazypv.explore.faults import faults_for
from lazypv.explore.scenarios import SCENARIOS, Scenario
from lazypv.explore.search import Bounds, Broken, Explorer, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazypv.series import Series

SMALLEST = 2


@dataclass(frozen=True)
class Found:
    """A counterexample and where it was found."""

    scenario: str
    pages: int
    broken: Broken


def explore(
    of: Scenario, series: Series, bounds: Bounds, *, pages: int | None = None, most: int | None = None
) -> Outcome:
    """Exhaust one scenario."""
    world = of.build(series, pages)
    return Explorer(world, of.scene, bounds, faults_for(world.machine.ultravisor)).exhaust(most_schedules=most)


def hunt(
    series: Series, bounds: Bounds, *, scenarios: Iterable[Scenario] | None = None, most: int = 3000
) -> Found | None:
    """The first counterexample: fewest faults, then fewest preemptions, then fewest pages."""
    candidates = list(SCENARIOS.values() if scenarios is None else scenarios)
    for faults in range(bounds.faults + 1):
        for preemptions in range((bounds.preemptions or 0) + 1):
            for of in candidates:
                for pages in range(SMALLEST, of.shape.pages + 1):
                    outcome = explore(of, series, Bounds(preemptions, faults), pages=pages, most=most)
                    if outcome.broken:
                        return Found(of.name, pages, outcome.broken[0])
    return None

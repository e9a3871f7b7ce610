"""Searches of small worlds in which the repaired series has to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from lazypv.explore.faults import faults_for
from lazypv.explore.sampling import Manner, sample
from lazypv.explore.scenarios import SCENARIOS
from lazypv.explore.search import Bounds, Explorer, Outcome
from lazypv.series import Series

from .check import Check, NoticedError

RANDOM_ORDERS = 30
"""Of each scenario, in two ways: with up to two faults; and with each call on a page in two steps."""
SHAPES: dict[str, dict[str, Any]] = {
    "": {},
    ", batches of 2, 2 CPUs": {"batch": 2, "vcpus": 2},
}


def explorer(name: str, series: Series, pages: int, bounds: Bounds, nodes: int = 1, **shape: Any) -> Explorer:
    """A scenario's world with that many guest pages, ready to be searched."""
    of = SCENARIOS[name]
    of = replace(of, shape=replace(of.shape, **shape))
    world = of.build(series, max(pages, of.shape.sync_below))
    if nodes != 1:
        world.host.nodes_at_once = nodes
        world.take_down()
    return Explorer(world, of.scene, bounds, faults_for(world.machine.ultravisor))


def nothing_broken(search: Callable[[], Outcome]) -> None:
    """No run of the search breaks anything, and it has ended."""
    outcome = search()
    if outcome.broken:
        violation = outcome.broken[0].violation
        raise NoticedError(f"invariant {violation.number}: {violation.text}")


def straight() -> Iterator[Check]:
    """Every scenario once, in the order in which its actors come, no step failing."""
    for name in SCENARIOS:
        for pages in (2, 4):
            for label, shape in SHAPES.items():
                yield Check(f"explore {name}, {pages} pages{label}", partial(_straight, name, pages, shape))
    for name in ("shutdown", "shutdown-during-cleanup", "two-guests-in-one-process"):
        yield Check(f"explore {name}, 4 pages, 2 nodes at once", partial(_straight, name, 4, {"nodes": 2}))


def _straight(name: str, pages: int, shape: dict[str, Any]) -> None:
    nothing_broken(partial(explorer(name, Series(), pages, Bounds(0), **shape).exhaust, prune=False))


def with_faults() -> Iterator[Check]:
    """Every scenario with each step failing in turn, no preemption."""
    for name in SCENARIOS:
        yield Check(f"explore {name}, 2 pages, 1 fault", partial(_with_faults, name, 2, {}))
    for name in ("shutdown", "shutdown-during-cleanup"):
        yield Check(f"explore {name}, 4 pages, 2 nodes at once, 1 fault", partial(_with_faults, name, 4, {"nodes": 2}))


def _with_faults(name: str, pages: int, shape: dict[str, Any]) -> None:
    nothing_broken(partial(explorer(name, Series(), pages, Bounds(0, 1), **shape).exhaust, prune=False))


def with_preemptions() -> Iterator[Check]:
    """All orders with one preemption, and random ones."""
    for name in SCENARIOS:
        yield Check(f"explore {name}, 2 pages, 1 preemption", partial(_all_orders, name))
    for name in SCENARIOS:
        yield Check(f"explore {name}, 3 pages, {RANDOM_ORDERS} random orders", partial(_random_orders, name))


def _all_orders(name: str) -> None:
    nothing_broken(explorer(name, Series(), 2, Bounds(1)).exhaust)


def _random_orders(name: str) -> None:
    searcher = explorer(name, Series(), 3, Bounds(None, 2))
    nothing_broken(partial(sample, searcher, range(RANDOM_ORDERS), f"1/{name}", Manner.SWARM))
    searcher = explorer(name, Series(), 3, Bounds(None, 1, finer=True))
    nothing_broken(partial(sample, searcher, range(RANDOM_ORDERS), f"2/{name}", Manner.RANDOM))

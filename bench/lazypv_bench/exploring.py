"""How fast orders are explored, and what it saves to leave out states that were met, and steps to them."""

from __future__ import annotations

import time
from collections.abc import Generator
from types import coroutine

from lazypv.errors import ModelError
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Explorer, Outcome
from lazypv.series import Series
from lazypv.sizes import PAGE_SIZE
from lazypv_bench.harness import DEFAULT_SIZE, Work, benchmark
from lazypv_bench.rig import Rig

SCENE = "reboot-into-protected"
PAGES = 4
FEW_PAGES = 2
PREEMPTIONS = 2
FEW_PREEMPTIONS = 1
SHARE = PAGES * PAGE_SIZE / DEFAULT_SIZE
"""Four pages and two preemptions at full size; a short run has two pages, and one preemption."""


class Search:
    """A search that is run again and again, all of it each time.

    Attributes
    ----------
    outcome : Outcome
        What the last run saw; every run sees the same.
    """

    def __init__(
        self, pages: int, *, prune: bool = True, preemptions: int | None = PREEMPTIONS, reduce: bool = True
    ) -> None:
        of = scenario(SCENE)
        self._explorer = Explorer(of.build(Series(), pages), of.scene, Bounds(preemptions))
        self._prune = prune
        self._reduce = reduce
        self._seconds: list[float] = []
        self.outcome: Outcome = self._explorer.exhaust(prune=prune, reduce=reduce)

    def run(self) -> None:
        """Search from the start."""
        began = time.perf_counter()
        self.outcome = self._explorer.exhaust(prune=self._prune, reduce=self._reduce)
        self._seconds.append(time.perf_counter() - began)

    def finish(self) -> None:
        """The repaired series has to survive it."""
        if self.outcome.broken or not self.outcome.exhausted:
            raise ModelError(f"exploring was measured, but it did not come to its end: {self.outcome.broken}")

    def steps_a_second(self) -> float:
        """In the median of all runs; steps that lead back to where a search goes on included."""
        return self.outcome.steps / sorted(self._seconds)[len(self._seconds) // 2]


@coroutine
def _awaited(times: int) -> Generator[None]:
    for _ in range(times):
        yield


def bare_resumptions(_rig: Rig, subject: Work) -> Work:
    """A text that does nothing is resumed as often as the search takes steps."""

    async def text() -> None:
        await _awaited(subject.bytes)

    def run() -> None:
        resume = text().send
        try:
            while True:
                resume(None)
        except StopIteration:
            pass

    return Work(run=run, bytes=subject.bytes)


@benchmark("explore.steps", limit=bare_resumptions, unit="steps/s", share=SHARE)
def explore_steps(rig: Rig) -> Work:
    """All orders of a reboot with four pages and at most two preemptions, invariants looked at after each step."""
    search = Search(max(FEW_PAGES, rig.size // PAGE_SIZE), prune=True, preemptions=_preemptions(rig))
    return Work(
        run=search.run, bytes=search.outcome.steps, finish=search.finish, warm=True, value=search.steps_a_second
    )


def every_order(rig: Rig, _subject: Work) -> Work:
    """The same orders, none left out."""
    search = Search(FEW_PAGES, prune=False, preemptions=_preemptions(rig))
    return Work(run=search.run, finish=search.finish, warm=True)


@benchmark("explore.pruning", limit=every_order, better="lower", unit="schedules", share=SHARE)
def explore_pruning(rig: Rig) -> Work:
    """All orders of a reboot with two pages and at most two preemptions, each state only once."""
    search = Search(FEW_PAGES, prune=True, preemptions=_preemptions(rig))
    return Work(run=search.run, finish=search.finish, warm=True, value=lambda: float(search.outcome.schedules))


def both_orders(_rig: Rig, _subject: Work) -> Work:
    """The same states, by way of every step that leads to one."""
    search = Search(FEW_PAGES, preemptions=None, reduce=False)
    return Work(run=search.run, finish=search.finish, warm=True)


@benchmark("explore.sleeping", limit=both_orders, better="lower", unit="schedules", share=SHARE)
def explore_sleeping(_rig: Rig) -> Work:
    """All orders of a reboot with two pages and no bound; of two steps that come to the same, one order."""
    search = Search(FEW_PAGES, preemptions=None)
    return Work(run=search.run, finish=search.finish, warm=True, value=lambda: float(search.outcome.schedules))


def _preemptions(rig: Rig) -> int:
    return PREEMPTIONS if rig.size >= PAGES * PAGE_SIZE else FEW_PREEMPTIONS

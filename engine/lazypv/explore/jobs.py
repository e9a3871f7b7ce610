"""Searches cut into jobs, worked off here or by several processes.

A process is spawned, never forked, and keeps its worlds and what it has seen of each from job to job. A search that has
run for a while hands back what is left of it, so that it can be shared with whoever has nothing to do.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from multiprocessing.connection import wait as wait_for_any
from typing import TYPE_CHECKING, Any

from lazypv.errors import LazyPVError, MemoryShortageError
from lazypv.explore.accesses import check_segments
from lazypv.explore.faults import faults_for
from lazypv.explore.sampling import Manner, sample
from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Branch, Explorer, Outcome
from lazypv.explore.shrink import shrink
from lazypv.explore.switches import Switches

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

SLICE_SECONDS = 1.0
"""After so long a search says what is left of it."""
RUNS_OF_A_JOB = 250


@dataclass(frozen=True)
class Job:
    """A piece of a search.

    Attributes
    ----------
    manner : Manner or None
        How orders are drawn; None for all of them.
    todo : tuple of Branch
        What to follow, where all orders are.
    numbers : range
        Which runs to draw, where orders are drawn.
    """

    name: str
    pages: int
    bounds: Bounds
    switches: Switches
    manner: Manner | None = None
    todo: tuple[Branch, ...] = (Branch(),)
    numbers: range = range(0)
    seed: str = ""

    @property
    def search(self) -> tuple[str, int]:
        """Of which search it is a piece."""
        return self.name, self.pages


@dataclass
class Desk:
    """Where jobs are worked off: the explorers of one process."""

    explorers: dict[tuple[str, int, Bounds, Switches], Explorer] = field(default_factory=dict)

    def work(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        """Do a job until `stop` says so; what is left of it is in the outcome, and counterexamples are small.

        Raises
        ------
        UsageError
            An unknown scenario, preset, patch or defect, or a combination that cannot be.
        """
        with job.switches.blamed():
            explorer = self._explorer(job)
            if job.manner is not None:
                outcome = sample(explorer, job.numbers, job.seed, job.manner, stop)
            else:
                outcome = explorer.exhaust(list(job.todo), stop=stop)
            outcome.broken = [shrink(explorer, broken) for broken in outcome.broken]
            return outcome

    def _explorer(self, job: Job) -> Explorer:
        key = (job.name, job.pages, job.bounds, job.switches)
        if key not in self.explorers:
            of = scenario(job.name)
            world = job.switches.build(of, job.pages)
            faults = faults_for(world.machine.ultravisor)
            check_segments(world, of.scene, faults)
            # A world stays until the end: a collector that looks through it again and again takes time.
            gc.collect()
            gc.freeze()
            self.explorers[key] = Explorer(world, of.scene, job.bounds, faults)
        return self.explorers[key]


def in_pieces(job: Job) -> list[Job]:
    """Random runs as several jobs; a search of all orders is one until it says what is left of it."""
    if job.manner is None:
        return [job]
    numbers = job.numbers
    return [replace(job, numbers=numbers[at : at + RUNS_OF_A_JOB]) for at in range(0, len(numbers), RUNS_OF_A_JOB)]


def work_here(jobs: list[Job]) -> Iterator[tuple[Job, Outcome]]:
    """One after the other in this process; a search ends with its first counterexample."""
    desk = Desk()
    over: set[tuple[str, int]] = set()
    for job in chain.from_iterable(map(in_pieces, jobs)):
        if job.search not in over:
            outcome = desk.work(job, lambda: False)
            if outcome.broken:
                over.add(job.search)
            yield job, outcome


def share_out(jobs: list[Job], processes: int) -> Iterator[tuple[Job, Outcome]]:
    """By several processes; pieces of searches in the order in which they are done.

    Raises
    ------
    LazyPVError
        What a process met, with its exit status.
    MemoryShortageError
        A process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    cancelled = context.Event()
    with ExitStack() as stack:
        stack.callback(cancelled.set)
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, _begin, (cancelled, os.getpid())))
            for _ in range(processes)
        ]
        stack.callback(cancelled.set)
        yield from _Shared(pools, deque(chain.from_iterable(map(in_pieces, jobs)))).outcomes()


class _Shared:
    """Who works on what. A process goes on with what it left, as it has seen most of that search already."""

    def __init__(self, pools: list[ProcessPoolExecutor], todo: deque[Job]) -> None:
        self._idle = list(pools)
        self._todo = todo
        self._running: dict[Future[Outcome | _Failed], tuple[ProcessPoolExecutor, Job]] = {}
        self._over: set[tuple[str, int]] = set()

    def outcomes(self) -> Iterator[tuple[Job, Outcome]]:
        self._hand_out()
        while self._running:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                pool, job = self._running.pop(future)
                outcome = _result(future)
                if job.search in self._over:
                    outcome = Outcome(outcome.schedules, outcome.steps)
                elif outcome.broken:
                    self._over.add(job.search)
                elif outcome.left:
                    self._go_on(pool, job, outcome.left)
                if pool not in (busy for busy, _ in self._running.values()):
                    self._idle.append(pool)
                yield job, outcome
            self._hand_out()

    def _go_on(self, pool: ProcessPoolExecutor, job: Job, left: list[Branch]) -> None:
        """The same process has the next slice; every second branch goes to one that is idle, if there is one."""
        if self._idle and not self._todo and len(left) > 1:
            self._todo.append(replace(job, todo=tuple(left[::2])))
            left = left[1::2]
        self._start(pool, replace(job, todo=tuple(left)))

    def _hand_out(self) -> None:
        while self._idle and self._todo:
            job = self._todo.popleft()
            if job.search not in self._over:
                self._start(self._idle.pop(), job)

    def _start(self, pool: ProcessPoolExecutor, job: Job) -> None:
        self._running[pool.submit(_work, job)] = (pool, job)


# --- in a process of its own -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failed:
    """What a process met instead of an outcome; errors themselves do not travel."""

    text: str
    exit_status: int


_desk = Desk()
_cancelled: Event | None = None


def _begin(cancelled: Event, parent: int) -> None:
    """A process begins: a control-C is its parent's business, and it does not outlive that."""
    global _cancelled
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _cancelled = cancelled
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _work(job: Job) -> Outcome | _Failed:
    until = time.monotonic() + SLICE_SECONDS
    cancelled: Any = _cancelled

    def stop() -> bool:
        late = job.manner is None and time.monotonic() > until
        return late or cancelled.is_set()

    try:
        return _desk.work(job, stop)
    except LazyPVError as error:
        return _Failed(str(error), error.exit_status)


def _result(future: Future[Outcome | _Failed]) -> Outcome:
    try:
        found = future.result()
    except BrokenProcessPool as error:
        raise MemoryShortageError("a process that explored was ended from outside") from error
    if isinstance(found, _Failed):
        failure = LazyPVError(found.text)
        failure.exit_status = found.exit_status
        raise failure
    return found

"""Moments of a guest's life: an endless loop is ended, a store waits for room aside, a pager's problem is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazypv.clocks.explore import Choice, ExploringClock
from lazypv.clocks.live import LiveClock
from lazypv.errors import LazyPVError
from lazypv.explore.scenarios import SCENARIOS
from lazypv.explore.world import World
from lazypv.host import kvm
from lazypv.host.faults import ProcessKilledError, non_secure
from lazypv.series import Series
from lazypv.steps import Text
from lazypv.ultravisor import BulkAnswer
from lazypv.ultravisor.interface import RC_INTEGRITY
from lazypv_kernels.layout import RC_DONE, RC_DTYPE

from .check import Check, NoticedError

PAGES = 6
STORED = np.arange(1, 5)
ROOM = 2
MOST_STEPS = 2000
PATIENCE_SECONDS = 20.0


def checks() -> Iterator[Check]:
    """Each in a world of its own."""
    yield Check("a guest that goes round for ever is stopped", _endless)
    yield Check("a store waits for room aside", _waits)
    yield Check("an import waits for a reference to go", _waits_for_a_reference)
    yield Check("a pager's problem is told", _pager)


def _world(*defects: str) -> World:
    return SCENARIOS["shutdown"].build(Series().with_defects(*defects), PAGES)


def _drive(text: Text[Any]) -> LazyPVError | None:
    """Run `text` to its end, which comes soon; what it broke down with."""
    clock = ExploringClock()
    clock.start(text, "guest")
    _go_on(clock)
    return clock.actors[0].error


def _go_on(clock: ExploringClock) -> None:
    for _ in range(MOST_STEPS):
        if not clock.enabled():
            return
        clock.step(Choice(0))
    raise NoticedError(f"a text goes on after {MOST_STEPS} steps")


def _waits_for_a_reference() -> None:
    """-EBUSY, then -EAGAIN: nothing is tried again before the page is free of whoever else holds it (semantics 2.5)."""
    world = _world()
    vm, frames = world.vms[0], world.machine.frames
    page = np.array([1])
    frame = vm.gmap.pte[page].astype(np.int64) - 1
    world.machine.ultravisor.export_pages(frame)
    frames.get(frame)
    clock = ExploringClock()
    clock.start(non_secure(vm, page), "guest")
    _go_on(clock)
    if not clock.alive():
        raise NoticedError(f"a page was imported that somebody else holds: {clock.actors[0].error!r}")
    frames.put(frame)
    _go_on(clock)
    if clock.alive() or clock.actors[0].error is not None or vm.gmap.pte[page] != frame + 1:
        raise NoticedError(f"the page was not imported afterwards: {clock.actors[0].error!r}")


def _endless() -> None:
    """With D11 the handler helps nobody; the loop that repeats the instruction gives up (invariant 35)."""
    world = _world("D11")
    vm = world.vms[0]
    LiveClock().run(kvm.destroy_cpus(vm))
    vm.gmap.guest_handle = 0
    LiveClock().run(vm.remove_slot(PAGES - 2, PAGES - 1))
    error = _drive(world.touches(vm, [PAGES - 2]))
    if not isinstance(error, ProcessKilledError) or error.signal != "endless loop":
        raise NoticedError(f"the guest ended with {error!r}")
    if [number for number, _ in world.host.ledger.broken] != [35]:
        raise NoticedError(f"broken is {world.host.ledger.broken}, not invariant 35")


def _begin(world: World) -> int:
    handle = world.vms[0].kvm.pv.handle
    if world.machine.ultravisor.begin_snapshot(handle, None, ROOM) is None:
        raise NoticedError("no snapshot could be begun")
    return handle


def _end(world: World, handle: int) -> None:
    aside = world.machine.ultravisor.end_snapshot(handle, None)
    if aside != ROOM:
        raise NoticedError(f"{aside} pages were aside, there is room for {ROOM}")


def _waits() -> None:
    world = _world()
    handle = _begin(world)
    clock, ultravisor = LiveClock(), world.machine.ultravisor
    tries = _counted(ultravisor)
    writer = clock.spawn(world.runs[0].write(0, [STORED]), "guest")
    until = time.monotonic() + PATIENCE_SECONDS
    while writer.waiting is None and not writer.done and len(tries) <= STORED.size and time.monotonic() < until:
        threading.Event().wait(0.005)
    _end(world, handle)
    clock.join([writer])
    if len(tries) > STORED.size:
        raise NoticedError(f"the store of {STORED.size} pages was tried {len(tries)} times")


def _counted(ultravisor: Any) -> list[int]:
    """How many pages each call of `copy_aside` is about from now on."""
    tries: list[int] = []
    copy_aside = ultravisor.copy_aside

    def counted(handle: int, pages: NDArray[np.int64]) -> NDArray[np.uint16]:
        tries.append(pages.size)
        codes: NDArray[np.uint16] = copy_aside(handle, pages)
        return codes

    ultravisor.copy_aside = counted
    return tries


def _pager() -> None:
    """A page that does not come in: for a reason that the pager has, or for none."""
    for problem in (LazyPVError("the file is torn"), None):
        world = _world()
        vm: Any = world.vms[0]
        vm.pager = SimpleNamespace(
            import_pages=lambda part: BulkAnswer(np.full(part.size, RC_INTEGRITY, RC_DTYPE), 0, refused=part.size),
            problem=problem,
        )
        error = _drive(non_secure(vm, np.array([1])))
        if error is not problem and not (problem is None and isinstance(error, ProcessKilledError)):
            raise NoticedError(f"the guest ended with {error!r}, not with {problem!r}")
    world = _world()
    vm = world.vms[0]
    vm.pager = SimpleNamespace(
        import_pages=lambda part: BulkAnswer(np.full(part.size, RC_DONE, RC_DTYPE), part.size), problem=None
    )
    if _drive(non_secure(vm, np.array([1]))) is not None:
        raise NoticedError("a pager that brought the page in ended the guest")

"""Footprints: what a step says that it is about, under which lock, and what it gives back.

A text that changes a counter has said, at the step before, that it will write it; what a lock protects changes only
while the text holds that lock alone; a call on a guest page is about the frame that is mapped there; and an answer's
counts are those of its codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.host.stepping import Driven, Stepper

from lazypv.explore.scenarios import SCENARIOS
from lazypv.host import kvm
from lazypv.host.exit import mmput
from lazypv.host.vm import Process, Vm
from lazypv.series import Series
from lazypv.steps import Bulk, Lock, Step, Touch
from lazypv.ultravisor import BulkAnswer
from lazypv_kernels.layout import RC_BUSY, RC_DONE

from .check import Check, NoticedError


class Watching(Stepper):
    """Looks at an address space before each step: who changed it had said so, or holds the lock that protects it."""

    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self._mm = vm.mm
        self._gmap = vm.gmap
        self._guessed = vm.host.series.last_user_guessed
        self._seen = self._counters()
        self._protected = self._under_locks()
        self._last: Step[Any] | None = None
        self._is_cleaner = False
        self._held: list[Lock] = []

    def perform(self, actor: Driven, step: Step[Any]) -> Any:
        """Look, then do `step`."""
        self._look_at_counters()
        self._look_at_locks()
        if isinstance(step, Bulk) and step.frame_of is not None:
            pte = self._gmap.pte
            wrong = [page for page in step.columns[0] if step.frame_of(int(page)) != pte.entry(page) - 1]
            if wrong:
                raise NoticedError(f"{step!r} is about other frames than those of guest pages {wrong}")
        answer = super().perform(actor, step)
        self._last, self._is_cleaner = step, actor in self.threads
        self._held = [lock for lock in actor.locks if lock.writer is actor]
        if isinstance(answer, BulkAnswer):
            counts_are_those_of_the_codes(step, answer)
        return answer

    def _look_at_counters(self) -> None:
        now = self._counters()
        for name, value in now.items():
            wrote = isinstance(self._last, Touch) and self._last.name == name and self._last.write
            if value != self._seen[name] and not wrote:
                raise NoticedError(f"{name} changed after {self._last!r}, which is no write of it")
        decided = self._guessed or self._mm.mmap_lock in self._held
        if now["mm_users"] < self._seen["mm_users"] and self._is_cleaner and not decided:
            raise NoticedError("a cleaner stopped being a user outside the lock under which it is decided who drains")
        self._seen = now

    def _look_at_locks(self) -> None:
        now = self._under_locks()
        for lock, values in now.items():
            if values != self._protected[lock] and lock not in self._held:
                raise NoticedError(f"{values} changed after {self._last!r}, and nobody held {lock}")
        self._protected = now

    def _under_locks(self) -> dict[Lock, Any]:
        mm, gmap = self._mm, self._gmap
        aside = [(id(node), node.count) for node in mm.set_aside.nodes]
        return {
            mm.set_aside.lock: (mm.to_drain, aside),
            mm.mmap_lock: mm.pv_sync_destroy,
            gmap.guest_table_lock: (gmap.asce, id(gmap.table)),
        }

    def _counters(self) -> dict[str, int]:
        mm = self._mm
        return {"mm_users": mm.users, "mm_count": mm.count, "protected counter": mm.protected.value}


def counts_are_those_of_the_codes(step: Step[Any], answer: BulkAnswer) -> None:
    """Pages that are done, needed nothing, are busy, were refused: what reports add up."""
    codes = answer.rc.tolist()
    busy = codes.count(RC_BUSY)
    # To copy a page aside is no call of the interface: whatever is not busy is done.
    done = len(codes) - busy if step.label == "copy aside" else codes.count(RC_DONE)
    found = (answer.done + answer.noop, answer.busy, answer.refused)
    if found != (done, busy, len(codes) - done - busy):
        raise NoticedError(f"{step!r} gave codes {codes}, and counts {answer}")


def checks() -> Iterator[Check]:
    """A reboot and a shutdown, with the series and as posted."""
    for series in (Series(), Series().with_defects("D3", "D17")):
        for is_shutdown in (False, True):
            yield Check("footprints of counters", partial(_footprints, series, is_shutdown))
    yield Check("a cleaner that is the last user", _last_user)


def _footprints(series: Series, is_shutdown: bool) -> None:
    world = SCENARIOS["shutdown"].build(series, 2)
    vm = world.vms[0]
    stepper = Watching(vm)
    if not is_shutdown:
        stepper.run(kvm.disable(vm))
        stepper.run(world.bring_up(vm))
        stepper.run(kvm.disable(vm))
    else:
        stepper.run(world.processes[0].exit())
    if not (series.mm_dropped_early and is_shutdown):
        for thread in stepper.threads:
            thread.finish()


def _last_user() -> None:
    """It has passed the list, so that nobody will work it off: what it unmaps is exported, and that is on record."""
    world = SCENARIOS["shutdown"].build(Series(), 4)
    world.restore()
    vm, process, stepper = world.vms[0], world.processes[0], Watching(world.vms[0])
    stepper.run(kvm.disable(vm))
    stepper.run(leave(process))
    stepper.threads[0].finish()
    mm = process.mm
    if not (mm.torn_down and mm.pv_sync_destroy and not mm.set_aside.nodes):
        raise NoticedError(f"torn down {mm.torn_down}, nothing aside any more {mm.pv_sync_destroy}")


async def leave(process: Process) -> None:
    """Every task leaves the address space."""
    while process.tasks:
        process.tasks -= 1
        await mmput(process.host, process.mm)

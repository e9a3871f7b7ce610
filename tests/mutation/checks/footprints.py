"""Footprints: what a step says that it is about.

A text that changes a counter has said, at the step before, that it will write it; a call on a guest page is about the
frame that is mapped there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.host.stepping import Driven, Stepper

from lazypv.explore.scenarios import SCENARIOS
from lazypv.host import kvm
from lazypv.host.vm import Vm
from lazypv.series import Series
from lazypv.steps import Bulk, Step, Touch

from .check import Check, NoticedError


class Watching(Stepper):
    """Looks at the counters of an address space before each step: who changed one had touched it, to write."""

    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self._mm = vm.mm
        self._pte = vm.gmap.pte
        self._seen = self._counters()
        self._last: Step[Any] | None = None

    def perform(self, actor: Driven, step: Step[Any]) -> Any:
        """Look, then do `step`."""
        now = self._counters()
        for name, value in now.items():
            wrote = isinstance(self._last, Touch) and self._last.name == name and self._last.write
            if value != self._seen[name] and not wrote:
                raise NoticedError(f"{name} changed after {self._last!r}, which is no write of it")
        self._seen, self._last = now, step
        if isinstance(step, Bulk) and step.frame_of is not None:
            wrong = [page for page in step.columns[0] if step.frame_of(int(page)) != self._pte.entry(page) - 1]
            if wrong:
                raise NoticedError(f"{step!r} is about other frames than those of guest pages {wrong}")
        return super().perform(actor, step)

    def _counters(self) -> dict[str, int]:
        mm = self._mm
        return {"mm_users": mm.users, "mm_count": mm.count, "protected counter": mm.protected.value}


def checks() -> Iterator[Check]:
    """A reboot and a shutdown, with the series and as posted."""
    for series in (Series(), Series().with_defects("D3", "D17")):
        for is_shutdown in (False, True):
            yield Check("footprints of counters", partial(_footprints, series, is_shutdown))


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

"""How long a guest is down, and how that grows with its memory.

Guests are in proportion to each other and to the limit below which nothing is lazy: at full size 9 GiB and 3 GiB with a
limit of 2 GiB for reboots, 4 GiB for shutdowns. All runs of a benchmark use one machine, one guest after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypv.errors import ModelError
from lazypv.guest import Workload
from lazypv.scenario import VM, Host, Report
from lazypv.sizes import PAGE_SIZE
from lazypv_bench.harness import Work, benchmark
from lazypv_bench.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE_OVER_SMALL = 3
"""The large guest of the growth benchmarks over the small one."""
LARGE_OVER_LIMIT = 4.5
"""The large guest over the limit below which nothing is lazy: 9 GiB over 2 GiB."""
SHUTDOWN_OVER_LIMIT = 2
"""The same for shutdowns; above 1, or the guest would be too small to be lazy at all."""


def small_guest(rig: Rig, _subject: Work) -> Work:
    """The same reboot of a guest a third as large, lazily."""
    return reboot(rig, _small(rig), lazy=True)


def small_guest_eager(rig: Rig, _subject: Work) -> Work:
    """The same reboot of a guest a third as large, eagerly."""
    return reboot(rig, _small(rig), lazy=False)


def eager_shutdown(rig: Rig, _subject: Work) -> Work:
    """The same guest shut down with every page exported."""
    return shutdown(rig, lazy=False)


@benchmark("downtime.growth", limit=small_guest, better="lower", bar=1.15, unit="ms", share=2.25)
def downtime_growth(rig: Rig) -> Work:
    """Downtime of a lazy reboot at three times the memory."""
    rig.make_machine(rig.size)
    return reboot(rig, rig.size, lazy=True)


@benchmark("downtime.growth.eager", limit=small_guest_eager, better="lower", unit="ms", share=2.25)
def downtime_growth_eager(rig: Rig) -> Work:
    """Downtime of an eager reboot at three times the memory: it grows in proportion."""
    rig.make_machine(rig.size)
    return reboot(rig, rig.size, lazy=False)


@benchmark("shutdown.lazy", limit=eager_shutdown, bar=20, unit="ms")
def shutdown_lazy(rig: Rig) -> Work:
    """How many times less a guest's process takes to end lazily."""
    rig.make_machine(rig.size)
    return shutdown(rig, lazy=True)


def reboot(rig: Rig, memory: int, *, lazy: bool) -> Work:
    """Reboots of guests of `memory` bytes."""
    below = int(rig.size / LARGE_OVER_LIMIT) // PAGE_SIZE * PAGE_SIZE
    return OneAfterAnother(rig, memory, below, lazy, VM.reboot).work()


def shutdown(rig: Rig, *, lazy: bool) -> Work:
    """Shutdowns of guests as large as the rig allows."""
    below = rig.size // SHUTDOWN_OVER_LIMIT // PAGE_SIZE * PAGE_SIZE
    return OneAfterAnother(rig, rig.size, below, lazy, VM.shutdown).work()


def _small(rig: Rig) -> int:
    return rig.size // LARGE_OVER_SMALL // PAGE_SIZE * PAGE_SIZE


class OneAfterAnother:
    """Guests that come up, own all of their memory, and end, each on a host of its own."""

    def __init__(self, rig: Rig, memory: int, sync_below: int, lazy: bool, end: Callable[[VM], Report]) -> None:
        self._machine = rig.machine
        self._image = rig.image(memory)
        self._memory = memory
        self._sync_below = sync_below
        self._lazy = lazy
        self._end = end
        self._vm: VM | None = None
        self._report: Report | None = None
        rig.closing.callback(self.close)

    def work(self) -> Work:
        """What the harness drives."""
        return Work(run=self.run, bytes=self._memory, prepare=self.prepare, finish=self.finish)

    def prepare(self) -> None:
        """A guest comes up, protected, and makes every page its own."""
        host = Host(self._machine, lazy_destroy=self._lazy, sync_below=self._sync_below)
        self._vm = host.create_vm(self._memory, vcpus=1, image=self._image)
        self._vm.protect()
        self._vm.run(Workload("sequential"))

    def run(self) -> float:
        """It ends; the downtime itself is in the report."""
        assert self._vm is not None
        self._report = self._end(self._vm)
        return self._report.downtime_s

    def finish(self) -> None:
        """Whatever was put off is done, the process is gone, and the machine is as it was before."""
        assert self._vm is not None
        assert self._report is not None
        vm, report = self._vm, self._report
        vm.host.drain()
        vm.kill()
        vm.host.drain()
        self.close()
        if report.owned_pages < vm.pages or report.deferred != self._lazy:
            raise ModelError(f"the guest that was measured did not end as it should have: {report}")

    def close(self) -> None:
        """End what still runs."""
        if self._vm is not None:
            self._vm.host.close()
            self._vm = None

"""What three of the patches save, counted in runs of one guest on the live clock: with the patch, and without.

A guest of 64 pages, of which 16 lie below the limit, in batches and nodes of 8: more pages than a batch, so that what
is done at once and what is done in pieces differ. Counts, not seconds.

Source: semantics 4.2 (step 6), 4.5, 4.9, 4.11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lazypv.clocks.live import LiveClock
from lazypv.guest import GuestRun
from lazypv.hardware import Machine
from lazypv.host import kvm
from lazypv.host.host import Host
from lazypv.scenario.boot import BootImage, load_boot_image, protect
from lazypv.series import Series
from lazypv.sizes import PAGE_SIZE
from lazypv.steps import Wait
from lazypv.ultravisor.interface import BIT_UVC_FEAT_MISC

MACHINE_PAGES: Final = 512
GUEST_PAGES: Final = 64
LIMIT_PAGES: Final = 16
BATCH: Final = 8
_UV_PAGES: Final = 16
_IMAGE_PAGES: Final = 4


@dataclass(frozen=True)
class Cost:
    """A number that grows when a patch is taken away.

    Attributes
    ----------
    steps : int
        Bulk steps and calls of the run without the patch.
    """

    patch: str
    name: str
    scenario: str
    with_it: int
    without_it: int
    steps: int


def measure_costs() -> list[Cost]:
    """Run both sides of each, and count."""
    return [
        _compared("02", "calls in vain on pages that are not secure", "I/O after a reboot", _CallsInVain),
        _compared("05", "pages handled with one hold of the mmap lock", "reboot", _LongestHold),
        _compared("09", "pages exported at teardown", "shutdown", _ExportedAtTeardown),
        _compared("11", "exports before imports, with feature bit 0", "reboot into a protected run", _ExportsFirst),
    ]


def _compared(patch: str, name: str, scenario: str, run: type[_Run]) -> Cost:
    with_it, without_it = run(Series()), run(Series().without(patch))
    return Cost(patch, name, scenario, with_it.count(), without_it.count(), without_it.steps)


class _Run:
    """A protected guest all of whose pages are secure, and something that is counted from then on."""

    features: tuple[int, ...] = ()

    def __init__(self, series: Series) -> None:
        self.machine = Machine(MACHINE_PAGES * PAGE_SIZE, uv_base_pages=_UV_PAGES, feature_bits=self.features)
        self.host = Host(
            self.machine, series=series, sync_below=LIMIT_PAGES * PAGE_SIZE, batch=BATCH, node_capacity=BATCH
        )
        self.process = self.host.create_process(private=PAGE_SIZE, shared_file=PAGE_SIZE, special=0)
        self.vm = self.host.create_vm(self.process, [range(GUEST_PAGES)], 1)
        self.clock = LiveClock()
        self._image = BootImage(np.full((_IMAGE_PAGES, PAGE_SIZE), 0x49, np.uint8), self.machine.workers)
        self.bring_up()
        self.clock.run(GuestRun(self.vm).write(0, [np.arange(GUEST_PAGES)]))
        self.clock.holds.clear()
        self.clock.timeline = []

    def count(self) -> int:
        """Do it, and count."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Bulk steps and calls since then."""
        return len(self.clock.timeline or ())

    def bring_up(self) -> None:
        """The guest becomes protected."""
        self.clock.run(load_boot_image(self.vm, 0, self._image))
        self.clock.run(protect(self.vm, self._image))

    def reboot(self) -> None:
        """KVM_PV_DISABLE."""
        self.clock.run(kvm.disable(self.vm))

    def drain(self) -> None:
        """Until no background thread is left."""
        self.clock.run(self._drained())
        self.clock.join_ended()

    async def _drained(self) -> None:
        await Wait(lambda: self.host.threads == 0, "background threads to end")

    def frames(self) -> NDArray[np.int64]:
        """Frames behind all guest pages."""
        return self.vm.gmap.pte.frames()

    def exported(self) -> int:
        """Exports issued so far."""
        return self.machine.ultravisor.issued["CONV_FROM_SEC_STOR"]


class _CallsInVain(_Run):
    def count(self) -> int:
        self.reboot()
        self.drain()
        frames = self.frames()
        self.machine.frames.get(frames)
        self.clock.run(self.host.pages.make_accessible(frames))
        self.machine.frames.put(frames)
        return self.host.ledger.pages["useless_calls"]


class _LongestHold(_Run):
    def count(self) -> int:
        self.reboot()
        self.drain()
        return max(hold.pages for (lock, _), hold in self.clock.holds.items() if lock == "mmap_lock")


class _ExportedAtTeardown(_Run):
    def count(self) -> int:
        before = self.exported()
        self.clock.run(self.process.exit())
        exported = self.exported() - before
        self.drain()
        return exported


class _ExportsFirst(_Run):
    features = (BIT_UVC_FEAT_MISC,)

    def count(self) -> int:
        self.host.throttle.open = False
        self.reboot()
        self.bring_up()
        before = self.exported()
        self.clock.run(GuestRun(self.vm).write(0, [np.arange(GUEST_PAGES)]))
        exports = self.exported() - before
        self.host.throttle.open = True
        self.drain()
        return exports

"""How much memory the model itself takes: a machine of terabytes without contents, and one guest that has all of it."""

from __future__ import annotations

import gc
from typing import Final

import numpy as np
import psutil

from lazypv.clocks.live import LiveClock
from lazypv.errors import ModelError
from lazypv.hardware import UV_BASE_PAGES, Machine
from lazypv.host import kvm
from lazypv.host.host import Host, frames_for
from lazypv.host.kvm import StorageSizes
from lazypv.host.run import access
from lazypv.scenario.boot import BootImage, load_boot_image, protect
from lazypv.sizes import PAGE_SIZE
from lazypv.steps import Wait
from lazypv.ultravisor import vault
from lazypv_bench.harness import Work, benchmark
from lazypv_bench.rig import Rig
from lazypv_kernels import scan
from lazypv_kernels.access import LOAD, STORE_WORD

LEAST_BYTES: Final = 8
"""Of a frame: state, owner, guest page, and the host's own byte."""
EXPECTED_BYTES: Final = 10
"""Those, one of the record, and room to work in: what decides how much memory has to be there at full size. The page
table takes none to speak of, since the guest's memory lies in few pieces."""
AT_ONCE: Final = 1 << 18
"""Pages that the guest touches with one step: what a step needs of its own is to be small beside what is measured."""
IMAGE_PAGES: Final = 16


def eight_bytes_a_frame(_rig: Rig, subject: Work) -> Work:
    """The least that there is to keep of each frame."""
    return Work(run=lambda: float(subject.bytes), bytes=subject.bytes)


@benchmark(
    "metadata",
    limit=eight_bytes_a_frame,
    better="lower",
    bar=12,
    bar_of="value",
    unit="GiB",
    quick=False,
    share=EXPECTED_BYTES * 1024 / PAGE_SIZE,
)
def metadata(rig: Rig) -> Work:
    """Resident memory for a machine of 4 TiB in which one guest has all pages and is rebooted lazily."""
    everything = Everything(rig)
    return Work(run=everything.run, bytes=everything.pages * LEAST_BYTES, value=everything.gibibytes)


class Everything:
    """A guest as large as its machine allows."""

    def __init__(self, rig: Rig) -> None:
        self.pages = rig.size // EXPECTED_BYTES
        rig.memory.release()
        gc.collect()  # what an earlier benchmark has left is not to go away while this one looks
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._most = PAGE_SIZE  # a small machine may find room in what was freed before
        self._machine = Machine(self.pages * PAGE_SIZE, contents=False)
        rig.closing.callback(self._machine.close)
        self._host = Host(self._machine)
        self._clock = LiveClock()
        rig.closing.callback(self._clock.stop)
        self._rebooted = False

    def run(self) -> float:
        """All of it the first time; then what it took. Bytes, in the place of seconds: both are better when fewer."""
        if not self._rebooted:
            self._clock.run(self._life())
            self._clock.run(self._drained())
            self._look()
            self._rebooted = True
        return float(self._most)

    def gibibytes(self) -> float:
        """The most that was resident at any of the looks, less what was before."""
        return self._most / (1 << 30)

    async def _life(self) -> None:
        sizes = StorageSizes()
        others = frames_for(0, 1, sizes) + 2 * sizes.total(self.pages, 1) + 2 * UV_BASE_PAGES
        guest = self.pages - others - self.pages // 400
        process = self._host.create_process()
        vm = self._host.create_vm(process, [range(guest)], 1)
        image = BootImage(np.zeros((IMAGE_PAGES, PAGE_SIZE), np.uint8), self._machine.workers)
        await load_boot_image(vm, 0, image)
        await protect(vm, image)
        handle = vm.kvm.pv.handle
        stamps = np.ones(AT_ONCE, np.uint64)
        for at in range(0, guest, AT_ONCE):
            pages = np.arange(at, min(at + AT_ONCE, guest), dtype=np.int64)
            await access(vm, 0, pages, STORE_WORD, stamps[: pages.size])
        self._look()
        owned = self._owned(handle)
        if owned != guest:
            raise ModelError(f"the guest that was to have {guest} pages has {owned}")
        if (await kvm.disable(vm)).errno:
            raise ModelError("the reboot of the guest failed")
        await access(vm, 0, np.zeros(1, np.int64), LOAD, np.zeros(1, np.uint64))
        self._look()

    async def _drained(self) -> None:
        await Wait(lambda: self._host.threads == 0, "background threads to end", patient=True)

    def _owned(self, handle: int) -> int:
        firmware = vault.firmware_of(self._machine.ultravisor)
        slot = firmware.configurations[handle].slot
        return int(scan.count_owned(firmware.state, firmware.owner, slot, 0, self._machine.pages))

    def _look(self) -> None:
        self._most = max(self._most, self._process.memory_info().rss - self._before)

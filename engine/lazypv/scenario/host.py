"""The library's host and VM: the kernel's texts, driven by the live clock.

machine = lazypv.Machine("16GiB")
host = lazypv.Host(machine, lazy_destroy=True)
vm = host.create_vm("8GiB", vcpus=2, image="guest.elf.zst")
vm.protect()
vm.run(lazypv.Workload("uniform"))
report = vm.reboot()
host.drain()
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypv.clocks.actors import Actor
from lazypv.clocks.live import LiveClock
from lazypv.errors import MemoryShortageError, UsageError
from lazypv.guest import GuestRun, Workload
from lazypv.host.host import SYNC_BELOW, frames_for
from lazypv.host.host import Host as Kernel
from lazypv.host.kvm import Result, disable
from lazypv.host.run import access
from lazypv.host.vm import Process, Vm
from lazypv.host.walk import LIVE_BATCH, Throttle
from lazypv.image import NO_PAGE, GuestImage, image_for
from lazypv.invariants import LastInstruction, OldRun, Violation, check_frames, check_structures
from lazypv.invariants.accounts import owned_below
from lazypv.scenario.boot import BOOT_IMAGE_SIZE, BootImage, load_boot_image, protect
from lazypv.scenario.snapshots import SnapshotHost, SnapshotVM
from lazypv.sizes import PAGE_SIZE, format_size, parse_pages
from lazypv.steps import Text, Wait
from lazypv.ultravisor.interface import RRC_DEFERRED
from lazypv_kernels.access import LOAD, hash_words
from lazypv_kernels.layout import NO_FRAME

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypv.hardware import Machine
    from lazypv.host.policy import TeardownPolicy
    from lazypv.series import Series


@dataclass(frozen=True)
class Report:
    """A reboot until the guest is back, or a shutdown until its process is gone.

    Attributes
    ----------
    downtime_s : float
        Reboot: from the old run's last instruction, CPU destroys included, to the next run's first. Shutdown: until the
        address space is torn down, the CPUs are destroyed, the VM's file is closed. Seconds of this model on this
        computer, not of a mainframe.
    result : Result
        What KVM gave back: rc 1, rrc 42 when work was put off.
    owned_pages : int
        Pages that the old run owned at its last instruction.
    destroyed_sync : int
        Those among them that were destroyed in the guest's time.
    held_back_bytes : int
        Memory that is to come back later: pages that the old run still owns, and storage donated for it.
    left_below_limit : int
        Pages below `sync_below` that it still owns; 0, unless an invariant is broken.
    """

    downtime_s: float
    result: Result
    owned_pages: int
    destroyed_sync: int
    held_back_bytes: int
    left_below_limit: int

    @property
    def deferred(self) -> bool:
        """Whether cleaning goes on behind the guest's back."""
        return self.result.rrc == RRC_DEFERRED


LIVE_NODES = 16
"""Nodes of the set-aside list that the live clock fills with one hold: a step costs more than writing a node down."""


class Host(SnapshotHost):
    """Linux with the series applied, on one machine, on real threads.

    Parameters
    ----------
    machine : Machine
    lazy_destroy : bool
        The module parameter (patch 10); false is the eager way: reboots destroy first, shutdowns export.
    series : Series
        Which patches are in force; all, unless said otherwise.
    sync_below : int or str
        Guest memory below this is never destroyed lazily.
    batch : int
        Pages of one batch of a walk.
    throttle : float, Throttle or None
        Pages a second that the background may destroy, or ``Throttle(share=...)``; None for no limit.
    policy : TeardownPolicy
        How protected guests end; the series' way, unless said otherwise (:mod:`lazypv.policy`).
    """

    def __init__(
        self,
        machine: Machine,
        *,
        lazy_destroy: bool = True,
        series: Series | None = None,
        sync_below: int | str = SYNC_BELOW,
        batch: int = LIVE_BATCH,
        throttle: float | Throttle | None = None,
        policy: TeardownPolicy | None = None,
    ) -> None:
        self.machine = machine
        self.clock = LiveClock()
        self.kernel = Kernel(
            machine,
            lazy_destroy=lazy_destroy,
            series=series,
            sync_below=sync_below,
            batch=batch,
            throttle=throttle if isinstance(throttle, Throttle) else Throttle(throttle),
            nodes_at_once=LIVE_NODES,
            policy=policy,
        )
        self.clock.blame = getattr(self.kernel.teardown, "blame", None)
        self.kernel.throttle.now = self.clock.now

    def create_vm(
        self,
        memory: int | str | None = None,
        *,
        vcpus: int = 2,
        image: str | os.PathLike[str] | GuestImage | None = None,
        seed: int = 0,
    ) -> VM:
        """A VM in a process of its own, with `memory` (the image's own size if None).

        Parameters
        ----------
        image : path, GuestImage or None
            What the guest's memory holds once it runs; None is a synthetic guest.

        Raises
        ------
        ImageError, SizeError
            The image cannot be read, or is larger than `memory`.
        MemoryShortageError
            The machine has not enough frames.
        """
        if vcpus < 1:
            raise UsageError(f"a VM with {vcpus} CPUs is refused: it has to have 1 or more")
        opened = image if isinstance(image, GuestImage) else image_for(image, memory, seed)
        pages = opened.size // PAGE_SIZE if memory is None else parse_pages(memory)
        rows = opened.source(pages * PAGE_SIZE)
        needed = frames_for(pages, vcpus, self.kernel.storage_sizes, self.kernel.node_capacity)
        if needed > self.machine.frames.free():
            raise MemoryShortageError(
                f"a guest of {format_size(pages * PAGE_SIZE)} takes {needed} frames of the host, of which"
                f" {self.machine.frames.free()} are free"
            )
        process = self.kernel.create_process()
        return VM(self, process, self.kernel.create_vm(process, [range(pages)], vcpus), opened, rows, seed)

    def drain(self) -> None:
        """Wait until nothing is left to clean behind anybody's back.

        Raises
        ------
        ModelError
            A background thread broke down.
        """
        self.clock.run(self._drained(), "drain")
        self.clock.join_ended()
        self.kernel.reap()

    async def _drained(self) -> None:
        await Wait(lambda: self.kernel.threads == 0, "background threads to end", patient=True)

    def check(self) -> list[Violation]:
        """The invariants that arrays and structures can show, now. Nothing may be running."""
        return [*check_frames(self.kernel), *check_structures(self.kernel, drained=self.kernel.threads == 0)]

    def close(self) -> None:
        """End what still runs and join all threads."""
        self.clock.stop()


class VM(SnapshotVM):
    """One guest, from its first boot to its end; made by :meth:`Host.create_vm`."""

    def __init__(
        self, host: Host, process: Process, vm: Vm, image: GuestImage, rows: NDArray[np.uint32], seed: int
    ) -> None:
        self.host = host
        self.kernel_vm = vm
        self.image = image
        self.guest = GuestRun(vm)
        self._process = process
        self._rows = rows
        self._words: NDArray[np.uint64] = image.pages.view(np.uint64)
        self._seed = seed
        self._boot_image: BootImage | None = None
        self.last_instruction: LastInstruction | None = None
        self.exceptions_before: Counter[int] = Counter()

    @property
    def pages(self) -> int:
        """Guest pages."""
        return self.kernel_vm.guest_pages

    @property
    def vcpus(self) -> int:
        """Virtual CPUs."""
        return len(self.kernel_vm.kvm.vcpus)

    @property
    def protected(self) -> bool:
        """Whether the guest is protected now."""
        return self.kernel_vm.kvm.pv.handle != 0

    @property
    def boot_image(self) -> BootImage:
        """The guest's sealed boot image: the beginning of its memory, 64 MiB at most. Made once."""
        if self._boot_image is None:
            pages = max(1, min(BOOT_IMAGE_SIZE // PAGE_SIZE, self.pages // 4))
            self._boot_image = BootImage(self._content(np.arange(pages)), self.host.machine.workers)
        return self._boot_image

    def _content(self, pages: NDArray[np.int64]) -> NDArray[np.uint8]:
        rows = self._rows[pages]
        content = self.image.pages[np.where(rows == NO_PAGE, 0, rows)]
        content[rows == NO_PAGE] = 0
        return content

    # --- a run ---------------------------------------------------------------------------------------------------

    def protect(self) -> None:
        """Bring the guest up as a protected one: boot loader, enable, set parameters, unpack, verify, start.

        Raises
        ------
        GuestStartError
            An ioctl failed.
        """
        self.host.clock.run(load_boot_image(self.kernel_vm, 0, self.boot_image), "boot loader")
        self.host.clock.run(protect(self.kernel_vm, self.boot_image), "protect")

    def populate(self) -> None:
        """The guest fills all of its memory with the image's content, each page with the stamp of this run."""
        pages = np.arange(self.pages, dtype=np.int64)
        rows = np.where(self._rows == NO_PAGE, -1, self._rows.astype(np.int64))

        def stripe(number: int) -> Text[None]:
            share = np.array_split(pages, self.vcpus)[number]
            return self.guest.load(number, share, self._words, rows[share])

        self.on_all_cpus(stripe)

    def run(self, workload: Workload | None = None) -> None:
        """The guest works until `workload` is done, on all of its CPUs."""
        self.host.clock.join(self.start(workload or Workload()))

    def start(self, workload: Workload) -> list[Actor]:
        """Let the guest work in the background; :meth:`stop` ends it."""
        usable = np.setdiff1d(np.arange(self.pages, dtype=np.int64), self.guest.shared, assume_unique=True)
        self.guest.stopping = False

        def cpu(number: int) -> Text[None]:
            touches = None if workload.touches is None else -(-workload.touches // self.vcpus)
            part = Workload(workload.pattern, usable.size // self.vcpus if touches is None else touches)
            batches = part.batches(usable, self._seed + number, self.boot_image.pages)
            return self.guest.write(number, batches) if workload.writes else self.guest.read_batches(number, batches)

        return [self.host.clock.spawn(cpu(number), f"vcpu{number}") for number in range(self.vcpus)]

    def stop(self, actors: list[Actor]) -> None:
        """End what :meth:`start` began, at the next batch."""
        self.guest.stopping = True
        self.host.clock.join(actors)

    def read(self, pages: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The guest reads whole `pages`, in this order, on its first CPU: uint64[k], a hash of each."""
        return self.host.clock.run(self.guest.read(0, np.ascontiguousarray(pages, np.int64)), "read")

    @property
    def zero_hash(self) -> int:
        """Hash of a page of zeroes, as :meth:`read` gives it."""
        return int(hash_words(np.zeros((1, PAGE_SIZE // 8), np.uint64), 0))

    def frame_of(self, page: int) -> int:
        """Host frame that backs a guest page.

        Raises
        ------
        UsageError
            Nothing is mapped there.
        """
        entry = self.kernel_vm.gmap.pte.entry(page) if 0 <= page < self.pages else NO_FRAME
        if entry == NO_FRAME:
            raise UsageError(f"nothing is mapped at guest page {page:#x}")
        return entry - 1

    def share(self, pages: NDArray[np.int64]) -> None:
        """The guest overwrites `pages` and shares them with the host."""
        self.host.clock.run(self.guest.share(0, pages), "share")

    def on_all_cpus(self, text: Callable[[int], Text[None]]) -> None:
        """Run ``text(number)`` on every vCPU, and wait for all."""
        self.host.clock.join([self.host.clock.spawn(text(number), f"vcpu{number}") for number in range(self.vcpus)])

    def page_hashes(self) -> NDArray[np.uint64]:
        """The guest reads all of its memory: uint64[pages], a hash of each page."""
        hashes = np.zeros(self.pages, np.uint64)

        async def stripe(number: int) -> None:
            share = np.array_split(np.arange(self.pages, dtype=np.int64), self.vcpus)[number]
            hashes[share] = await self.guest.read(number, share)

        self.on_all_cpus(stripe)
        return hashes

    # --- its end -------------------------------------------------------------------------------------------------

    def reboot(self) -> Report:
        """Leave protected mode and start over; returns when the guest is back, cleaning may go on behind its back.

        The next run is not protected yet; :meth:`protect` brings it there.

        Raises
        ------
        UsageError
            The guest is not protected.
        """
        last = self._stand_still()
        start = self.host.clock.now()
        result = self.host.clock.run(disable(self.kernel_vm), "reboot")
        self.guest = GuestRun(self.kernel_vm)
        self.host.clock.run(self._first_instruction(), "first instruction")
        return self._report(self.host.clock.now() - start, last, result)

    def shutdown(self) -> Report:
        """End the guest's process; returns when it is gone, cleaning may go on behind its back.

        Raises
        ------
        UsageError
            The guest is not protected.
        """
        last = self._stand_still()
        start = self.host.clock.now()
        self.kill()
        return self._report(self.host.clock.now() - start, last, self.kernel_vm.closed_result or Result(0, 0, 0))

    def kill(self) -> None:
        """End the guest's process, protected or not."""
        self.guest.stopping = True
        self._leave_snapshot()
        self.host.clock.run(self._process.exit(), "exit")

    def _report(self, downtime: float, last: LastInstruction, result: Result) -> Report:
        so_far = last.so_far(self.host.kernel)
        deferred = result.rrc == RRC_DEFERRED
        limit = 0 if self._process.mm.torn_down else self.host.kernel.sync_below_pages
        left_below = owned_below(self.host.machine, last.handle, limit)
        pages = last.owned - so_far.destroyed_sync - so_far.exported + self.host.kernel.put_off_pages
        return Report(
            downtime_s=downtime,
            result=result,
            owned_pages=last.owned,
            destroyed_sync=so_far.destroyed_sync,
            held_back_bytes=pages * PAGE_SIZE if deferred else 0,
            left_below_limit=left_below,
        )

    def _stand_still(self) -> LastInstruction:
        """The guest's last instruction."""
        handle = self.kernel_vm.kvm.pv.handle
        if not handle:
            raise UsageError("the guest is not protected: there is nothing to destroy")
        self._leave_snapshot()
        self.guest.stopping = True
        self.exceptions_before = Counter(self.host.kernel.ledger.exceptions)
        self.last_instruction = LastInstruction.of(self.host.kernel, handle)
        return self.last_instruction

    async def _first_instruction(self) -> None:
        """The first stage of the next run, which is not protected, begins."""
        await access(self.kernel_vm, 0, np.zeros(1, np.int64), LOAD, np.zeros(1, np.uint64))

    def accounts(self) -> OldRun:
        """How the pages of the run that ended last became clean, once nothing is left to clean."""
        if self.last_instruction is None:
            raise UsageError("no run of this guest has ended yet")
        return self.last_instruction.so_far(self.host.kernel)

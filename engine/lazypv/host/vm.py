"""A VM of the host and the process that it lives in."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lazypv.errors import MemoryShortageError, UsageError
from lazypv.hardware import GuestCpu
from lazypv.host.exit import mmput
from lazypv.host.gmap import ASCE_TYPE_REGION3, ASCE_TYPE_SEGMENT, CRST_ALLOC_PAGES, CrstTable, Gmap
from lazypv.host.kvm import Kvm, Result, close_vm
from lazypv.host.mm import Backing, Mm, Vma

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.errors import LazyPVError
    from lazypv.host.host import Host
    from lazypv.ultravisor import BulkAnswer

MAIN_AND_IO = 2
"""Tasks of a VM's process beside its vCPUs."""


class Process:
    """A process of the host: an address space, its tasks, its other pages.

    Attributes
    ----------
    tasks : int
        Threads that have not left the address space yet.
    cached : int64[k]
        Frames of its files and special mappings, on which page cache or drivers hold a reference.
    """

    def __init__(self, host: Host, private: int, shared_file: int, special: int) -> None:
        self.host = host
        self.tasks = MAIN_AND_IO
        self.mm = Mm(
            host.machine.frames,
            self.tasks,
            host.series.count_configurations,
            host.node_capacity,
            list_has_lock=not host.series.list_without_lock,
        )
        self.vms: list[Vm] = []
        kinds = ((private, Backing.PRIVATE), (shared_file, Backing.FILE), (special, Backing.SPECIAL))
        cached = [self._populate(pages, backing) for pages, backing in kinds if pages]
        self.cached: NDArray[np.int64] = np.concatenate(cached) if cached else np.empty(0, np.int64)

    def _populate(self, pages: int, backing: Backing) -> NDArray[np.int64]:
        """Map pages of the process's own; those that a cache or driver holds too."""
        frames = self.host.machine.frames.allocate(pages)
        if frames is None:
            raise MemoryShortageError(f"the machine has no {pages} free frames for the {backing.value}")
        self.mm.map(pages, backing).pte.map(np.arange(pages), frames)
        if not backing.cache_references:
            return np.empty(0, np.int64)
        self.host.machine.frames.get(frames)
        return frames

    def add_tasks(self, tasks: int) -> None:
        """Threads of the process, each a user of its address space."""
        self.tasks += tasks
        self.mm.users += tasks

    async def exit(self) -> None:
        """Every task leaves the address space, the last tears it down; then the files are closed, VMs among them."""
        while self.tasks:
            self.tasks -= 1
            await mmput(self.host, self.mm)
        for vm in self.vms:
            if not vm.closed:
                vm.closed_result = await close_vm(vm)
        self.host.machine.frames.put(self.cached)
        self.cached = np.empty(0, np.int64)


class Pager(Protocol):
    """Brings pages in from a snapshot when a protected guest first touches them."""

    problem: LazyPVError | None
    """Why it had to refuse one."""

    def import_pages(self, pages: NDArray[np.int64]) -> BulkAnswer:
        """What CONV_TO_SEC_STOR does for `pages`, and for those that are still in the snapshot, with their content."""


class Vm:
    """One VM: guest memory in its process, its KVM part, its gmap.

    Attributes
    ----------
    guest_pages : int
        End of guest memory, in pages.
    base : int
        Page of the address space at which guest page 0 lies.
    slots : list of Vma
        Where there is memory between 0 and the end.
    pager : Pager or None
        Where pages come from that are still in a snapshot.
    """

    def __init__(self, host: Host, process: Process, slots: list[range], vcpus: int) -> None:
        self.host = host
        self.process = process
        self.mm: Mm = process.mm
        if not slots or any(one.stop > two.start for one, two in itertools.pairwise(slots)):
            raise UsageError(f"memory slots {slots} are refused: they have to be in ascending order, without overlap")
        self.guest_pages = slots[-1].stop
        self.base = self.mm.end
        frames = host.machine.frames.allocate_run(CRST_ALLOC_PAGES, CRST_ALLOC_PAGES)
        if frames is None:
            raise MemoryShortageError("the machine has no free frames for the guest's top table")
        pte = host.machine.frames.page_table(self.guest_pages)
        self.slots: list[Vma] = [
            self.mm.map_table(pte.window(slot.start, slot.stop), self.base + slot.start, Backing.GUEST)
            for slot in slots
        ]
        self._backed = slots
        small = self.guest_pages <= host.sync_below_pages
        asce_type = ASCE_TYPE_SEGMENT if small else ASCE_TYPE_REGION3
        self.gmap = Gmap(host.machine, host.series, self.mm, pte, self.base, CrstTable(frames), asce_type)
        self.kvm = Kvm(vcpus)
        self.closed = False
        self.closed_result: Result | None = None
        self.pager: Pager | None = None
        self.mm.count += 1
        process.add_tasks(vcpus)
        process.vms.append(self)

    def is_backed(self, pages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which guest `pages` lie in a memory slot."""
        inside = np.zeros(pages.size, np.bool_)
        for slot in self._backed:
            inside |= (pages >= slot.start) & (pages < slot.stop)
        return inside

    async def remove_slot(self, start: int, stop: int) -> None:
        """The guest has no memory in ``[start, stop)`` any more. What is mapped there is not looked at."""
        async with self.mm.mmap_lock.exclusive():
            below = [range(slot.start, min(slot.stop, start)) for slot in self._backed]
            above = [range(max(slot.start, stop), slot.stop) for slot in self._backed]
            self._backed = sorted((part for part in (*below, *above) if part), key=lambda part: part.start)

    def has_mapping(self, pages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For which guest `pages` the address space has a mapping.

        As posted the first that ends above the page is taken, whether or not it begins above it too (D12).
        """
        if self.host.series.neighbour_taken:
            return self.base + pages < self.mm.end
        return self.is_backed(pages)

    def frame_at(self, page: int) -> int:
        """The frame behind a guest page, negative where nothing is mapped."""
        return self.gmap.pte.entry(page) - 1

    def cpu(self, number: int) -> GuestCpu:
        """What SIE is entered with for vCPU `number` now."""
        vcpu = self.kvm.vcpus[number]
        return GuestCpu(self.gmap.guest_handle, vcpu.handle, self.gmap.asce, self.gmap.pte.arrays)

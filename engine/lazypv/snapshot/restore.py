"""Restore a guest: all at once before it runs, each page verified and opened straight into the guest's storage.

A fresh configuration with a key of its own takes the pages in; rows are verified from private copies, and a batch is
the guest's as a whole or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import LazyPVError, MemoryShortageError
from lazypv.host import kvm
from lazypv.snapshot.chain import Chain
from lazypv.snapshot.errors import DamagedSnapshotError, SnapshotStateError
from lazypv.snapshot.ledger import Ledger, refuse
from lazypv.snapshot.reader import SnapshotFile, kinds_of, pages_of
from lazypv.snapshot.writer import NoProgress, Progress, save_threads
from lazypv.steps import Alloc, Call
from lazypv.ultravisor import BulkAnswer
from lazypv_kernels.layout import KIND_ZERO, RC_BUSY, RC_DONE, RC_DTYPE
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.vm import Vm
    from lazypv.ultravisor.snapshots import ConfigurationState

GROUP: Final = 256
"""Batches that are imported with one step."""


def ask_ledger(chain: Chain, ledger: Ledger, allow_rollback: bool) -> str:
    """Refuse a snapshot that is not the newest of its guest; what was overridden, in words.

    Raises
    ------
    RollBackError
        The ledger knows a newer one, or another one of the same age.
    """
    header, root = chain.newest.header, chain.newest.root
    standing = ledger.standing(header.guest_id, header.sequence, root, header.equals)
    # A recovered part is of the same age as the snapshot it was to be, and never taken for that.
    recovered = bool(header.incomplete) and standing.verdict == "second child"
    if not standing.refused or recovered:
        return ""
    what = "is older than another snapshot" if standing.verdict == "older" else "is not the snapshot of that age"
    error = refuse(chain.newest.name, standing, header.sequence, what, "--allow-rollback")
    if not allow_rollback:
        raise error
    return str(error)


async def begin(vm: Vm, chain: Chain, state: ConfigurationState) -> None:
    """Create the configuration and its CPUs, and let it continue as the one that was saved.

    Raises
    ------
    SnapshotStateError
        The Ultravisor refused it.
    """
    result = await kvm.enable(vm)
    if result.errno:
        raise SnapshotStateError(f"KVM_PV_ENABLE failed: errno {result.errno}, rc {result.rc:#06x}")
    (await vm.mm.write_protected()).parameters_set()
    ultravisor, handle = vm.host.machine.ultravisor, vm.kvm.pv.handle
    keys = [(file.keys.rows, file.keys.row_words()) for file in chain.files]
    root = bytes.fromhex(chain.newest.header.equals or chain.newest.root)
    begun: bool = await Call(
        "restore the configuration", lambda: ultravisor.begin_restore(handle, state, root, keys), vm
    )
    if not begun:
        raise SnapshotStateError(f"the snapshot's configuration does not fit a guest of {vm.guest_pages} pages")


async def finish(vm: Vm) -> None:
    """No page is left in the snapshot."""
    ultravisor, handle = vm.host.machine.ultravisor, vm.kvm.pv.handle
    await Call("end of the restore", lambda: ultravisor.end_restore(handle), vm)


async def restore_all(vm: Vm, chain: Chain, progress: Progress | None = None, threads: int | None = None) -> None:
    """Verify every row of every file, and make the newest of each page the guest's.

    Raises
    ------
    DamagedSnapshotError
        Something is not what was sealed: the guest must not run.
    MemoryShortageError
        The machine has not enough free frames.
    """
    progress = progress or NoProgress()
    progress.expect(sum(file.layout.batches for file in chain.files))
    seen = np.zeros(vm.guest_pages, np.bool_)
    workers = Workers(threads or save_threads())
    try:
        for number, file in enumerate(chain.files):
            for first in range(0, file.layout.batches, GROUP):
                some = range(first, min(first + GROUP, file.layout.batches))
                group = _Group(vm, file, number, some, seen, workers)
                await group.restore()
                for index in some:
                    progress(f"batch {index}")
            if number + 1 < len(chain.files):
                for pages in group_pages(file, workers):
                    seen[pages] = True
    finally:
        workers.close()


def group_pages(file: SnapshotFile, workers: Workers) -> list[NDArray[np.uint32]]:
    """Guest pages of a file, batch by batch."""

    def read(first: int, last: int) -> list[NDArray[np.uint32]]:
        buffer = file.new_buffer()
        return [pages_of(buffer, file.read_columns(index, buffer)).copy() for index in range(first, last)]

    return [pages for piece in workers.run(file.layout.batches, read, chunk=GROUP) for pages in piece]


class _Group:
    """Some batches of one file, restored with one step."""

    def __init__(
        self, vm: Vm, file: SnapshotFile, number: int, some: range, seen: NDArray[np.bool_], workers: Workers
    ) -> None:
        self.vm = vm
        self.file = file
        self.number = number
        self.some = some
        self.seen = seen
        self.workers = workers
        self.problem: LazyPVError | None = None
        self.wanted: list[NDArray[np.int64]] = []
        self.pages: NDArray[np.int64] = np.empty(0, np.int64)

    async def restore(self) -> None:
        """Map what the guest needs, then import."""
        self._choose()
        await _map_frames(self.vm, self.pages)
        kernel = self.vm.host.pages
        if self.pages.size:
            rc = await kernel.make_secure(self.vm.gmap, self.pages, self._import)
        else:
            self._import(self.pages)
            rc = np.empty(0, RC_DTYPE)
        if self.problem is not None:
            raise self.problem
        if np.any(rc != RC_DONE):
            bad = int(np.flatnonzero(rc != RC_DONE)[0])
            raise SnapshotStateError(f"guest page {int(self.pages[bad]):#x} was refused with rc {int(rc[bad]):#06x}")

    def _choose(self) -> None:
        """Rows that the guest gets: not zero, and in no newer file."""
        read = self.workers.run(len(self.some), self._choose_some, chunk=8)
        chosen = [each for piece in read for each in piece]
        self.wanted = [rows for rows, _ in chosen]
        self.pages = np.concatenate([pages for _, pages in chosen]) if chosen else self.pages

    def _choose_some(self, first: int, last: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        buffer = self.file.thread_buffer()
        chosen = []
        for index in self.some[first:last]:
            at = self.file.read_columns(index, buffer)
            pages = pages_of(buffer, at).astype(np.int64)
            rows = np.flatnonzero((kinds_of(buffer, at) != KIND_ZERO) & ~self.seen[pages])
            chosen.append((rows, pages[rows]))
        return chosen

    def _import(self, pages: NDArray[np.int64]) -> BulkAnswer:
        """All batches of the group; which pages are asked for is known, since nobody else runs."""
        pieces = self.workers.run(len(self.some), self._import_some, chunk=8)
        code = np.concatenate([rc for piece in pieces for rc in piece]) if pieces else np.empty(0, RC_DTYPE)
        busy = int(np.count_nonzero(code == RC_BUSY))
        done = int(np.count_nonzero(code == RC_DONE))
        return BulkAnswer(code, done, 0, busy, pages.size - done - busy)

    def _import_some(self, first: int, last: int) -> list[NDArray[np.uint16]]:
        buffer = self.file.thread_buffer()
        return [self._import_batch(slot, buffer) for slot in range(first, last)]

    def _import_batch(self, slot: int, buffer: NDArray[np.uint8]) -> NDArray[np.uint16]:
        index, rows = self.some[slot], self.wanted[slot]
        refused = np.full(rows.size, 0xFFFE, RC_DTYPE)
        if self.problem is not None:
            return refused
        try:
            at = self.file.read_batch(index, buffer)
            open_other_rows(self.file, index, buffer, at, rows)
            return import_rows(self.vm, self.file, self.number, index, buffer, at, rows)
        except LazyPVError as error:
            self.problem = error
            return refused


def open_other_rows(
    file: SnapshotFile, index: int, buffer: NDArray[np.uint8], at: NDArray[np.int64], rows: NDArray[np.int64]
) -> None:
    """Verify all rows of a batch but `rows`: no page of a damaged batch reaches a guest.

    Raises
    ------
    DamagedSnapshotError
    """
    total = pages_of(buffer, at).size
    if rows.size == total:
        return
    others = np.ones(total, np.bool_)
    others[rows] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], others, [False]])))
    for first, last in edges.reshape(-1, 2).tolist():
        file.open_rows(index, buffer, at, first, last)


def import_rows(
    vm: Vm,
    file: SnapshotFile,
    number: int,
    index: int,
    buffer: NDArray[np.uint8],
    at: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.uint16]:
    """Give the guest `rows` of a private copy of a batch; codes.

    Raises
    ------
    DamagedSnapshotError
        One of them is not what was sealed; none is the guest's then.
    """
    if not rows.size:
        return np.empty(0, RC_DTYPE)
    rc, bad = vm.host.machine.ultravisor.restore_rows(vm.kvm.pv.handle, number, index, buffer, at, rows)
    while bad < 0 and np.any(rc == RC_BUSY):
        rc, bad = vm.host.machine.ultravisor.restore_rows(vm.kvm.pv.handle, number, index, buffer, at, rows)
    if bad >= 0:
        error: DamagedSnapshotError = file.bad_row(index, buffer, at, bad)
        raise error
    return rc


async def _map_frames(vm: Vm, pages: NDArray[np.int64]) -> None:
    """Frames for `pages`, not cleared: what comes in covers all of them."""
    kernel = vm.host.pages
    absent = pages[vm.gmap.pte[pages] == 0]
    if not absent.size:
        return
    async with vm.mm.mmap_lock.shared():
        frames = await Alloc("guest memory", lambda: kernel.frames.allocate(absent.size))
        if frames is None:
            raise MemoryShortageError(
                f"the machine has {kernel.frames.free()} free frames, but the snapshot holds {absent.size} more pages"
            )
        mapped = vm.gmap.pte.map(absent, frames)
        if not mapped.all():
            kernel.frames.put(frames[~mapped])

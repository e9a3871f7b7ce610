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
from lazypv.snapshot.errors import DamagedSnapshotError, SnapshotStateError, damaged_batch
from lazypv.snapshot.layout import ROWS, Layout, packed_size, rows_of
from lazypv.snapshot.ledger import Ledger, refuse
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.writer import NoProgress, Progress, save_threads
from lazypv.steps import Alloc, Call
from lazypv.ultravisor import BulkAnswer
from lazypv_kernels import rows as row_kernels
from lazypv_kernels.layout import RC_BUSY, RC_DONE, RC_DTYPE
from lazypv_kernels.snapshots import RC_TORN
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.vm import Vm
    from lazypv.ultravisor.snapshots import ConfigurationState

GROUP: Final = 256
"""Batches that are imported with one step."""
PIECE: Final = 8
"""Batches for which a thread visits the Ultravisor once; it reads and opens one at a time, which fits its cache."""


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
            for some in _groups(file.layout):
                await _Group(vm, file, number, some, seen, workers).restore()
                for index in some:
                    progress(f"batch {index}")
    finally:
        workers.close()


def _groups(layout: Layout) -> list[range]:
    """All batches in pieces of batches of equal size: a last one with fewer rows is a piece of its own."""
    full = layout.rows // ROWS
    groups = [range(first, min(first + GROUP, full)) for first in range(0, full, GROUP)]
    return groups if full == layout.batches else [*groups, range(full, full + 1)]


class _Group:
    """Some batches of one file, restored with one step.

    What a batch says of its rows is read and verified first, since frames have to be mapped before anything can come
    in, and is kept: its MAC is made once, and of the batch as a whole only the page bytes are taken afterwards.
    """

    def __init__(
        self, vm: Vm, file: SnapshotFile, number: int, some: range, seen: NDArray[np.bool_], workers: Workers
    ) -> None:
        self.vm = vm
        self.file = file
        self.number = number
        self.some = some
        self.seen = seen
        self.workers = workers
        self.at = file.columns(some[0])
        self.packed: NDArray[np.uint8] = np.empty((len(some), packed_size(self.at)), np.uint8)
        self.problem: LazyPVError | None = None
        self.rows, self.pages, self.bounds = self._choose()

    def _choose(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows that the guest gets, not zero and in no newer file; their pages; where those of each batch begin."""
        count, rows = len(self.some), rows_of(self.file.layout.rows, self.some[0])
        wanted, pages = np.empty(count * rows, np.int64), np.empty(count * rows, np.int64)
        bounds = np.empty(count + 1, np.int64)
        self.file.read_packed(self.some, self.packed, self.at)
        good = row_kernels.choose_rows(self.packed, self.at, rows, self.seen, wanted, pages, bounds)
        if good < count:
            raise damaged_batch(self.file.name, self.some[good], "has a page that the guest has not")
        return wanted[: bounds[-1]], pages[: bounds[-1]], bounds

    async def restore(self) -> None:
        """Map what the guest needs, then import.

        Raises
        ------
        LazyPVError
            A batch is not what was sealed; or the Ultravisor refused a page.
        """
        await _map_frames(self.vm, self.pages)
        kernel = self.vm.host.pages
        if self.pages.size:
            rc = await kernel.make_secure(self.vm.gmap, self.pages, self._import)
        else:
            rc = self._import(self.pages).rc
        if self.problem is not None:
            raise self.problem
        if np.any(rc != RC_DONE):
            bad = int(np.flatnonzero(rc != RC_DONE)[0])
            raise SnapshotStateError(f"guest page {int(self.pages[bad]):#x} was refused with rc {int(rc[bad]):#06x}")

    def _import(self, pages: NDArray[np.int64]) -> BulkAnswer:
        """All batches of the group; which pages are asked for is known, since nobody else runs."""
        code = np.concatenate(self.workers.run(len(self.some), self._import_some, chunk=PIECE))
        busy = int(np.count_nonzero(code == RC_BUSY))
        done = int(np.count_nonzero(code == RC_DONE))
        return BulkAnswer(code, done, 0, busy, pages.size - done - busy)

    def _import_some(self, first: int, last: int) -> NDArray[np.uint16]:
        part = slice(int(self.bounds[first]), int(self.bounds[last]))
        rows, bounds = self.rows[part], self.bounds[first : last + 1] - part.start
        if self.problem is not None:
            return np.full(rows.size, RC_TORN, RC_DTYPE)
        ultravisor, handle = self.vm.host.machine.ultravisor, self.vm.kvm.pv.handle
        file, index = self.file, self.some[first]
        batch = file.thread_buffer()[: self.at[5]]
        rc, bad, row = ultravisor.restore_batches(
            handle, self.number, index, file.reader.arguments, file.layout.offset(index), batch,
            self.packed[first:last], self.at, rows, bounds,
        )  # fmt: skip
        if rows.size < (last - first) * rows_of(file.layout.rows, index):
            batch[: self.at[1]] = 0  # rows that nobody wants were opened in it
        if bad >= 0:
            self.problem = (
                file.bad_row(index + bad, batch, self.at, row)
                if row >= 0
                else file.reader.problem(file.name, index + bad)
            )
        return rc


def import_rows(
    vm: Vm,
    file: SnapshotFile,
    number: int,
    index: int,
    batch: NDArray[np.uint8],
    at: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    whole: bool,
) -> NDArray[np.uint16]:
    """Give the guest `rows` of a private copy of batch `index`, and again while one is busy; codes.

    Parameters as of the Ultravisor's `restore_rows`.

    Raises
    ------
    DamagedSnapshotError
        A row is not what was sealed; none is the guest's then.
    """
    ultravisor, handle = vm.host.machine.ultravisor, vm.kvm.pv.handle
    rc, bad = ultravisor.restore_rows(handle, number, index, batch, at, rows, whole=whole)
    while bad < 0 and rows.size and rc[0] == RC_BUSY:
        rc, bad = ultravisor.restore_rows(handle, number, index, batch, at, rows, whole=False)
    if bad >= 0:
        error: DamagedSnapshotError = file.bad_row(index, batch, at, bad)
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

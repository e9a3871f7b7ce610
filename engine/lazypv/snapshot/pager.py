"""Lazy restore: the guest runs at once, and each page comes in when it is first touched.

A page enters the guest from a private copy (``pread``), verified and decrypted from that one read; nothing is mapped,
since a file may change or shrink under a map. The first page of a batch to be touched has the whole batch verified.
Behind the guest's back the rest is fetched, what the guest will probably want first.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import LazyPVError
from lazypv.host.faults import import_pages
from lazypv.snapshot.chain import BatchPages, Chain
from lazypv.snapshot.errors import DamagedSnapshotError, IncompleteSnapshotError
from lazypv.snapshot.reader import kinds_of, pages_of
from lazypv.snapshot.restore import finish, import_rows
from lazypv.snapshot.writer import NoProgress, Progress
from lazypv.steps import Touch
from lazypv.ultravisor import BulkAnswer
from lazypv.ultravisor.interface import PGM_NON_SECURE_STORAGE_ACCESS, RC_FOREIGN, RC_INTEGRITY
from lazypv_kernels.layout import KIND_ZERO, RC_BUSY, RC_DONE, RC_DTYPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.vm import Vm

PREFETCH_PAGES = 1024
"""Pages that are fetched with one step: what a guest that touches one of them waits for."""


class SnapshotPager:
    """Brings the pages of one guest in.

    Attributes
    ----------
    problem : LazyPVError or None
        Why a page was refused; the guest that needs it is killed.
    touched : list of int
        Guest pages that the guest had to wait for, in that order.
    done : bool
        No page is left in the snapshot.
    stopping : bool
        The background is to end at its next step.
    """

    def __init__(self, vm: Vm, chain: Chain) -> None:
        if chain.incomplete:
            raise IncompleteSnapshotError(f"{chain.newest.name}: is incomplete: it can be restored eagerly only")
        self._vm = vm
        self._chain = chain
        self._pages = [BatchPages(file) for file in chain.files]
        self._verified = [np.zeros(file.layout.batches, np.bool_) for file in chain.files]
        self._lock = threading.Lock()
        self._reading = 0
        self._closed = False
        self.problem: LazyPVError | None = None
        self.touched: list[int] = []
        self.done = False
        self.stopping = False

    def close(self) -> None:
        """Let go of the files, as soon as nobody reads them.

        A CPU that is told that its page is still in the snapshot may come here after the last page has come in: it must
        not read from a descriptor that is another file's by then.
        """
        with self._lock:
            self._closed = True
            idle = not self._reading
        if idle:
            self._chain.close()

    def _begin_reading(self) -> bool:
        with self._lock:
            self._reading += not self._closed
            return not self._closed

    def _end_reading(self) -> None:
        with self._lock:
            self._reading -= 1
            last = self._closed and not self._reading
        if last:
            self._chain.close()

    # --- what a guest touches ------------------------------------------------------------------------------------

    def import_pages(self, pages: NDArray[np.int64]) -> BulkAnswer:
        """What CONV_TO_SEC_STOR does for `pages`, and for those that are still in the snapshot, with their content."""
        self._touched(pages)
        return self._import(pages)

    def _touched(self, pages: NDArray[np.int64]) -> None:
        with self._lock:
            self.touched.extend(pages.tolist())

    def _import(self, pages: NDArray[np.int64]) -> BulkAnswer:
        answer = self._ask_firmware(pages)
        missing = np.flatnonzero(answer.rc == RC_INTEGRITY)
        if missing.size:
            try:
                answer.rc[missing] = self._restore(pages[missing])
                # Where the last page has come in meanwhile, one that was never had is a page of zeroes again.
                still = missing[answer.rc[missing] == RC_INTEGRITY]
                answer.rc[still] = self._ask_firmware(pages[still]).rc
            except LazyPVError as error:
                self.problem = self.problem or error
        busy, good = np.count_nonzero(answer.rc == RC_BUSY), np.count_nonzero(answer.rc == RC_DONE)
        return BulkAnswer(answer.rc, int(good), 0, int(busy), int(pages.size - good - busy))

    def _ask_firmware(self, pages: NDArray[np.int64]) -> BulkAnswer:
        """CONV_TO_SEC_STOR. A shared page that is in already is answered as foreign: here that is no reason to refuse.

        Whoever else it belongs to, the guest's next access meets it.
        """
        answer = self._vm.host.machine.ultravisor.import_pages(self._vm.kvm.pv.handle, pages)
        answer.rc[answer.rc == RC_FOREIGN] = RC_DONE
        return answer

    def _restore(self, pages: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Codes; pages that have been in before, and hence are in no snapshot any more, are refused as altered."""
        code = np.full(pages.size, RC_INTEGRITY, RC_DTYPE)
        if not self._begin_reading():
            return code
        try:
            self._restore_into(code, pages)
        finally:
            self._end_reading()
        return code

    def _restore_into(self, code: NDArray[np.uint16], pages: NDArray[np.int64]) -> None:
        places = np.array([self._locate(int(page)) for page in pages], np.int64).reshape(-1, 3)
        batches, which = np.unique(places[:, :2], axis=0, return_inverse=True)
        for group, (number, index) in enumerate(batches.tolist()):
            some = np.flatnonzero(which.reshape(-1) == group)
            code[some] = self._restore_from(number, index, places[some, 2])

    def _locate(self, page: int) -> tuple[int, int, int]:
        """File, batch and row of the newest version of a guest page."""
        for number, pages in enumerate(self._pages):
            found = pages.locate(page)
            if found is not None:
                return number, *found
        raise DamagedSnapshotError(self._chain.newest.name, "footer", f"no batch has guest page {page:#x}", page=page)

    def _restore_from(self, number: int, index: int, rows: NDArray[np.int64]) -> NDArray[np.uint16]:
        file = self._chain.files[number]
        buffer = file.new_buffer()
        whole = not self._verified[number][index]
        if not whole:
            at = file.read_columns(index, buffer)
            for row in rows.tolist():
                file.read_pages(index, buffer, at, row, row + 1)
        else:
            at = file.read_batch(index, buffer)
        code = import_rows(self._vm, file, number, index, buffer[: at[5]], at, rows, whole=whole)
        self._verified[number][index] = True
        buffer[at[0] : at[1]] = 0
        code[(code != RC_DONE) & (code != RC_BUSY)] = RC_INTEGRITY
        return code

    # --- behind its back -----------------------------------------------------------------------------------------

    async def prefetch(self, working_set: tuple[int, ...], progress: Progress | None = None) -> None:
        """Fetch the recorded working set, then everything else, through the same door as the guest."""
        progress = progress or NoProgress()
        progress.expect(1 + sum(file.layout.batches for file in self._chain.files))
        progress("working set")
        await self._fetch(np.array(working_set, np.int64))
        for number, file in enumerate(self._chain.files):
            for index in range(file.layout.batches):
                progress(f"batch {index}")
                if not await self._fetch_batch(number, index):
                    return
        await finish(self._vm)
        self.done = True

    async def _fetch_batch(self, number: int, index: int) -> bool:
        """False if it was told to stop."""
        await Touch(self, "stopping")
        if self.stopping:
            return False
        try:
            kinds_and_pages = self._wanted(number, index)
        except LazyPVError as error:
            self.problem = self.problem or error
            raise
        await self._fetch(kinds_and_pages)
        return True

    def _wanted(self, number: int, index: int) -> NDArray[np.int64]:
        """Pages of a batch that are in no newer file and not zero; the whole batch is verified if nobody did yet."""
        file = self._chain.files[number]
        buffer = file.new_buffer()
        at = file.read_columns(index, buffer)
        pages = pages_of(buffer, at).astype(np.int64)
        wanted: NDArray[np.int64] = pages[kinds_of(buffer, at) != KIND_ZERO]
        newer = self._pages[:number]
        if newer:
            keep = [all(each.locate(int(page)) is None for each in newer) for page in wanted]
            wanted = wanted[np.array(keep, np.bool_)]
        if not wanted.size and not self._verified[number][index]:
            at = file.read_batch(index, buffer)
            file.open_rows(index, buffer, at, 0, pages.size)
            self._verified[number][index] = True
        return wanted

    async def _fetch(self, pages: NDArray[np.int64]) -> None:
        for first in range(0, pages.size, PREFETCH_PAGES):
            await Touch(self, "stopping")
            if self.stopping:
                return
            part = np.unique(pages[first : first + PREFETCH_PAGES])
            try:
                await import_pages(self._vm, part, self._import, PGM_NON_SECURE_STORAGE_ACCESS)
            except LazyPVError:
                if self.problem is not None:
                    raise self.problem from None
                raise

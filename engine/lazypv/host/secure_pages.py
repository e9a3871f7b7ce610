"""What the host does to single pages that may be secure: destroy, export, make accessible, make secure.

Each operation is one bulk step, and each page of it everything that belongs to that page: reference, call, mark. Busy
pages are tried again, refused ones handed to the caller.

Source: semantics 2.4, 2.5, 4.2, 4.7, 4.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.host.ledger import Ledger
from lazypv.steps import Batches, Bulk, Wait
from lazypv.ultravisor import BulkAnswer
from lazypv.ultravisor.interface import BIT_UVC_FEAT_MISC, CONV_TO_RC_NOT_MAPPED
from lazypv_kernels.layout import MARK_SECURE, NO_FRAME, RC_BUSY, RC_DONE, RC_DTYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypv.hardware import Machine
    from lazypv.host.gmap import Gmap
    from lazypv.machine import PageTable
    from lazypv.series import Series

    Frames = NDArray[np.int64]
    Codes = NDArray[np.uint16]

FREEZE_FAILED = 0xFFFF
"""-EBUSY: somebody else holds a reference, or the page is under writeback; no call was made."""
_NOT_THE_MARK = 0xFF ^ MARK_SECURE


class SecurePages:
    """Page operations of the host, with one machine, one series and one set of books."""

    def __init__(self, machine: Machine, series: Series, ledger: Ledger) -> None:
        self.machine = machine
        self.frames = machine.frames
        self.ultravisor = machine.ultravisor
        self.series = series
        self.ledger = ledger

    # --- the caller holds a reference on each frame --------------------------------------------------------------

    async def destroy_and_put(self, frames: Frames, account: str, *, or_export: bool = False) -> None:
        """Destroy `frames`, clear the mark of each that was, drop the caller's references (``destroy_pfns``).

        A refused page stays owned; its mapping keeps it alive, and unmapping or DESTROY_SEC_CONF deals with it later.
        With `or_export` it is exported instead, so that it is nobody's afterwards. `account` is where the destroyed
        pages are entered.
        """
        call = self._destroy_else_export if or_export else self.ultravisor.destroy_pages
        answer = await self._until_answered(
            "destroy pages", lambda part: self._call_and_settle(call, part, drop=True), frames
        )
        self.ledger.add(account, answer.done)

    def destroy_batches(
        self,
        pte: PageTable,
        at: int,
        end: int,
        batch: int,
        limit: int,
        account: str,
        stop: NDArray[np.uint8],
        gate: NDArray[np.uint8],
        *,
        base: int,
        or_export: bool,
    ) -> Batches[tuple[Frames, int, int]]:
        """Gather from ``pte[at:end]`` and :meth:`destroy_and_put`, batch after batch, in one piece.

        Gives back what the last batch has left over (busy pages, or all of them: gathered only), where to go on in the
        address space, whose page `base` is the table's first, and how many pages are gone.
        """
        run = self.machine.destroy_batches(
            pte, at, end, batch, limit,
            clear_mark=self.series.clear_marks, refused_stay=not or_export, stop=stop, gate=gate,
        )  # fmt: skip
        self.ledger.add(account, run.done)
        left = run.frames
        if run.answer is not None:
            answer, left = run.answer, left[run.settled :]
            answer.rc = answer.rc[run.settled :]
            if or_export:
                self._export_refused(left, answer)
            self._settle(left, answer, drop=True)
            left = left[answer.rc == RC_BUSY]
        return Batches((left, base + run.at, run.pages), run.batches, run.largest)

    def _destroy_else_export(self, frames: Frames) -> BulkAnswer:
        answer = self.ultravisor.destroy_pages(frames)
        self._export_refused(frames, answer)
        return answer

    def _export_refused(self, frames: Frames, answer: BulkAnswer) -> None:
        if answer.refused:
            refused = np.flatnonzero(answer.rc > RC_DONE)
            exported = self.ultravisor.export_pages(frames[refused])
            answer.rc[refused] = exported.rc
            answer.noop += exported.done + exported.noop
            answer.busy += exported.busy
            answer.refused = exported.refused

    async def destroy_kept(self, frames: Frames, account: str) -> BulkAnswer:
        """Destroy `frames` and clear the mark of each that was; references are dropped where that succeeded."""
        answer = await self._until_answered(
            "destroy set-aside pages",
            lambda part: self._settle_and_put_if_done(self.ultravisor.destroy_pages, part),
            frames,
        )
        self.ledger.add(account, answer.done)
        return answer

    def _settle_and_put_if_done(self, call: Callable[[Frames], BulkAnswer], frames: Frames) -> BulkAnswer:
        answer = call(frames)
        done = frames if answer.all_done else frames[answer.rc == RC_DONE]
        self.frames.settle(done, answer.rc[answer.rc == RC_DONE], clear_mark=self.series.clear_marks, drop=True)
        return answer

    async def destroy_or_export(self, frames: Frames) -> Codes:
        """Destroy `frames`; export those that are refused, since their owner lives (patch 03). References stay."""
        answer = await self._until_answered(
            "destroy pages", lambda part: self._call_and_settle(self.ultravisor.destroy_pages, part, drop=False), frames
        )
        self.ledger.add("destroyed_on_fault", answer.done)
        if not answer.refused:
            return answer.rc
        refused = np.flatnonzero(answer.rc != RC_DONE)
        answer.rc[refused] = await self.export_owned(frames[refused])
        return answer.rc

    async def export_owned(self, frames: Frames) -> Codes:
        """Export `frames` and clear the mark of each that was (``uv_convert_owned_from_secure``). References stay."""
        answer = await self._until_answered(
            "export pages", lambda part: self._call_and_settle(self.ultravisor.export_pages, part, drop=False), frames
        )
        return answer.rc

    async def export_and_put(self, frames: Frames) -> None:
        """Export `frames` at unmapping, and drop their mapping references.

        A page that is refused keeps its reference and counts as leaked: it is still secure, and the allocator must
        never get it (invariant 1).
        """
        answer = await self._until_answered(
            "export unmapped pages",
            lambda part: self._settle_and_put_if_done(self.ultravisor.export_pages, part),
            frames,
        )
        if answer.refused:
            self.ledger.leak("page that could not be exported", frames[answer.rc != RC_DONE])

    def _call_and_settle(self, call: Callable[[Frames], BulkAnswer], frames: Frames, drop: bool) -> BulkAnswer:
        """Issue `call`; then, page by page, clear the mark on success only (patch 02) and drop the reference."""
        answer = call(frames)
        self._settle(frames, answer, drop)
        return answer

    def _settle(self, frames: Frames, answer: BulkAnswer, drop: bool) -> None:
        if answer.busy:
            drop_now = answer.rc != RC_BUSY
            self.frames.settle(frames[drop_now], answer.rc[drop_now], clear_mark=self.series.clear_marks, drop=drop)
        else:
            self.frames.settle(frames, answer.rc, clear_mark=self.series.clear_marks, drop=drop)

    async def make_accessible(self, frames: Frames) -> Codes:
        """Let the host at `frames`: nothing if unmarked, else pin, else export (``arch_make_page_accessible``).

        The caller holds a reference on each, so no import can begin meanwhile.
        """
        answer = await self._until_answered("make accessible", self._pin_or_export, frames)
        return answer.rc

    def _pin_or_export(self, frames: Frames) -> BulkAnswer:
        rc = np.full(frames.size, RC_DONE, RC_DTYPE)
        marked = np.flatnonzero(self.frames.marked(frames))
        if marked.size:
            todo = frames[marked]
            pinned = self.ultravisor.pin_pages(todo)
            code = pinned.rc
            not_pinned = np.flatnonzero(code > RC_DONE)
            if not_pinned.size:
                exported = self.ultravisor.export_pages(todo[not_pinned])
                code[not_pinned] = exported.rc
                self.ledger.add("useless_calls", 2 * exported.noop)
            self.frames.settle(todo, code, clear_mark=True, drop=False)
            rc[marked] = code
        busy = int(np.count_nonzero(rc == RC_BUSY))
        refused = int(np.count_nonzero(rc > RC_DONE))
        return BulkAnswer(rc, frames.size - busy - refused, 0, busy, refused)

    # --- import --------------------------------------------------------------------------------------------------

    async def make_secure(
        self, gmap: Gmap, pages: NDArray[np.int64], call: Callable[[Frames], BulkAnswer], *, is_unpin: bool = False
    ) -> Codes:
        """Make guest `pages` secure by `call` (import, unpack, or unpin), under the mmap lock (``gmap_make_secure``).

        Returns
        -------
        uint16[k]
            0x0001 done; 0x010a not mapped; FREEZE_FAILED (-EBUSY); else the call's own refusal (-EINVAL).

        Source: semantics 2.5, 4.7; invariants 5, 6, 12.
        """
        async with gmap.mm.mmap_lock.shared():
            first = not is_unpin and await self.must_export_first(gmap)

            def secure(part: NDArray[np.int64]) -> BulkAnswer:
                return self._freeze_and_call(gmap, part, call, first)

            answer = await self._until_answered(
                "make secure", secure, pages, frame_of=lambda page: gmap.pte.entry(page) - 1
            )
        return answer.rc

    async def must_export_first(self, gmap: Gmap) -> bool:
        """Whether a page to be imported may still be shared by an older configuration (patches 07, 11)."""
        if not self.series.export_before_import:
            return False
        if self.series.feature_bits and BIT_UVC_FEAT_MISC in self.ultravisor.feature_bits:
            return False
        return await gmap.mm.read_protected() > 1

    def _freeze_and_call(
        self, gmap: Gmap, pages: NDArray[np.int64], call: Callable[[Frames], BulkAnswer], export_first: bool
    ) -> BulkAnswer:
        """Per page, its lock held: export if need be, freeze at the expected references, mark, call, unfreeze."""
        frames = gmap.pte.frames_at(pages)
        not_exported = self._export_mapped(frames) if export_first else []
        frozen, count = self.frames.freeze(frames, 1, absent=CONV_TO_RC_NOT_MAPPED, held=FREEZE_FAILED)
        done = noop = 0
        rc = frozen
        if count:
            held = None if count == pages.size else np.flatnonzero(frozen == RC_DONE)
            answer = call(pages if held is None else pages[held])
            self.frames.unfreeze(frames, 1, frozen)
            done, noop = answer.done, answer.noop
            if held is None:
                rc = answer.rc
            else:
                rc[held] = answer.rc
        for at in not_exported:
            rc[at] = RC_BUSY
        busy = rc.size - int(np.count_nonzero(rc))  # RC_BUSY is 0
        return BulkAnswer(rc, done, noop, busy, pages.size - done - noop - busy)

    def _export_mapped(self, frames: Frames) -> list[int]:
        """Export those of `frames` that are not negative; what is busy is negative afterwards, and given back.

        Imported without it, such a page would be refused as somebody else's (invariant 36).
        """
        exported = self.ultravisor.export_pages(frames[frames >= 0])
        self.ledger.add("exported_before_import", exported.done)
        if not exported.busy:
            return []
        busy: list[int] = np.flatnonzero(frames >= 0)[exported.rc == RC_BUSY].tolist()
        frames[busy] = -1
        return busy

    async def wait_for_import(self, gmap: Gmap, pages: NDArray[np.int64]) -> None:
        """After -EBUSY, -EAGAIN: until the first of `pages` has no unexpected reference and is not being written out.

        Also when it is mapped elsewhere meanwhile.
        """
        page = int(pages[0])
        entry = gmap.pte.entry(page)

        def settled() -> bool:
            now = gmap.pte.entry(page)
            return now != entry or now == NO_FRAME or self.frames.byte[now - 1] & _NOT_THE_MARK == 1

        await Wait(settled, "an unexpected page reference, or writeback, to go")

    # --- shared --------------------------------------------------------------------------------------------------

    async def clear_fresh(self, frames: Frames) -> Codes:
        """Clear pages fresh from the allocator; 0x3d for those that the kernel may not touch."""
        answer = await self._until_answered("clear fresh pages", self.machine.clear_pages, frames, uvc=False)
        return answer.rc

    async def _until_answered(
        self,
        name: str,
        operation: Callable[[Frames], BulkAnswer],
        column: NDArray[np.int64],
        *,
        uvc: bool = True,
        frame_of: Callable[[int], int] | None = None,
    ) -> BulkAnswer:
        """Issue a bulk step, and again for the busy pages only, until each has its answer (invariant 36)."""
        answer: BulkAnswer = await Bulk(name, operation, column, uvc=uvc, frame_of=frame_of)
        while answer.busy:
            busy = np.flatnonzero(answer.rc == RC_BUSY)
            again: BulkAnswer = await Bulk(name, operation, column[busy], uvc=uvc, frame_of=frame_of)
            answer.rc[busy] = again.rc
            answer.done += again.done
            answer.noop += again.noop
            answer.refused += again.refused
            answer.busy = again.busy
        return answer

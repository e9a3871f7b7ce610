"""What the host keeps of each frame: references, marks, and which frames are free.

One byte a frame (`lazypv_kernels.layout`); counts beyond 62 live in a side table. Nothing here knows page states: the
host learns them from the answers of Ultravisor calls and from exceptions.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import FrameError, LifetimeError
from lazypv.machine.page_table import PageTable
from lazypv_kernels import allocation, references
from lazypv_kernels.layout import (
    FRAME_DTYPE,
    HOST_DTYPE,
    MARK_SECURE,
    MARK_WRITEBACK,
    MARKS,
    NO_FRAME,
    RC_DONE,
    RC_DTYPE,
    REFERENCES,
    REFERENCES_OVERFLOW,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frames = NDArray[np.int64]

_NO_RC = np.empty(0, RC_DTYPE)


class HostFrames:
    """The host's byte of every frame.

    Attributes
    ----------
    byte : uint8[n]
        Two mark bits and six bits of references; zero is a free frame.
    segmented : bool
        Page tables that map these frames lie below segment tables.
    """

    def __init__(self, pages: int, *, segmented: bool = False) -> None:
        self.segmented = segmented
        self.byte: NDArray[np.uint8] = np.zeros(pages, HOST_DTYPE)
        self._many: dict[int, int] = {}
        self._many_lock = threading.Lock()
        self._cursor = 0

    def __len__(self) -> int:
        return self.byte.size

    def page_table(self, pages: int) -> PageTable:
        """A page table for `pages`, none of them mapped."""
        return PageTable.of(pages, segmented=self.segmented)

    def free(self) -> int:
        """Frames that nobody holds."""
        return self.byte.size - int(np.count_nonzero(self.byte))

    def allocate(self, want: int) -> Frames | None:
        """`want` frames with one reference each, or None when there are not as many free."""
        frames = np.empty(want, FRAME_DTYPE)
        count, cursor = allocation.allocate(self.byte, self._cursor, want, frames)
        self._cursor = int(cursor)
        if count < want:
            self.put(frames[:count])
            return None
        return frames

    def allocate_run(self, want: int, align: int = 1, start: int = 0) -> Frames | None:
        """`want` consecutive frames, the first a multiple of `align`; None when there is no such run."""
        first = int(allocation.allocate_run(self.byte, start, align, want))
        return None if first < 0 else np.arange(first, first + want, dtype=FRAME_DTYPE)

    def take_free_blocks(self, size: int) -> list[tuple[int, int]]:
        """Blocks of `size` frames, aligned to that, in which every frame was free: now with one reference each.

        As ranges (first, last), as long as possible, ascending.
        """
        blocks = np.empty(self.byte.size // size, FRAME_DTYPE)
        taken = blocks[: allocation.allocate_blocks(self.byte, size, blocks)]
        parts = np.split(taken, np.flatnonzero(np.diff(taken) != size) + 1) if taken.size else []
        return [(int(part[0]), int(part[-1]) + size) for part in parts]

    def get(self, frames: Frames) -> None:
        """One more reference on each of `frames`, which somebody already holds.

        Raises
        ------
        LifetimeError
            A frame is free.
        """
        at = 0
        while (at := int(references.get_references(self.byte, frames, at, frames.size))) < frames.size:
            if not self._get_many(int(frames[at])):
                raise LifetimeError(25, f"frame {frames[at]}: nobody holds it, so nobody can pass a reference on")
            at += 1

    def look_up(self, pte: PageTable, pages: NDArray[np.int64]) -> Frames:
        """The frame behind each of `pages`, with one reference more; -1 where nothing is mapped."""
        frames = np.empty(pages.size, FRAME_DTYPE)
        at = 0
        places = pages + pte.first if pte.first else pages
        while (at := int(references.look_up(pte.arrays, places, self.byte, frames, at, pages.size))) < pages.size:
            if frames[at] < -1:
                self.put(np.array([-2 - frames[at]]))
                continue
            frames[at] = self._hold_mapped(pte, int(pages[at]))
            at += 1
        return frames

    def put(self, frames: Frames) -> int:
        """Drop one reference each; the number of frames that are free now. Marks go with the last reference."""
        return self.settle(frames, _NO_RC, clear_mark=False, drop=True)

    def settle(self, frames: Frames, rc: NDArray[np.uint16], *, clear_mark: bool, drop: bool) -> int:
        """After a call on `frames`: clear the mark where `rc` says done, drop one reference each (patch 02).

        Raises
        ------
        LifetimeError
            A reference is dropped that nobody holds.
        """
        freed, at = 0, 0
        while at < frames.size:
            more, stopped, fault = references.settle(self.byte, frames, at, frames.size, rc, clear_mark, drop)
            freed, at = freed + more, int(stopped)
            if fault:
                raise LifetimeError(25, f"frame {frames[at]}: a reference was dropped twice")
            if at < frames.size and self._settle_many(int(frames[at]), clear_mark and bool(rc[at] == RC_DONE)):
                at += 1
        return freed

    def gather(self, pte: PageTable, at: int, end: int, limit: int, frames: Frames | None = None) -> tuple[Frames, int]:
        """Frames mapped by ``pte[at:end]``, at most `limit`, one reference each; and the next entry."""
        if frames is None:
            frames = np.empty(limit, FRAME_DTYPE)
        last = end + pte.first
        count, stopped, left = references.gather(pte.arrays, at + pte.first, last, self.byte, limit, frames)
        while left:
            if left > 0:
                self.put(frames[count : count + left])
            else:
                frame = self._hold_mapped(pte, int(stopped) - pte.first)
                if frame >= 0:
                    frames[count] = frame
                    count += 1
                stopped += 1
            more, stopped, left = references.gather(pte.arrays, stopped, last, self.byte, limit - count, frames[count:])
            count += more
        return frames[:count], int(stopped) - pte.first

    def freeze(self, frames: Frames, expected: int, *, absent: int, held: int) -> tuple[NDArray[np.uint16], int]:
        """Freeze those that have exactly `expected` references, and mark them; (rc, how many). Semantics 2.5.

        `held` is the code of those that somebody else holds or writes back, `absent` of negative ones.
        """
        rc = np.empty(frames.size, RC_DTYPE)
        return rc, int(references.freeze(self.byte, frames, expected, absent, held, 0, frames.size, rc))

    def unfreeze(self, frames: Frames, expected: int, rc: NDArray[np.uint16]) -> None:
        """Undo :meth:`freeze` for those it froze."""
        references.unfreeze(self.byte, frames, expected, 0, frames.size, rc)

    def marked(self, frames: Frames) -> NDArray[np.bool_]:
        """Which of `frames` may be secure, as far as the host knows."""
        answer = np.empty(frames.size, np.bool_)
        references.marked(self.byte, frames, MARK_SECURE, 0, frames.size, answer)
        return answer

    def set_writeback(self, frames: Frames, under_writeback: bool) -> None:
        """Begin or end writing `frames` out; meanwhile none of them is imported (invariant 6)."""
        references.mark_frames(self.byte, frames, MARK_WRITEBACK, under_writeback, 0, frames.size)

    def reference_count(self, frame: int) -> int:
        """References on one frame.

        Raises
        ------
        FrameError
            The frame lies outside the machine.
        """
        if not 0 <= frame < self.byte.size:
            raise FrameError(f"frame {frame} lies outside a machine of {self.byte.size} frames")
        with self._many_lock:
            count = int(self.byte[frame]) & REFERENCES
            return self._many[frame] if count == REFERENCES_OVERFLOW else count

    def _hold_mapped(self, pte: PageTable, page: int) -> int:
        """The frame behind a page, of the side table when a kernel saw it, with one reference more; -1: none.

        Read again once the reference is there, as kernels do.
        """
        entry = pte.entry(page)
        if entry == NO_FRAME or not self._get_many(entry - 1):
            return -1
        if pte.entry(page) == entry:
            return entry - 1
        self.put(np.array([entry - 1]))
        return -1

    # A kernel stopped at a frame of the side table; until the lock is ours, the frame may have left it again. The byte
    # says "side table" only while the lock protects the entry, and its marks may change under kernels at any time.

    def _get_many(self, frame: int) -> bool:
        """One more reference on `frame`; false if it is free by now."""
        with self._many_lock:
            while (answer := references.get_reference(self.byte, frame)) == references.OVERFLOW:
                seen = int(self.byte[frame])
                if seen & REFERENCES == REFERENCES_OVERFLOW:
                    self._many[frame] += 1
                    return True
                if seen & REFERENCES == REFERENCES_OVERFLOW - 1 and self._exchange(frame, seen, seen + 1):
                    self._many[frame] = REFERENCES_OVERFLOW
                    return True
            return answer == references.TAKEN

    def _settle_many(self, frame: int, clear_mark: bool) -> bool:
        """Drop a reference of the side table; false, and nothing done, if `frame` has left it by now."""
        with self._many_lock:
            while (seen := int(self.byte[frame])) & REFERENCES == REFERENCES_OVERFLOW:
                marks = seen & (MARKS & ~MARK_SECURE if clear_mark else MARKS)
                left = self._many[frame] - 1
                if self._exchange(frame, seen, marks | min(left, REFERENCES_OVERFLOW)):
                    self._many[frame] = left
                    if left < REFERENCES_OVERFLOW:
                        del self._many[frame]
                    return True
            return False

    def _exchange(self, frame: int, seen: int, after: int) -> bool:
        return references.exchange_byte(self.byte, frame, seen, after)

"""Page tables of the host, of one of the two kinds that kernels know (:mod:`lazypv_kernels.tables`).

Where there are contents a table is flat: four bytes a page are nothing beside the page. Where there are none, it lies
below a segment table, and a guest of terabytes whose memory is in few pieces takes a few megabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv_kernels import references, tables
from lazypv_kernels.layout import FRAME_DTYPE, PTE_DTYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypv_kernels.arrays import Table

AT_ONCE: Final = 1 << 20
"""Pages of a table that are looked at in one piece by whoever looks at all of them."""


class PageTable:
    """What is mapped at each page of a range: frame + 1, 0 where nothing is.

    Parameters
    ----------
    arrays : uint32[m], or (uint64[s], uint32[m])
        The whole table, as kernels take it.
    first, size : int
        The part of it that this range is.
    """

    def __init__(self, arrays: Table, first: int, size: int) -> None:
        self.arrays = arrays
        self.first = first
        self.size = size

    @classmethod
    def of(cls, pages: int, *, segmented: bool) -> PageTable:
        """A table for `pages`, none of them mapped."""
        entries = np.zeros(pages, PTE_DTYPE)
        if not segmented:
            return cls(entries, 0, pages)
        return cls((np.zeros(-(-pages // tables.SEGMENT_PAGES), np.uint64), entries), 0, pages)

    def window(self, start: int, stop: int) -> PageTable:
        """The part for pages ``[start, stop)`` of the range; both have the same entries."""
        return PageTable(self.arrays, self.first + start, stop - start)

    def entry(self, page: int) -> int:
        """What is mapped at one page: frame + 1, or 0."""
        if isinstance(self.arrays, np.ndarray):
            return int(self.arrays[self.first + page])
        return int(self[np.array([page])][0])

    def __getitem__(self, pages: NDArray[np.int64]) -> NDArray[np.uint32]:
        """What is mapped at each of `pages`: frame + 1, or 0; a copy."""
        if isinstance(self.arrays, np.ndarray):
            return self.arrays[pages + self.first]
        values = np.empty(pages.size, PTE_DTYPE)
        tables.load_entries(self.arrays, pages, self.first, values)
        return values

    def frames_at(self, pages: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frame behind each of `pages`, -1 where there is none."""
        frames = self[pages].astype(FRAME_DTYPE)
        frames -= 1
        return frames

    def frames(self) -> NDArray[np.int64]:
        """The frame behind each page of the range, -1 where there is none."""
        frames = np.empty(self.size, FRAME_DTYPE)
        tables.frames_between(self.arrays, self.first, self.first + self.size, frames)
        return frames

    def mapped_frames(self) -> Iterator[NDArray[np.int64]]:
        """The frames behind all pages that are mapped, part after part."""
        for at in range(0, self.size, AT_ONCE):
            frames = self.window(at, min(at + AT_ONCE, self.size)).frames()
            yield frames[frames >= 0]

    def count(self) -> int:
        """Pages that are mapped."""
        return int(tables.count_mapped(self.arrays, self.first, self.first + self.size))

    def map(self, pages: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Enter `frames` at `pages`; false where something is mapped already."""
        mapped = np.zeros(pages.size, np.uint8)
        places = pages + self.first if self.first else pages
        references.map_pages(self.arrays, places, frames, 0, pages.size, mapped)
        return mapped.view(np.bool_)

    def unmap(self, at: int, end: int, limit: int) -> tuple[NDArray[np.int64], int]:
        """Clear what is mapped in ``[at, end)``, at most `limit` pages: their frames, and where to go on."""
        frames = np.empty(min(limit, end - at), FRAME_DTYPE)
        count, stopped = references.unmap(self.arrays, at + self.first, end + self.first, frames.size, frames)
        return frames[:count], int(stopped) - self.first

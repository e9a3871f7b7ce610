"""What every reader of images hands out: stored pages, and where in the guest each belongs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lazypv.errors import SizeError
from lazypv.sizes import PAGE_SIZE

NO_PAGE = 0xFFFFFFFF
"""In a table of rows: this guest page is a zero page that the image does not hold."""

MAX_SIZE = NO_PAGE * PAGE_SIZE
"""Rows and guest pages are uint32, and `NO_PAGE` is none of them: an image ends here at the latest."""


@dataclass(frozen=True, eq=False)
class GuestImage:
    """Memory content of a guest, read-only.

    Attributes
    ----------
    name : str
        File name without its folder, or ``"synthetic"``.
    pages : uint8[n, PAGE_SIZE]
        The stored pages, contiguous and not writeable, possibly a view into a mapped file: no alignment is promised.
    guest_page : uint32[n]
        Guest page of each stored page, ascending.
    size : int
        Bytes from address 0 to the end of the last page, stored or not.
    """

    name: str
    pages: NDArray[np.uint8]
    guest_page: NDArray[np.uint32]
    size: int

    def source(self, memory: int | None = None) -> NDArray[np.uint32]:
        """Row of `pages` for each page of a guest with `memory` bytes.

        A guest of the image's own size has `NO_PAGE` in the holes. In a larger one the stored pages repeat, row 0 on,
        over the holes and the rest: zero pages, duplicates and text keep the shares that they have in the image.

        Parameters
        ----------
        memory : int, optional
            Bytes; the image's own size if not given.

        Returns
        -------
        row : uint32[memory / PAGE_SIZE]

        Raises
        ------
        SizeError
            `memory` is not in whole pages, smaller than the image, or beyond what 32-bit rows can name.
        """
        memory = self.size if memory is None else memory
        self._check_memory(memory)
        row = np.full(memory // PAGE_SIZE, NO_PAGE, dtype=np.uint32)
        stored = len(self.pages)
        row[self.guest_page] = np.arange(stored, dtype=np.uint32)
        if memory > self.size and stored:
            hole = row == NO_PAGE
            row[hole] = np.arange(np.count_nonzero(hole), dtype=np.uint32) % np.uint32(stored)
        return row

    def _check_memory(self, memory: int) -> None:
        if memory % PAGE_SIZE:
            raise SizeError(f"guest memory of {memory} bytes is not a multiple of {PAGE_SIZE} bytes")
        if memory < self.size:
            raise SizeError(f"guest memory of {memory} bytes is smaller than image {self.name}, which has {self.size}")
        if memory > MAX_SIZE:
            raise SizeError(f"guest memory of {memory} bytes is larger than {MAX_SIZE}, the most an image can fill")

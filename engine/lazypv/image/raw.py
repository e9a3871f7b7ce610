"""Plain memory, as QEMU's ``pmemsave`` writes it: byte 0 of the file is absolute address 0, nothing is left out."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from lazypv.errors import ImageError
from lazypv.image.guest_image import MAX_SIZE, GuestImage
from lazypv.sizes import PAGE_SIZE


def read(path: str, content: NDArray[np.uint8]) -> GuestImage:
    """Guest image of plain memory, a view of `content` (uint8[n], n > 0).

    Raises
    ------
    ImageError
        n is not in whole pages, or beyond what 32-bit guest pages can name.
    """
    size = content.size
    if size % PAGE_SIZE:
        raise ImageError(path, f"is no ELF dump, and no plain memory: {size} bytes are no multiple of {PAGE_SIZE}")
    if size > MAX_SIZE:
        raise ImageError(path, f"has {size} bytes, but an image ends at {MAX_SIZE} at the latest")
    return GuestImage(
        name=os.path.basename(path),
        pages=content.reshape(-1, PAGE_SIZE),
        guest_page=np.arange(size // PAGE_SIZE, dtype=np.uint32),
        size=size,
    )

"""A boot image and its header, as the owner of a guest prepares them.

Pages are sealed with a key of the image; the header carries that key and the pages' tags. Here the header is an object
that the host cannot look into; a real one is encrypted for the firmware's host key (`se-image-format`, later).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lazypv_kernels import seal
from lazypv_kernels.layout import KEY_SIZE, SCRATCH_SIZE, TAG_SIZE
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ImageHeader:
    """Key and tags of a boot image whose first page is guest page `first`."""

    __slots__ = ("_key", "_tags", "first", "pages")

    def __init__(self, key: NDArray[np.uint8], tags: NDArray[np.uint8], first: int) -> None:
        self._key = key
        self._tags = tags
        self.first = first
        self.pages = int(tags.shape[0])

    def __repr__(self) -> str:
        return f"ImageHeader(first={self.first}, pages={self.pages})"

    @classmethod
    def seal(
        cls,
        pages: NDArray[np.uint8],
        first: int,
        workers: Workers | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> ImageHeader:
        """Seal ``pages`` (uint8[n, 4096]) in place as guest pages `first` and following, under a fresh random key."""
        key = np.frombuffer(entropy(KEY_SIZE), np.uint8).reshape(1, KEY_SIZE).copy()
        tags = np.empty((pages.shape[0], TAG_SIZE), np.uint8)
        (workers or Workers()).run(
            pages.shape[0],
            lambda at, end: seal.seal_image(pages, key, tags, first, np.empty(SCRATCH_SIZE, np.uint8), at, end),
        )
        return cls(key, tags, first)

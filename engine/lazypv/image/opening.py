"""The door of the room: which reader an image belongs to is told by its first bytes, never by its name."""

from __future__ import annotations

import os

from lazypv.errors import ImageError
from lazypv.image import elf, raw
from lazypv.image.content import read_content
from lazypv.image.guest_image import GuestImage
from lazypv.image.synthetic import DEFAULT_SIZE, synthetic
from lazypv.sizes import PAGE_SIZE, parse_pages


def open_image(path: str | os.PathLike[str] | None, *, seed: int = 0) -> GuestImage:
    """Guest image of a file, or the synthetic guest.

    Parameters
    ----------
    path : path or None
        An ELF core of a big-endian s390 guest, or its plain memory from address 0 on; either may be zstd-compressed.
        An uncompressed file is mapped, not read, and must not shrink while the image is in use. None: synthetic guest.
    seed : int
        Of the synthetic guest; a file has no use for it.

    Raises
    ------
    ImageError
        The file cannot be read or is no image; the message says what was expected where.
    """
    if path is None:
        return synthetic(seed)
    path = os.fsdecode(path)
    try:
        content = read_content(path)
        return elf.read(path, content) if elf.is_elf(content) else raw.read(path, content)
    except MemoryError as error:
        raise ImageError(path, "needs more memory than this machine has") from error


def image_for(path: str | os.PathLike[str] | None, memory: int | str | None, seed: int) -> GuestImage:
    """The image at `path`, or a synthetic guest that is no larger than `memory`."""
    if path is not None:
        return open_image(path)
    size = DEFAULT_SIZE if memory is None else min(DEFAULT_SIZE, parse_pages(memory) * PAGE_SIZE)
    return synthetic(seed, size)

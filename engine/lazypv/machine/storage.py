"""Absolute storage: the bytes of the machine, our own or somebody's.

Only the rooms above that stand for hardware and firmware hold an :class:`AbsoluteStorage`; the host reads by copy,
since a view would stay readable after an import.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np
import psutil

from lazypv.errors import MemoryShortageError, SizeError, UsageError
from lazypv.sizes import format_size
from lazypv_kernels.layout import PAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from lazypv_kernels.workers import Workers

ALIGNMENT = 64
"""Streaming stores fault on less."""
HUGE_PAGE = 2 << 20
HUGE_PAGES = HUGE_PAGE // PAGE_SIZE
"""Frames of a huge page: our own storage begins with a whole one."""


class AbsoluteStorage:
    """Page contents of a machine.

    Attributes
    ----------
    contents : uint8[n, 4096]
        One row a frame; ``uint8[0, 4096]`` in a machine without contents.
    words : uint64[n, 512]
        The same bytes as words.
    pages : int
        Frames of the machine, with or without contents.
    """

    def __init__(self, pages: int, contents: NDArray[np.uint8], owner: object = None) -> None:
        self.pages = pages
        self.contents = contents
        self.words: NDArray[np.uint64] = contents.view(np.uint64)
        self._owner = owner
        self._anonymous: tuple[mmap.mmap, int] | None = None

    @property
    def can_be_given_back(self) -> bool:
        """Whether this is our own anonymous memory, of which the operating system can have parts back."""
        return self._anonymous is not None and hasattr(mmap, "MADV_DONTNEED")

    def give_back(self, first: int, last: int) -> None:
        """The operating system has the memory of frames ``[first, last)`` back; they read as zero from now on.

        Whoever touches one of them next pays for a page, or for a huge page, and for clearing it.

        Raises
        ------
        UsageError
            The memory is somebody else's.
        """
        if self._anonymous is None or not self.can_be_given_back:
            raise UsageError("only a machine's own memory can be given back to the operating system")
        memory, skipped = self._anonymous
        memory.madvise(mmap.MADV_DONTNEED, skipped + first * PAGE_SIZE, (last - first) * PAGE_SIZE)

    def first(self, pages: int) -> AbsoluteStorage:
        """The first `pages` of it as the storage of another machine, once this one's has gone: touched already."""
        part = AbsoluteStorage(pages, self.contents[:pages], self._owner)
        part._anonymous = self._anonymous
        return part

    @classmethod
    def own(cls, pages: int, workers: Workers) -> AbsoluteStorage:
        """Anonymous memory in huge pages where there are any, touched once by all `workers`.

        Raises
        ------
        MemoryShortageError
            The computer has less memory available than that.
        """
        size = pages * PAGE_SIZE
        available = available_memory()
        if size > available:
            raise MemoryShortageError(
                f"a machine of {format_size(size)} was asked for, but {format_size(available)} of memory are available"
            )
        memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        skipped = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE_PAGE
        contents = np.frombuffer(memory, np.uint8, size, skipped).reshape(pages, PAGE_SIZE)
        workers.run(pages, lambda first, last: contents[first:last, 0].fill(0))
        storage = cls(pages, contents, memory)
        storage._anonymous = (memory, skipped)
        return storage

    @classmethod
    def attach(cls, buffer: Buffer) -> AbsoluteStorage:
        """Somebody's writable memory, in place. What its owner can read it stays able to read.

        Raises
        ------
        SizeError
            Not writable, not contiguous, not in whole pages, or not aligned to 64 bytes.
        """
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise SizeError("a machine's storage has to be a writable, contiguous buffer")
        flat = np.frombuffer(view, np.uint8)
        if flat.size == 0 or flat.size % PAGE_SIZE:
            raise SizeError(f"the buffer has {flat.size} bytes, which is not a whole number of {PAGE_SIZE}-byte pages")
        if flat.ctypes.data % ALIGNMENT:
            raise SizeError(f"the buffer begins at an address that is not a multiple of {ALIGNMENT}")
        return cls(flat.size // PAGE_SIZE, flat.reshape(-1, PAGE_SIZE), view)

    @classmethod
    def none(cls, pages: int) -> AbsoluteStorage:
        """A machine of states only."""
        return cls(pages, np.empty((0, PAGE_SIZE), np.uint8))


def available_memory() -> int:
    """Bytes that this process can still get: the computer's, or its container's if that is less."""
    available = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit_file) as limit, open(used_file) as used:
                available = min(available, int(limit.read()) - int(used.read()))
        except (OSError, ValueError):
            continue
    return max(available, 0)

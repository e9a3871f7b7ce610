"""The bytes of a file, mapped where they stand or decompressed; what they mean is not known here."""

from __future__ import annotations

import mmap
import os
import stat
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lazypv.errors import ImageError
from lazypv.sizes import format_size

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 20  # of decompressed bytes: what is in memory twice


def read_content(path: str) -> NDArray[np.uint8]:
    """All bytes of a file, after decompression if it starts as a zstd stream.

    Returns
    -------
    content : uint8[n]
        n > 0, not writeable.

    Raises
    ------
    ImageError
        Not there, not a regular file, not readable, empty, or a broken zstd stream.
    """
    try:
        _check_regular(path)
        with open(path, "rb") as file:
            compressed = file.read(len(_ZSTD_MAGIC)) == _ZSTD_MAGIC
            file.seek(0)
            content = _decompress(path, file) if compressed else _map(path, file)
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from error
    content.flags.writeable = False
    return content


def _check_regular(path: str) -> None:
    """Asked before the file is opened: the open of a named pipe would wait for somebody to write into it."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a null byte or a lone surrogate
        raise ImageError(repr(path), f"cannot be the name of a file: {error}") from error
    if stat.S_ISDIR(mode):
        raise ImageError(path, "is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise ImageError(path, "is not a regular file")


def _map(path: str, file: IO[bytes]) -> NDArray[np.uint8]:
    if os.fstat(file.fileno()).st_size == 0:
        raise ImageError(path, "is empty")
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _decompress(path: str, file: IO[bytes]) -> NDArray[np.uint8]:
    import pyarrow as pa  # here, because it takes 0.17 s and most images come without

    limit = _physical_memory()
    content = bytearray()  # grows by remapping: no second copy, and no trust in the size that the stream claims
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    try:
        while chunk := stream.read(_CHUNK):
            content += chunk
            if len(content) > limit:
                raise ImageError(path, f"decompresses to more than the {format_size(limit)} of memory of this machine")
    except OSError as error:
        raise ImageError(path, f"zstd stream is damaged or cut short: {error}") from error
    if not content:
        raise ImageError(path, "decompresses to nothing")
    return np.frombuffer(content, dtype=np.uint8)


def _physical_memory() -> int:
    """Bytes; a stream beyond that (a few KiB can decompress to terabytes) would end in the kernel's OOM killer."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

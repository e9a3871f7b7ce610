"""Files are replaced atomically, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lazypv.errors import UsageError


def check_writable(path: Path) -> None:
    """Say now rather than after the runs that `path` cannot be written.

    Raises
    ------
    UsageError
        Its folder does not exist or may not be written, or it is a folder, a device or a pipe itself.
    """
    folder = path.resolve().parent
    if path.is_dir():
        raise UsageError(f"{path}: is a folder")
    _expect_a_file(path)
    if not folder.is_dir():
        raise UsageError(f"{path}: its folder does not exist")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: its folder may not be written")


@contextmanager
def replaced_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when all of it is on disk; nothing is left if that fails.

    Where `path` is a link, what it leads to is replaced.

    Raises
    ------
    UsageError
        A device or a pipe is there, whose place no file is to take: ``/dev/null`` would be gone for everybody.
    """
    _expect_a_file(path)
    target = path.resolve()
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _expect_a_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is not a file, and is not replaced by one")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

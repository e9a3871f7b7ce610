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
        Its folder does not exist or may not be written, or it is a folder itself.
    """
    folder = path.resolve().parent
    if path.is_dir():
        raise UsageError(f"{path}: is a folder")
    if not folder.is_dir():
        raise UsageError(f"{path}: its folder does not exist")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: its folder may not be written")


@contextmanager
def replaced_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when all of it is on disk; nothing is left if that fails."""
    folder = path.resolve().parent
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

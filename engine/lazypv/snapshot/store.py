"""Where snapshots are kept: files of this computer, and whatever pyarrow has a file system for.

Reading gives private copies (``pread``); writing a local file is atomic: a hidden file beside it, fsync, rename, fsync
of the folder. A store named by a URI is written through pyarrow's stream, in order, under another name first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazypv.errors import LazyPVError, UsageError
from lazypv.files import check_writable
from lazypv.snapshot.errors import SnapshotWriteError, damaged_batch
from lazypv.snapshot.ledger import sync_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

Target = str | os.PathLike[str]
UNFINISHED = ".unfinished"


def is_uri(target: Target) -> bool:
    """Whether a store is named by a URI rather than by a path."""
    return "://" in os.fspath(target)


def keep_sources(output: Target, sources: Iterable[Target]) -> None:
    """Refuse to replace what a new file is made of, or builds on.

    Raises
    ------
    UsageError
    """
    for source in sources:
        if _same(output, source):
            raise UsageError(f"{output}: would be replaced, but is what the new file is made of; name another output")


def _same(one: Target, other: Target) -> bool:
    if is_uri(one) or is_uri(other):
        return os.fspath(one) == os.fspath(other)
    return os.path.realpath(one) == os.path.realpath(other)


def _file_system(uri: str) -> tuple[Any, str]:
    """pyarrow's file system of a URI, and the path in it.

    Raises
    ------
    UsageError
        There is none of that kind.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"{uri}: {str(error).partition('. Detail')[0]}") from error
    return system, path


# --- reading -----------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Something to read from."""

    name: str

    @property
    def size(self) -> int:
        """Bytes now."""

    def read_into(self, buffer: NDArray[np.uint8], offset: int) -> int:
        """Copy bytes from `offset` on into all of `buffer`; fewer at the end of the file: how many."""

    def close(self) -> None:
        """Let go of it."""


class LocalSource:
    """A file of this computer."""

    def __init__(self, path: Target) -> None:
        self.name = os.fspath(path)
        # Without O_NONBLOCK opening a pipe waits for somebody who writes to it.
        self._file = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            os.close(self._file)
            raise UsageError(f"{self.name}: is not a regular file")

    @property
    def size(self) -> int:
        """Bytes now."""
        return os.fstat(self._file).st_size

    def read_into(self, buffer: NDArray[np.uint8], offset: int) -> int:
        """Copy bytes from `offset` on into `buffer`; how many there were."""
        view, done = buffer.data, 0
        while done < len(view):
            more = os.preadv(self._file, [view[done:]], offset + done)
            if more == 0:
                break
            done += more
        return done

    @property
    def handle(self) -> int:
        """Its descriptor."""
        return self._file

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


class RemoteSource:
    """A file of a pyarrow file system."""

    def __init__(self, uri: str) -> None:
        self.name = uri
        system, path = _file_system(uri)
        self._file = system.open_input_file(path)
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return int(self._file.size())

    def read_into(self, buffer: NDArray[np.uint8], offset: int) -> int:
        """Copy bytes from `offset` on into `buffer`; how many there were."""
        if offset >= self.size:
            return 0
        with self._lock:
            data = self._file.read_at(buffer.size, offset)
        buffer[: len(data)] = np.frombuffer(data, np.uint8)
        return len(data)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


class Reader:
    """What kernels read a source with: the address of a function like ``pread``, and a handle for it.

    A file of this computer is read by the C library itself; any other source calls back into Python.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._error: OSError | None = None
        self.arguments: tuple[int, int]
        if isinstance(source, LocalSource):
            self.arguments = _PREAD, source.handle
            return
        self._callback = _READS(self._read)  # as long as this lives its address is good
        self.arguments = ctypes.cast(self._callback, ctypes.c_void_p).value or 0, 0

    def _read(self, _handle: int, target: int, size: int, offset: int) -> int:
        try:
            into = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(target))
            return self._source.read_into(into, offset)
        except OSError as error:
            self._error = error
            return -1

    def problem(self, name: str, index: int) -> LazyPVError:
        """Why batch `index` could not be read."""
        if self._error is not None:
            return UsageError(f"{name}: {self._error.strerror or self._error}, while batch {index} was read")
        return damaged_batch(name, index, "truncated")


_READS = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
_PREAD = ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value or 0


def open_source(target: Target) -> Source:
    """Open a snapshot's bytes.

    Raises
    ------
    UsageError
        Not there, or not to be read.
    """
    try:
        return RemoteSource(os.fspath(target)) if is_uri(target) else LocalSource(target)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror or error}") from error


# --- writing -----------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """Something to write a snapshot to."""

    in_order: bool

    def write(self, data: Any, offset: int) -> None:
        """Put bytes at `offset`; what nobody writes is zero. A sink `in_order` is written from its beginning on."""


class LocalSink:
    """A file of this computer that has its size already: what is not written is a hole."""

    in_order = False

    def __init__(self, handle: int) -> None:
        self._file = handle

    def write(self, data: Any, offset: int) -> None:
        """Put bytes at `offset`."""
        view = memoryview(data).cast("B")
        while len(view):
            done = os.pwrite(self._file, view, offset)
            view, offset = view[done:], offset + done


class StreamSink:
    """A stream: gaps are filled with zeroes."""

    in_order = True

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._at = 0

    def write(self, data: Any, offset: int) -> None:
        """Put bytes at `offset`, which is not before the last ones."""
        if offset > self._at:
            self._stream.write(bytes(offset - self._at))
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self._at = offset + len(view)


@contextmanager
def new_file(target: Target, where: Callable[[], str]) -> Iterator[Sink]:
    """A sink whose bytes take the place of `target` when all of them are safe; nothing is left if that fails.

    Parameters
    ----------
    where : callable
        What is being written, for the error that says how far it was.

    Raises
    ------
    SnapshotWriteError
        The store is full, or cannot be written.
    """
    try:
        with _remote(os.fspath(target)) if is_uri(target) else _local(Path(target)) as sink:
            yield sink
    except OSError as error:
        raise SnapshotWriteError(target, error, where()) from error


@contextmanager
def _local(path: Path) -> Iterator[Sink]:
    check_writable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield LocalSink(handle)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path)


@contextmanager
def _remote(uri: str) -> Iterator[Sink]:
    system, path = _file_system(uri)
    temporary = f"{path}.{secrets.token_hex(4)}{UNFINISHED}"
    try:
        with system.open_output_stream(temporary) as stream:
            yield StreamSink(stream)
        system.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.delete_file(temporary)
        raise

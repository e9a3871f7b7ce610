"""FILE.part: what an interrupted pull leaves, and what the next one goes on with."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import UsageError
from lazypv.snapshot.arriving import Arrived
from lazypv.snapshot.errors import DamagedSnapshotError, NotAnArrowFileError, SnapshotWriteError, WrongKeyError
from lazypv.snapshot.flight import Extent
from lazypv.snapshot.keys import SnapshotKey
from lazypv.snapshot.ledger import sync_folder
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.store import LocalSink

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART = ".part"


class Part:
    """FILE.part: header, end, and what of the batches has been verified; holes for the others. One pull has it."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + PART)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have given it its final name meanwhile.
            if not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                raise FileNotFoundError
        except OSError:
            os.close(self._file)
            raise UsageError(f"{self.path}: another pull has it") from None
        self._sink = LocalSink(self._file)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file < 0:
            return
        if os.fstat(self._file).st_size == 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        os.close(self._file)

    def begun(self, key: SnapshotKey) -> SnapshotFile | None:
        """What an earlier pull left; None if that is nothing, or its header or end is not whole.

        Raises
        ------
        UsageError
            It is something else.
        WrongKeyError
            It was pulled with another key.
        """
        if os.fstat(self._file).st_size == 0:
            return None
        try:
            found = SnapshotFile(self.path, key)
        except WrongKeyError:
            raise
        except NotAnArrowFileError as error:
            # A pull writes the end first, so one that was killed before has left nothing but zeroes here.
            if os.pread(self._file, 8, 0).strip(b"\0"):
                raise UsageError(f"{self.path}: is there already, and no pull has begun it") from error
            return None
        except DamagedSnapshotError:
            return None
        found.close()
        # What is read from now on is the file that was locked, whatever its name stands for.
        found.source = _Locked(self.path, self._file)
        return found

    def begin(self, arrived: Arrived) -> None:
        """Header and end, and a hole between them."""
        with self._writing("the header"):
            os.ftruncate(self._file, 0)
            os.ftruncate(self._file, arrived.size)
            self._sink.write(arrived.end, arrived.size - arrived.end.size)
            self._sink.write(np.ascontiguousarray(arrived.header), 0)

    def write(self, extents: list[Extent], where: str) -> None:
        """Bytes of a batch that was verified; what lies between its extents becomes zero, or stays a hole."""
        with self._writing(where):
            at = extents[0][0]
            for offset, data in extents:
                self._clear(at, offset)
                self._sink.write(np.ascontiguousarray(data), offset)
                at = offset + data.size

    def _clear(self, first: int, last: int) -> None:
        """An earlier pull may have left bytes here that did not verify; where there are none nothing is written."""
        if first < last and os.pread(self._file, last - first, first).strip(b"\0"):
            self._sink.write(bytes(last - first), first)

    def finish(self, path: Path, key: SnapshotKey, root: str) -> None:
        """What is on disk has the root that arrived: it gets its name.

        Raises
        ------
        DamagedSnapshotError
            Somebody else changed the file meanwhile.
        """
        with self._writing("the end"):
            os.fsync(self._file)
            opened = SnapshotFile(self.path, key)
            opened.close()
            if opened.root != root or not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                raise DamagedSnapshotError(self.path, "footer", "was changed while it was pulled")
            os.replace(self.path, path)
            sync_folder(path)
        os.close(self._file)
        self._file = -1

    @contextlib.contextmanager
    def _writing(self, where: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SnapshotWriteError(self.path, error, where) from error


class _Locked:
    """FILE.part as a source."""

    def __init__(self, path: Path, handle: int) -> None:
        self.name = str(path)
        self._file = handle

    @property
    def size(self) -> int:
        """Bytes now."""
        return os.fstat(self._file).st_size

    def read_into(self, buffer: NDArray[np.uint8], offset: int) -> int:
        """Copy bytes from `offset` on into `buffer`; how many there were."""
        return os.preadv(self._file, [buffer.data], offset)

    def close(self) -> None:
        """The handle is the part's."""

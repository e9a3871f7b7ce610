"""A snapshot that comes in piece by piece: its header first, then its end, then batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.snapshot.errors import DamagedSnapshotError
from lazypv.snapshot.flight import Extent
from lazypv.snapshot.keys import FileKeys, SnapshotKey
from lazypv.snapshot.reader import SnapshotFile, check_header, pages_of, read_header

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Arrived:
    """A source whose bytes are those that came last: header, end, and one batch.

    Attributes
    ----------
    size : int
        Bytes of the file, as the server says.
    header, end : uint8[n]
        What stands before the first batch and behind the last.
    """

    def __init__(self, name: str, size: int, header: NDArray[np.uint8]) -> None:
        self.name = name
        self.size = size
        self.header = header
        self.end: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._batch: Extent = (0, self.end)

    def set_batch(self, start: int, size: int, extents: list[Extent]) -> None:
        """The batch of `size` bytes that begins at `start`; what is in no extent is zero."""
        content = np.zeros(size, np.uint8)
        for offset, data in extents:
            content[offset - start : offset - start + data.size] = data
        self._batch = start, content

    def read_into(self, buffer: NDArray[np.uint8], offset: int) -> int:
        """Copy bytes from `offset` on; how many of them are here."""
        for start, data in (self._batch, (0, self.header), (self.size - self.end.size, self.end)):
            if start <= offset < start + data.size:
                piece = data[offset - start : offset - start + buffer.size]
                buffer[: piece.size] = piece
                return int(piece.size)
        return 0

    def close(self) -> None:
        """Nothing is held."""


class Arriving(SnapshotFile):
    """A snapshot whose header was verified when it came; then comes its end, then batch by batch."""

    def __init__(self, arrived: Arrived, key: SnapshotKey) -> None:
        self.source = self.arrived = arrived
        self.name = arrived.name
        found = read_header(arrived)
        self.header, self.layout, self.schema = found.header, found.layout, found.schema
        if self.layout.header_size != arrived.header.size:
            raise DamagedSnapshotError(self.name, "header", "more bytes than it says: altered")
        self.keys = FileKeys(key, bytes.fromhex(self.header.file_id))
        check_header(self.name, found, self.keys)
        self._message = found.message

    @property
    def most_end(self) -> int:
        """Bytes that can stand behind the last batch: MAC, first page and place of each, and the header once more."""
        return 128 * (self.layout.batches + 1) + 2 * self.layout.header_size + (1 << 16)

    def check_end(self) -> None:
        """Authenticate root, list of batches and footer."""
        self._check_end(self._message)


def check_batch(file: SnapshotFile, index: int, buffer: NDArray[np.uint8]) -> None:
    """Verify all of batch `index`: its MAC, and every row; the plain text does not stay in `buffer`.

    Raises
    ------
    DamagedSnapshotError
    """
    try:
        at = file.read_batch(index, buffer)
        file.open_rows(index, buffer, at, 0, pages_of(buffer, at).size)
    finally:
        buffer[:] = 0

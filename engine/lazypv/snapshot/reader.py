"""One snapshot, opened: header, footer and root are checked at once, batches when they are read.

Everything that is trusted was authenticated before: first the header, whose keys follow from its file id; then the root
over header, list of batches and footer; then, batch by batch, a private copy.
"""

from __future__ import annotations

import base64
import hmac
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lazypv.snapshot import layout
from lazypv.snapshot.errors import DamagedSnapshotError, NotAnArrowFileError, WrongKeyError, damaged_batch
from lazypv.snapshot.keys import FileKeys, SnapshotKey
from lazypv.snapshot.layout import FOOTER_MARK, HEADER_MARK, NO_DIGITS, ROOT_MARK, Header, Layout
from lazypv.snapshot.store import Reader, Source, Target, open_source
from lazypv.ultravisor.snapshots import ConfigurationState
from lazypv_kernels import reading
from lazypv_kernels import rows as row_kernels
from lazypv_kernels.layout import PAGE_SIZE, SCRATCH_SIZE, TAG_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIRST_READ = 1 << 16
_BEHIND_A_PAGE = 2048 + 16


@dataclass(frozen=True)
class Unverified:
    """Header and positions of a file, as it says them itself.

    Attributes
    ----------
    message : bytes
        Magic and schema message.
    """

    message: bytes
    header: Header
    layout: Layout
    schema: pa.Schema


def read_header(source: Source) -> Unverified:
    """What a file says of itself; nothing of it is verified.

    Raises
    ------
    NotAnArrowFileError
        Arrow's magic is at neither end.
    DamagedSnapshotError
        It is at one end at least, but the header cannot be read.
    """
    start = read_bytes(source, 0, _FIRST_READ)
    end = read_bytes(source, max(0, source.size - len(layout.MAGIC)), len(layout.MAGIC))
    if not start.startswith(layout.HEAD):
        if not start.startswith(layout.MAGIC) and end != layout.MAGIC:
            raise NotAnArrowFileError(source.name)
        raise DamagedSnapshotError(source.name, "header", "does not begin as an Arrow file")
    size = int.from_bytes(start[12:16], "little") + 16
    if start[8:12] != b"\xff\xff\xff\xff" or size > layout.MOST_HEADER:
        raise DamagedSnapshotError(source.name, "header", "has no schema message")
    message = start[:size] if size <= len(start) else read_bytes(source, 0, size)
    if len(message) < size:
        raise DamagedSnapshotError(source.name, "header", f"ends at byte {len(message)} of {size}: truncated")
    try:
        schema = layout.schema_with(message)
        header = Header.decode(schema.metadata or {})
    except (ValueError, TypeError, OSError, pa.ArrowException) as error:
        raise DamagedSnapshotError(source.name, "header", f"is not that of a snapshot ({error})") from error
    return Unverified(message, header, Layout(size, header.rows, header.metadata_size), schema)


def private_copy(size: int) -> NDArray[np.uint8]:
    """Room for `size` bytes of a file.

    Where it begins decides how fast the kernel copies into it: 16 bytes behind a multiple of 64 it takes three quarters
    of the time that it takes at one; but one and a half, if both places differ by that in their pages.
    """
    room = np.empty(size + PAGE_SIZE, np.uint8)
    start = (_BEHIND_A_PAGE - room.ctypes.data) % PAGE_SIZE
    return room[start : start + size]


def read_bytes(source: Source, offset: int, size: int) -> bytes:
    """A private copy; shorter at the end of the file."""
    buffer = np.empty(size, np.uint8)
    return buffer[: source.read_into(buffer, offset)].tobytes()


def header_mac(keys: FileKeys, message: bytes) -> bytes:
    """Digits of a header's MAC; in `message` they are zeroes."""
    return hmac.new(keys.root, b"header" + message, "sha256").hexdigest().encode()


def footer_mac(keys: FileKeys, end: bytes) -> bytes:
    """Digits of the MAC of what stands behind the trailer."""
    return hmac.new(keys.root, b"footer" + end, "sha256").hexdigest().encode()


def root_mac(keys: FileKeys, header: Header, message: bytes, trailer: bytes) -> bytes:
    """Digits of the root: over number of batches, parent root, header, and the trailer with its list of batches."""
    count = layout.batch_count(header.rows).to_bytes(8, "little")
    covered = (b"root", count, header.parent_root.encode().ljust(64, b"-"), message, trailer)
    digest = hmac.new(keys.root, digestmod="sha256")
    for part in covered:
        digest.update(part)
    return digest.hexdigest().encode()


def _digits(data: bytes, mark: bytes) -> bytes:
    """The digits behind `mark`; none if it is not there."""
    at = data.find(mark)
    return b"" if at < 0 else data[at + len(mark) : at + len(mark) + len(NO_DIGITS)]


def check_header(path: str, found: Unverified, keys: FileKeys) -> None:
    """Authenticate the header.

    Raises
    ------
    WrongKeyError, DamagedSnapshotError
    """
    digits = _digits(found.message, HEADER_MARK)
    expected = header_mac(keys, found.message.replace(HEADER_MARK + digits, HEADER_MARK + NO_DIGITS, 1))
    if hmac.compare_digest(digits, expected):
        return
    if not hmac.compare_digest(found.header.key_check.encode(), keys.check.hex().encode()):
        raise WrongKeyError(path, "header", "sealed under another key, or altered")
    raise DamagedSnapshotError(path, "header", "altered")


class SnapshotFile:
    """A snapshot whose header, footer and root were verified.

    Parameters
    ----------
    target : path or URI
    key : SnapshotKey

    Attributes
    ----------
    header : Header
    layout : Layout
    keys : FileKeys
    root : str
        Hexadecimal.
    macs : bytes
        Digests of all batches, 32 bytes each, as the root covers them.
    first_pages : uint32[batches]
        Guest page of the first row of each batch.

    Raises
    ------
    NotAnArrowFileError, UsageError
        Not an Arrow file, or not to be read.
    WrongKeyError, DamagedSnapshotError
        Anything else that is not as it was sealed.
    """

    def __init__(self, target: Target, key: SnapshotKey) -> None:
        self.source = open_source(target)
        self.name = self.source.name
        self._local = threading.local()
        try:
            found = read_header(self.source)
            self.header, self.layout, self.schema = found.header, found.layout, found.schema
            self.keys = FileKeys(key, bytes.fromhex(self.header.file_id))
            check_header(self.name, found, self.keys)
            self._check_end(found.message)
        except BaseException:
            self.source.close()
            raise

    def _check_end(self, message: bytes) -> None:
        at, size = self.layout.offset(self.layout.batches), self.source.size
        if size <= at:
            index = max(0, (size - self.layout.header_size) // self.layout.stride)
            part = f"batch {index}" if index < self.layout.batches else "footer"
            raise DamagedSnapshotError(self.name, part, f"the file ends at byte {size}: truncated")
        rest = read_bytes(self.source, at, size - at)
        trailer_size = int.from_bytes(rest[4:8], "little") + 8
        trailer, end = rest[:trailer_size], rest[trailer_size:]
        digits, footer_digits = _digits(trailer, ROOT_MARK), _digits(trailer, FOOTER_MARK)
        plain = trailer.replace(ROOT_MARK + digits, ROOT_MARK + NO_DIGITS, 1)
        message = message.replace(HEADER_MARK + _digits(message, HEADER_MARK), HEADER_MARK + NO_DIGITS, 1)
        if not hmac.compare_digest(digits, root_mac(self.keys, self.header, message, plain)):
            raise DamagedSnapshotError(self.name, "footer", "the list of batches or the root was altered or truncated")
        if not hmac.compare_digest(footer_digits, footer_mac(self.keys, end)):
            raise DamagedSnapshotError(self.name, "footer", "altered or truncated")
        self.root = digits.decode()
        told = layout.read_trailer(message, trailer)
        self.macs = base64.b64decode(told[b"lazypv.macs"])
        self.first_pages: NDArray[np.uint32] = np.frombuffer(base64.b64decode(told[b"lazypv.first-pages"]), "<u4")

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()

    def state(self) -> ConfigurationState:
        """What of the guest is not in its pages.

        Raises
        ------
        DamagedSnapshotError
            It does not verify.
        """
        opened = open_state(self.header, self.keys)
        if opened is None:
            raise DamagedSnapshotError(self.name, "header", "the configuration's state was altered")
        return opened

    # --- batches -------------------------------------------------------------------------------------------------

    def new_buffer(self) -> NDArray[np.uint8]:
        """Room for a private copy of one batch."""
        return private_copy(self.layout.stride)

    def thread_buffer(self) -> NDArray[np.uint8]:
        """This thread's room for one batch, the same each time: fresh memory costs a third of what is done with it."""
        found: NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = self.new_buffer()
        return found

    @cached_property
    def reader(self) -> Reader:
        """What kernels read the file with."""
        return Reader(self.source)

    def columns(self, index: int) -> NDArray[np.int64]:
        """Where the columns of batch `index` are in its copy: int64[6]."""
        return layout.columns(layout.rows_of(self.header.rows, index), self.header.metadata_size)

    def read_batch(self, index: int, buffer: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Copy batch `index` and verify all of it but its page bytes; where its columns are.

        Raises
        ------
        DamagedSnapshotError
            It is not the batch that was sealed there.
        """
        at = self.columns(index)
        if self.source.read_into(buffer[: at[5]], self.layout.offset(index)) < at[5]:
            raise damaged_batch(self.name, index, "truncated")
        self._check_mac(index, buffer, at)
        return at

    def read_columns(self, index: int, buffer: NDArray[np.uint8]) -> NDArray[np.int64]:
        """As :meth:`read_batch`, but the page bytes are not read."""
        at, start = self.columns(index), self.layout.offset(index)
        for first, last in ((0, at[0]), (at[1], at[5])):
            if self.source.read_into(buffer[first:last], start + int(first)) < last - first:
                raise damaged_batch(self.name, index, "truncated")
        self._check_mac(index, buffer, at)
        return at

    def read_packed(self, some: range, packed: NDArray[np.uint8], at: NDArray[np.int64]) -> None:
        """Private, verified copies of batches of equal size without their page bytes: metadata and columns.

        Parameters
        ----------
        packed : uint8[len(some), layout.packed_size(at)]
            Written; each behind a prefix of its MAC.

        Raises
        ------
        DamagedSnapshotError
        """
        there = reading.read_packed(*self.reader.arguments, self.layout.offset(some[0]), at, packed)
        if there < len(some):
            raise self.reader.problem(self.name, some[there])
        rows, keys = layout.rows_of(self.header.rows, some[0]), self.keys
        macs = np.frombuffer(self.macs, np.uint8).reshape(-1, TAG_SIZE)
        bad = row_kernels.check_packed(packed, self.header.mac_offset, rows, keys.id_bytes, some[0], macs, keys.batches)
        if bad >= 0:
            raise damaged_batch(self.name, some[bad], "altered, moved, or of another snapshot")

    def read_pages(self, index: int, buffer: NDArray[np.uint8], at: NDArray[np.int64], first: int, last: int) -> None:
        """Copy the page bytes of rows ``[first, last)`` into the copy of their batch; they are verified when opened."""
        start, end = int(at[0]) + PAGE_SIZE * first, int(at[0]) + PAGE_SIZE * last
        if self.source.read_into(buffer[start:end], self.layout.offset(index) + start) < end - start:
            raise damaged_batch(self.name, index, "truncated")

    def _check_mac(self, index: int, buffer: NDArray[np.uint8], at: NDArray[np.int64]) -> None:
        rows, digits = layout.rows_of(self.header.rows, index), self.header.mac_offset
        packed = np.empty(layout.packed_size(at), np.uint8)
        fits = row_kernels.batch_mac(
            buffer, at, digits, rows, self.keys.id_bytes, index, self.keys.batches, packed, False
        )
        listed = self.macs[TAG_SIZE * index : TAG_SIZE * (index + 1)].hex().encode()
        if not fits or buffer[digits : digits + row_kernels.MAC_HEX].tobytes() != listed:
            raise damaged_batch(self.name, index, "altered, moved, or of another snapshot")

    def row_words(self, index: int) -> NDArray[np.uint64]:
        """Associated data of the rows of batch `index`."""
        words = self.keys.row_words()
        words[5] = index
        return words

    def open_rows(self, index: int, buffer: NDArray[np.uint8], at: NDArray[np.int64], first: int, last: int) -> None:
        """Verify rows ``[first, last)`` of a copy, and decrypt them in place.

        Raises
        ------
        DamagedSnapshotError
            Names the guest page that is not what was sealed.
        """
        bad = row_kernels.open_rows(
            buffer, at, first, last, self.keys.rows, self.row_words(index), np.zeros(2 * SCRATCH_SIZE, np.uint8)
        )
        if bad >= 0:
            raise self.bad_row(index, buffer, at, bad)

    def bad_row(self, index: int, buffer: NDArray[np.uint8], at: NDArray[np.int64], row: int) -> DamagedSnapshotError:
        """The error for a row that is not what was sealed."""
        page = int(pages_of(buffer, at)[row])
        return damaged_batch(self.name, index, "was altered, moved, or is an older version", page)


def open_state(header: Header, keys: FileKeys) -> ConfigurationState | None:
    """The configuration's state in a header; None if it does not verify."""
    return ConfigurationState.open(base64.b64decode(header.state), keys.state, keys.file_id)


def pages_of(buffer: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Guest pages of a batch's rows: uint32[n], a view."""
    return buffer[at[1] : at[1] + 4 * _rows(at)].view("<u4")


def kinds_of(buffer: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Kinds of a batch's rows: uint8[n], a view."""
    return buffer[at[2] : at[2] + _rows(at)]


def versions_of(buffer: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Versions of a batch's rows: uint64[n], a view."""
    return buffer[at[4] : at[4] + 8 * _rows(at)].view("<u8")


def data_of(buffer: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Page bytes of a batch: uint8[n, 4096], a view."""
    return buffer[at[0] : at[1]].reshape(-1, PAGE_SIZE)


def _rows(at: NDArray[np.int64]) -> int:
    return int((at[1] - at[0]) // PAGE_SIZE)

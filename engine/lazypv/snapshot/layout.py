"""Where everything is in a snapshot: Arrow's own metadata, made by pyarrow, and positions computed from the header.

A file is: magic, schema message, batches of 256 rows, a last batch, a trailer (a batch without rows, whose metadata
carries what is known only at the end), end-of-stream mark, footer. All batches have metadata of the same size, chosen
so that the page bytes of each begin on a 4 KiB boundary.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lazypv.sizes import PAGE_SIZE
from lazypv.snapshot.flatbuffer import BLOCK, with_blocks
from lazypv_kernels.layout import TAG_SIZE
from lazypv_kernels.rows import MAC_HEX, MAC_PREFIX

ROWS = 256
"""Rows of a batch: 1 MiB of page bytes."""
MAGIC = b"ARROW1"
HEAD = MAGIC + b"\0\0"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
METADATA_SIZE = 768
"""Bytes of a batch's metadata: with these a full batch takes 259 pages of the file."""
MAC_MARK = b"mac:"
HEADER_MARK, ROOT_MARK, FOOTER_MARK = b"header-mac:", b"root:", b"footer-mac:"
NO_DIGITS = b"0" * MAC_HEX
_PREFIX = "lazypv."
MOST_HEADER = 1 << 22

FIELDS = (
    pa.field("data", pa.binary(PAGE_SIZE), nullable=False),
    pa.field("guest_page", pa.uint32(), nullable=False),
    pa.field("kind", pa.uint8(), nullable=False),
    pa.field("tag", pa.binary(TAG_SIZE), nullable=False),
    pa.field("version", pa.uint64(), nullable=False),
)
WIDTHS = (PAGE_SIZE, 4, 1, TAG_SIZE, 8)
KINDS = ("zero", "plain", "sealed")


@dataclass(frozen=True)
class Header:
    """What the schema's metadata says of a snapshot.

    Attributes
    ----------
    file_id, guest_id : str
        Hexadecimal; of the file, and of the guest through all its snapshots.
    sequence : int
        Place of the snapshot among the guest's.
    parent_root, parent_name : str
        The snapshot it builds on, if it does, and its file as seen from this one's folder.
    equals : str
        Root of the snapshot whose content this one has too, after a merge.
    rows : int
    guest_pages, vcpus : int
    incomplete : int
        1 for what was recovered from an unfinished file.
    state : str
        The configuration's state, sealed, base64.
    key_check : str
    """

    file_id: str
    guest_id: str
    sequence: int
    parent_root: str
    parent_name: str
    equals: str
    rows: int
    guest_pages: int
    vcpus: int
    incomplete: int
    state: str
    key_check: str
    format: int = 1
    metadata_size: int = METADATA_SIZE
    mac_offset: int = 0

    def encode(self) -> dict[str, str]:
        """As metadata of a schema."""
        return {_PREFIX + each.name.replace("_", "-"): str(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def decode(cls, metadata: dict[bytes, bytes]) -> Header:
        """From metadata of a schema.

        Raises
        ------
        ValueError
            Something is missing or no number.
        """
        values: dict[str, Any] = {}
        for each in fields(cls):
            raw = metadata.get((_PREFIX + each.name.replace("_", "-")).encode())
            if raw is None:
                raise ValueError(f"no {each.name}")
            text = raw.decode()
            values[each.name] = int(text) if each.type == "int" else text
        made = cls(**values)
        made.check_numbers()
        return made

    def check_numbers(self) -> None:
        """Nothing is negative, and nothing so large that arithmetic with it would not end.

        Raises
        ------
        ValueError
        """
        numbers = (self.rows, self.guest_pages, self.sequence, self.vcpus, self.mac_offset)
        if min(numbers) < 0 or max(numbers) > 1 << 40 or self.rows > self.guest_pages:
            raise ValueError("numbers out of range")
        if self.format != 1 or not 0 < self.metadata_size <= MOST_HEADER or self.metadata_size % 8:
            raise ValueError("unknown format")
        if self.mac_offset + MAC_HEX > self.metadata_size or len(bytes.fromhex(self.file_id)) != 32:
            raise ValueError("numbers out of range")


def batch_count(rows: int) -> int:
    """Batches with rows."""
    return -(-rows // ROWS)


def rows_of(rows: int, index: int) -> int:
    """Rows of batch `index` of a file with `rows`."""
    return min(ROWS, rows - index * ROWS)


def columns(rows: int, metadata_size: int = METADATA_SIZE) -> NDArray[np.int64]:
    """Where the columns of a batch of `rows` begin, and where it ends: int64[6], from the batch's first byte."""
    ends = [metadata_size]
    for width in WIDTHS:
        ends.append(ends[-1] + -(-rows * width // 8) * 8)
    return np.array(ends, np.int64)


def packed_size(at: NDArray[np.int64]) -> int:
    """Bytes of a batch without its page bytes, as its MAC covers it: prefix, metadata, columns."""
    return int(MAC_PREFIX + at[0] + at[5] - at[1])


def batch_metadata(rows: int, size: int = METADATA_SIZE) -> bytes:
    """Arrow's metadata of a batch of `rows`, `size` bytes of it, with a MAC of zeroes."""
    pad = max(0, size - len(_batch_metadata(rows, 0)) - 8)
    while len(made := _batch_metadata(rows, pad)) < size:
        pad += 1
    if len(made) != size:
        raise AssertionError(f"pyarrow's metadata of a batch has {len(made)} bytes, not {size}")
    return made


@lru_cache(maxsize=64)
def _batch_metadata(rows: int, pad: int) -> bytes:
    arrays = [_placeholder(field.type, rows) for field in FIELDS]
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(FIELDS))
    return _message(batch, {b"lazypv.mac": MAC_MARK + NO_DIGITS, b"lazypv.pad": b"." * pad})


def _placeholder(kind: pa.DataType, rows: int) -> pa.Array:
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(bytes(rows * kind.bit_width // 8))])


def _message(batch: pa.RecordBatch, metadata: dict[bytes, bytes]) -> bytes:
    """The metadata of the message of `batch`, with its prefix."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        start = len(batch.schema.serialize())
        writer.write_batch(batch, custom_metadata=metadata)
    written = sink.getvalue()[start:]
    size = int.from_bytes(written[4:8], "little") + 8
    return written[:size]


def mac_offset(metadata: bytes) -> int:
    """Where the digits of the MAC are in a batch's metadata."""
    return metadata.index(MAC_MARK + NO_DIGITS) + len(MAC_MARK)


def header_bytes(header: Header) -> tuple[bytes, pa.Schema]:
    """Magic and schema message, of a size after which page bytes of the first batch begin on a 4 KiB boundary."""
    goal = -header.metadata_size % PAGE_SIZE
    fixed = header.encode() | {"lazypv.header-mac": (HEADER_MARK + NO_DIGITS).decode()}
    pad = 0
    while True:
        schema = pa.schema(FIELDS, metadata=fixed | {"lazypv.pad": "." * pad})
        message = HEAD + schema.serialize().to_pybytes()
        missing = (goal - len(message)) % PAGE_SIZE
        if missing == 0:
            return message, schema
        # A message's size goes up in steps of eight bytes: the last of them one byte at a time.
        pad += max(1, missing - 8)


def schema_with(message: bytes) -> pa.Schema:
    """The schema of a header."""
    return pa.ipc.read_schema(pa.py_buffer(message[len(HEAD) :]))


def with_header_mac(message: bytes, digits: bytes) -> bytes:
    """A header with its MAC's digits."""
    return message.replace(HEADER_MARK + NO_DIGITS, HEADER_MARK + digits, 1)


def trailer_bytes(macs: bytes, first_pages: NDArray[np.uint32], footer_digits: bytes, root_digits: bytes) -> bytes:
    """The trailer: a batch without rows, which carries the MACs of all batches and the first page of each."""
    empty = pa.RecordBatch.from_arrays([_placeholder(field.type, 0) for field in FIELDS], schema=pa.schema(FIELDS))
    metadata = {
        b"lazypv.footer-mac": FOOTER_MARK + footer_digits,
        b"lazypv.root": ROOT_MARK + root_digits,
        b"lazypv.macs": base64.b64encode(macs),
        b"lazypv.first-pages": base64.b64encode(np.ascontiguousarray(first_pages, "<u4").tobytes()),
    }
    return _message(empty, metadata)


def read_trailer(header: bytes, trailer: bytes) -> dict[bytes, bytes]:
    """The metadata of a trailer whose root was verified."""
    stream = pa.ipc.open_stream(pa.py_buffer(header[len(HEAD) :] + trailer))
    return dict(stream.read_next_batch_with_custom_metadata().custom_metadata.items())


@dataclass(frozen=True)
class Layout:
    """Positions in a snapshot: everything follows from the size of the header and the number of rows."""

    header_size: int
    rows: int
    metadata_size: int = METADATA_SIZE

    @property
    def batches(self) -> int:
        """Batches with rows."""
        return batch_count(self.rows)

    @property
    def stride(self) -> int:
        """Bytes of a full batch."""
        return int(columns(ROWS, self.metadata_size)[-1])

    def offset(self, index: int) -> int:
        """Where batch `index` begins; that of the batch behind the last is the trailer's."""
        if index < self.batches:
            return self.header_size + index * self.stride
        if not self.rows:
            return self.header_size
        last = self.batches - 1
        return self.offset(last) + int(columns(rows_of(self.rows, last), self.metadata_size)[-1])

    def blocks(self, trailer_size: int) -> NDArray[np.void]:
        """What a footer says of all batches, the trailer included."""
        blocks = np.zeros(self.batches + 1, BLOCK)
        blocks["offset"][:-1] = self.header_size + self.stride * np.arange(self.batches, dtype=np.int64)
        blocks["metadata"][:-1] = self.metadata_size
        blocks["body"][:-1] = self.stride - self.metadata_size
        if self.rows:
            blocks["body"][-2] = self.offset(self.batches) - self.offset(self.batches - 1) - self.metadata_size
        blocks[-1] = (self.offset(self.batches), trailer_size, 0, 0)
        return blocks

    def file_end(self, schema: pa.Schema, trailer_size: int) -> bytes:
        """Everything behind the trailer: end-of-stream mark, footer, its length, magic."""
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, schema):
            pass
        written = sink.getvalue()
        size = int.from_bytes(written[-len(MAGIC) - 4 : -len(MAGIC)], "little")
        footer = with_blocks(written[-len(MAGIC) - 4 - size : -len(MAGIC) - 4], self.blocks(trailer_size))
        return END_OF_STREAM + footer + len(footer).to_bytes(4, "little") + MAGIC


def finished(header: Header, metadata: bytes) -> Header:
    """A header that knows where batches have their MACs."""
    return replace(header, metadata_size=len(metadata), mac_offset=mac_offset(metadata))

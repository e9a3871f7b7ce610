"""As much of flatbuffers as it takes to enter blocks into a footer that pyarrow has made, and to find them again.

A table begins with the distance back to its vtable; the vtable says at which distance each field stands. Vectors and
tables are referred to by distances forward.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

FOOTER_RECORD_BATCHES = 3
BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("pad", "<i4"), ("body", "<i8")])
"""Where a record batch is: position, bytes of metadata with their prefix, bytes of body."""


def _field(buffer: bytes | bytearray, table: int, number: int) -> int:
    """Position of a field of a table, 0 if it is not there."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    size = struct.unpack_from("<H", buffer, vtable)[0]
    entry = 4 + 2 * number
    if vtable < 0 or entry >= size:
        return 0
    distance: int = struct.unpack_from("<H", buffer, vtable + entry)[0]
    return table + distance if distance else 0


def with_blocks(footer: bytes, blocks: NDArray[np.void]) -> bytes:
    """`footer`, an Arrow footer without record batches, with `blocks` instead.

    The vector stands behind everything else, where a distance forward reaches it.
    """
    made = bytearray(footer)
    made += bytes(-(len(made) + 4) % 8)
    where = len(made)
    made += struct.pack("<I", blocks.size) + np.ascontiguousarray(blocks, BLOCK).tobytes()
    root = struct.unpack_from("<I", made, 0)[0]
    field = _field(made, root, FOOTER_RECORD_BATCHES)
    struct.pack_into("<I", made, field, where - field)
    return bytes(made)


def read_blocks(footer: bytes) -> NDArray[np.void]:
    """The blocks of an Arrow footer.

    Raises
    ------
    ValueError
        It is no footer.
    """
    try:
        root = struct.unpack_from("<I", footer, 0)[0]
        field = _field(footer, root, FOOTER_RECORD_BATCHES)
        at = field + struct.unpack_from("<I", footer, field)[0]
        count = struct.unpack_from("<I", footer, at)[0]
        return np.frombuffer(footer, BLOCK, count, at + 4)
    except (struct.error, ValueError) as error:
        raise ValueError("not an Arrow footer") from error

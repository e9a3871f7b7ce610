"""Bytes from wherever they are: a kernel that needs them calls a function that it is given the address of.

What reads has the signature of ``pread(2)``: of a handle, `size` bytes from an offset on to an address; how many there
were. Kernels know nothing else of files. Two threads that go back to Python for each megabyte wait for its lock as long
as they read.
"""

from __future__ import annotations

from lazypv_kernels.arrays import I64, U8, Integer
from lazypv_kernels.compiled import kernel
from lazypv_kernels.native import address_of, call_reader
from lazypv_kernels.rows import MAC_PREFIX


@kernel
def read_all(function: Integer, handle: Integer, target: U8, offset: Integer) -> bool:
    """Fill target : uint8[n] with what stands from `offset` on; false where there is less, or reading failed."""
    done = 0
    while done < target.size:
        more: Integer = call_reader(function, handle, address_of(target, done), target.size - done, offset + done)
        if more <= 0:
            return False
        done += more
    return True


@kernel
def read_packed(function: Integer, handle: Integer, offset: Integer, at: I64, packed: U8) -> int:
    """Batches of equal size from `offset` on, without their page bytes: metadata and columns, each behind a prefix.

    packed : uint8[k, n], written. How many were there whole, but for what was not read.
    """
    behind = MAC_PREFIX + at[0]
    for k in range(len(packed)):
        start = offset + k * at[5]
        if not read_all(function, handle, packed[k][MAC_PREFIX:behind], start):
            return k
        if not read_all(function, handle, packed[k][behind:], start + at[1]):
            return k
    return len(packed)

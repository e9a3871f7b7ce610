"""Which frames are free: those whose byte of the host is zero. So the allocator is a search, and there is no list."""

from __future__ import annotations

import numpy as np

from lazypv_kernels.arrays import I64, U8, Integer
from lazypv_kernels.compiled import kernel
from lazypv_kernels.native import BITS, bits_equal, compare_and_swap, exchange
from lazypv_kernels.scan import find_free_run


@kernel
def allocate(host: U8, start: Integer, want: Integer, frames: I64) -> tuple[int, Integer]:
    """Take up to `want` free frames with one reference each, searching from `start` around; (count, where it ended).

    frames : int64[want], written.
    """
    count = 0
    at = np.int64(start)
    left = np.int64(host.size)
    while left > 0 and count < want:
        if at >= host.size:
            at = np.int64(0)
        if left >= BITS and at + BITS <= host.size and not bits_equal(host, at, np.uint8(0xFF), np.uint8(0)):
            # None of the next frames is free.
            at += BITS
            left -= BITS
            continue
        left -= 1
        if host[at] == 0 and compare_and_swap(host, at, np.uint8(0), np.uint8(1)):
            frames[count] = at
            count += 1
        at += 1
    return count, at


@kernel
def allocate_run(host: U8, start: Integer, align: Integer, want: Integer) -> Integer:
    """Take `want` consecutive free frames, beginning at a multiple of `align` not before `start`; the first, or -1."""
    at = find_free_run(host, start, align, want)
    while at >= 0:
        taken = 0
        while taken < want and compare_and_swap(host, at + taken, np.uint8(0), np.uint8(1)):
            taken += 1
        if taken == want:
            return at
        # Somebody was faster.
        for k in range(taken):
            exchange(host, at + k, np.uint8(0))
        at = find_free_run(host, at + taken + 1, align, want)
    return -1


@kernel
def allocate_blocks(host: U8, size: Integer, blocks: I64) -> int:
    """Take every block of `size` frames that begins at a multiple of that and is free as a whole; how many.

    blocks : int64[host.size // size], written: the first frame of each.
    """
    count = 0
    for first in range(0, host.size - size + 1, size):
        taken = 0
        while taken < size and host[first + taken] == 0:
            if not compare_and_swap(host, first + taken, np.uint8(0), np.uint8(1)):
                break
            taken += 1
        if taken == size:
            blocks[count] = first
            count += 1
        else:
            for k in range(taken):
                exchange(host, first + k, np.uint8(0))
    return count

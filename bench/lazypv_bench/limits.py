"""Limits: the fastest that this computer does to the same bytes, on as many cores, with nothing to look after."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from lazypv.errors import ModelError
from lazypv_bench.harness import Work, seconds_of
from lazypv_kernels.layout import KEY_SIZE, NONCE_SIZE, PAGE_SIZE, SCRATCH_SIZE
from lazypv_kernels.native import address_of, aegis256_encrypt, fence, stream_zero_page

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv_bench.rig import Rig

    Pages = NDArray[np.uint8]

CALIBRATION_RUNS = 3


def streaming_fill(rig: Rig, subject: Work) -> Work:
    """The same bytes cleared: the C library's memset or streaming stores, whichever is faster here and now.

    Which one that is depends on the processor, on the C library and on the size; so it is tried out first, in turns.
    """
    ways = [_over_rows(rig, subject, clear) for clear in (_memset, _stream)]
    best = [min(seconds_of(way) for _ in range(CALIBRATION_RUNS)) for way in ways]
    return ways[best.index(min(best))]


def copy(rig: Rig, subject: Work) -> Work:
    """The same bytes copied from the subject's source by the C library's memcpy."""
    return _over_rows(rig, subject, _copier(_source_of(subject)))


def cipher(rig: Rig, subject: Work) -> Work:
    """The same bytes encrypted by libsodium's AEGIS-256, page by page, and thrown away."""
    return _over_rows(rig, subject, _cipherer())


def copy_then_cipher(rig: Rig, subject: Work) -> Work:
    """Both, one after the other: the time is the sum."""
    copying, ciphering = copy(rig, subject), cipher(rig, subject)

    def run() -> None:
        copying.run()
        ciphering.run()

    return Work(run=run, bytes=copying.bytes, threads=copying.threads)


# --- rows, in as many pieces as there are threads ------------------------------------------------------------------

Rows = Callable[["Pages", int, int], Any]
"""Does something to rows ``[first, last)``, without the interpreter lock."""


def _over_rows(rig: Rig, subject: Work, do: Rows) -> Work:
    contents = subject.contents
    if contents is None:
        raise ModelError("the subject has not said which bytes it goes over")
    rows = contents.shape[0]
    workers = rig.workers(subject.threads)
    piece = -(-rows // subject.threads)

    def run() -> None:
        workers.run(rows, lambda first, last: do(contents, first, last), chunk=piece)

    return Work(run=run, bytes=contents.nbytes, threads=subject.threads)


def _memset(contents: Pages, first: int, last: int) -> None:
    ctypes.memset(contents[first:].ctypes.data, 0, (last - first) * PAGE_SIZE)


def _copier(source: Pages) -> Rows:
    start, size = source.ctypes.data, source.shape[0]

    def copy_rows(contents: Pages, first: int, last: int) -> None:
        at = first
        while at < last:
            row = at % size
            rows = min(size - row, last - at)
            ctypes.memmove(contents[at:].ctypes.data, start + row * PAGE_SIZE, rows * PAGE_SIZE)
            at += rows

    return copy_rows


def _source_of(subject: Work) -> Pages:
    if subject.source is None:
        raise ModelError("the subject has not said where its bytes come from")
    return subject.source


def _cipherer() -> Rows:
    key = np.frombuffer(os.urandom(KEY_SIZE), np.uint8)

    def cipher_rows(contents: Pages, first: int, last: int) -> None:
        _encrypt(contents, first, last, key, np.zeros(NONCE_SIZE // 8, np.uint64), np.empty(SCRATCH_SIZE, np.uint8))

    return cipher_rows


# --- kernels -------------------------------------------------------------------------------------------------------
# Compiled in each process: a cache looks at this file only, while what these call stands in others.


def _stream_rows(contents: Pages, first: int, last: int) -> None:
    for row in range(first, last):
        stream_zero_page(contents, row)
    fence()


def _encrypt_rows(
    contents: Pages, first: int, last: int, key: Pages, nonce: NDArray[np.uint64], scratch: Pages
) -> None:
    """The cipher text goes to `scratch`, which stays in the cache: to seal and not to store is the least there is."""
    for row in range(first, last):
        nonce[0] = row
        aegis256_encrypt(
            address_of(scratch, 0), 0, address_of(contents, row), PAGE_SIZE, 0, 0, 0, address_of(nonce, 0),
            address_of(key, 0),
        )  # fmt: skip


_stream = numba.njit(nogil=True)(_stream_rows)
_encrypt = numba.njit(nogil=True)(_encrypt_rows)

"""Limits: the fastest that this computer does to the same bytes, on as many cores, with nothing to look after."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lazypv.errors import ModelError
from lazypv_bench.harness import Work, seconds_of
from lazypv_kernels.arrays import U8, U64, Integer
from lazypv_kernels.compiled import kernel
from lazypv_kernels.layout import KEY_SIZE, NONCE_SIZE, PAGE_SIZE, SCRATCH_SIZE
from lazypv_kernels.native import address_of, aegis256_encrypt, fence, stream_zero_page

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv_bench.rig import Rig

    Pages = NDArray[np.uint8]

CALIBRATION_RUNS: Final = 3
WRITE_PAGES: Final = 256
MEMORY_FOLDER: Final = Path("/dev/shm")


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


def read(rig: Rig, subject: Work) -> Work:
    """The same bytes read, and added up: what no scan of them can beat."""
    workers = rig.workers(subject.threads)
    columns = subject.columns or (_contents_of(subject).reshape(-1),)
    words = [_as_words(column) for column in columns]

    def run() -> None:
        for each in words:
            workers.run(each.size, partial(_add_up, each), chunk=-(-each.size // subject.threads))

    return Work(run=run, bytes=sum(each.nbytes for each in words), threads=subject.threads)


def pwrite(rig: Rig, subject: Work) -> Work:
    """The same bytes written with pwrite, 1 MiB at a time, to a file in memory where there is such a place."""
    folder = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    handle, path = tempfile.mkstemp(prefix="lazypv-bench-", dir=folder)
    os.unlink(path)
    rig.closing.callback(os.close, handle)

    def write_rows(contents: Pages, first: int, last: int) -> None:
        for row in range(first, last, WRITE_PAGES):
            os.pwrite(handle, contents[row : min(row + WRITE_PAGES, last)].data, row * PAGE_SIZE)

    return _over_rows(rig, subject, write_rows)


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
    contents = _contents_of(subject)
    rows = contents.shape[0]
    workers = rig.workers(subject.threads)
    piece = -(-rows // subject.threads)

    def run() -> None:
        workers.run(rows, lambda first, last: do(contents, first, last), chunk=piece)

    return Work(run=run, bytes=contents.nbytes, threads=subject.threads)


def _contents_of(subject: Work) -> Pages:
    if subject.contents is None:
        raise ModelError("the subject has not said which bytes it goes over")
    return subject.contents


def _as_words(column: NDArray[Any]) -> NDArray[np.uint64]:
    """The bytes of a contiguous array as words; up to seven at its end are left out."""
    flat = column.reshape(-1).view(np.uint8)
    return flat[: flat.size // 8 * 8].view(np.uint64)


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
    key = np.frombuffer(os.urandom(KEY_SIZE), np.uint8).copy()

    def cipher_rows(contents: Pages, first: int, last: int) -> None:
        _encrypt(contents, first, last, key, np.zeros(NONCE_SIZE // 8, np.uint64), np.empty(SCRATCH_SIZE, np.uint8))

    return cipher_rows


# --- kernels -------------------------------------------------------------------------------------------------------


@kernel
def _stream(contents: U8, first: Integer, last: Integer) -> None:
    for row in range(first, last):
        stream_zero_page(contents, row)
    fence()


@kernel
def _encrypt(contents: U8, first: Integer, last: Integer, key: U8, nonce: U64, scratch: U8) -> None:
    """The cipher text goes to `scratch`, which stays in the cache: to seal and not to store is the least there is."""
    for row in range(first, last):
        nonce[0] = row
        aegis256_encrypt(
            address_of(scratch, 0), 0, address_of(contents, row), PAGE_SIZE, 0, 0, 0, address_of(nonce, 0),
            address_of(key, 0),
        )  # fmt: skip


@kernel
def _add_up(words: U64, first: Integer, last: Integer) -> np.uint64:
    total = np.uint64(0)
    for at in range(first, last):
        total += words[at]
    return total

"""Limits that any subject may name: each goes over all of the bytes, once."""

from __future__ import annotations

import os

import numpy as np

from lazypv_bench.harness import Work
from lazypv_bench.limits import _add_up, pwrite, read
from lazypv_bench.rig import Rig
from lazypv_kernels.layout import PAGE_SIZE

SIZE = 32 << 20


def test_reading_reads_every_byte():
    """All words of all columns, whatever their elements; up to seven bytes at an end are left out."""
    columns = (np.arange(1003, dtype=np.uint8), np.arange(500, dtype=np.uint16))
    with Rig(SIZE) as rig:
        work = read(rig, Work(run=lambda: None, columns=columns, threads=2))
        assert work.bytes == 1000 + 1000
        work.run()
    words = columns[0][:1000].view(np.uint64)
    assert _add_up(words, 3, 90) == words[3:90].sum(dtype=np.uint64)


def test_pwrite_writes_every_page(monkeypatch):
    """Once, where it belongs in the file."""
    pages = np.random.default_rng(0).integers(0, 256, (700, PAGE_SIZE)).astype(np.uint8)
    written = bytearray(pages.nbytes)
    real = os.pwrite

    def watched(handle, data, offset):
        assert written[offset : offset + len(bytes(data))] == bytes(len(bytes(data)))
        written[offset : offset + len(bytes(data))] = bytes(data)
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    with Rig(SIZE) as rig:
        work = pwrite(rig, Work(run=lambda: None, bytes=pages.nbytes, contents=pages, threads=2))
        work.run()
    assert work.bytes == pages.nbytes
    assert bytes(written) == pages.tobytes()

"""Export to an ELF core: shared pages as they are, secure ones as cipher text, zero pages without bytes.

A 64-bit big-endian core of machine EM_S390, as QEMU's ``dump-guest-memory`` writes for a guest, with a note that says
which snapshot it came from.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypv.snapshot.chain import Chain, PageIndex
from lazypv.snapshot.keys import SnapshotKey
from lazypv.snapshot.layout import ROWS
from lazypv.snapshot.reader import data_of
from lazypv.snapshot.store import Sink, Target, keep_sources, new_file
from lazypv.snapshot.writer import NoProgress, Progress
from lazypv_kernels.layout import KIND_ZERO, PAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EHDR = ">16sHHIQQQIHHHHHH"
_PHDR = ">IIQQQQQQ"
_NHDR = ">III"
_IDENT = b"\x7fELF\x02\x02\x01" + bytes(9)
ET_CORE, EM_S390, PT_LOAD, PT_NOTE = 4, 22, 1, 4
PF_ALL = 7
NOTE_NAME, NOTE_TYPE = b"LAZYPV\0\0", 1
MOST_SEGMENTS = 0xFFFF - 2
"""Beyond that the number of program headers would have to stand elsewhere."""


@dataclass(frozen=True)
class Exported:
    """What was written: guest pages with bytes, and segments."""

    stored: int
    segments: int


def export_core(target: Target, output: Target, key: SnapshotKey, progress: Progress | None = None) -> Exported:
    """Write the state of a snapshot, with those it builds on, as an ELF core; every row is verified on the way.

    Raises
    ------
    LazyPVError
        As :class:`~lazypv.snapshot.chain.Chain`; or the store did not take it.
    """
    progress = progress or NoProgress()
    with Chain(target, key, incomplete=True) as chain:
        keep_sources(output, (file.name for file in chain.files))
        index = PageIndex(chain)
        segments = _segments(index.kind != KIND_ZERO)
        note = _note(chain)
        head = _head(segments, note)
        progress.expect(1 + sum(file.layout.batches for file in chain.files))
        with new_file(output, lambda: "the core") as sink:
            sink.write(head, 0)
            offsets = _offsets(segments, len(head), index.file.size)
            stored = _write_pages(chain, index, sink, offsets, progress)
            if sink.in_order is False:
                end = len(head) + int(segments[segments[:, 2] == 1, 1].sum()) * PAGE_SIZE
                sink.write(b"", end)
        return Exported(stored, int(segments.shape[0]))


def _segments(stored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Runs of pages that are stored or not: int64[s, 3], first page, pages, stored; short gaps count as stored."""
    shortest = 1
    while True:
        filled = _without_short_gaps(stored, shortest)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(filled)) + 1, [filled.size]])
        if edges.size - 1 <= MOST_SEGMENTS:
            break
        shortest *= 2
    return np.stack([edges[:-1], np.diff(edges), filled[edges[:-1]]], axis=1)


def _without_short_gaps(stored: NDArray[np.bool_], shortest: int) -> NDArray[np.bool_]:
    edges = np.concatenate([[0], np.flatnonzero(np.diff(stored)) + 1, [stored.size]])
    keep = (np.diff(edges) >= shortest) | stored[edges[:-1]]
    return np.repeat(stored[edges[:-1]] | ~keep, np.diff(edges))


def _head(segments: NDArray[np.int64], note: bytes) -> bytes:
    """ELF header, program headers and note, up to the first page; that is on a 4 KiB boundary."""
    count = 1 + segments.shape[0]
    start = struct.calcsize(_EHDR)
    note_at = start + count * struct.calcsize(_PHDR)
    pages_at = -(-(note_at + len(note)) // PAGE_SIZE) * PAGE_SIZE
    sizes = (struct.calcsize(_EHDR), struct.calcsize(_PHDR))
    head = struct.pack(_EHDR, _IDENT, ET_CORE, EM_S390, 1, 0, start, 0, 0, *sizes, count, 0, 0, 0)
    head += struct.pack(_PHDR, PT_NOTE, 0, note_at, 0, 0, len(note), len(note), 4)
    at = pages_at
    for first, pages, stored in segments.tolist():
        size = pages * PAGE_SIZE if stored else 0
        address = first * PAGE_SIZE
        head += struct.pack(_PHDR, PT_LOAD, PF_ALL, at, address, address, size, pages * PAGE_SIZE, PAGE_SIZE)
        at += size
    return (head + note).ljust(pages_at, b"\0")


def _note(chain: Chain) -> bytes:
    """Which files the cipher text came from, and their roots."""
    text = json.dumps(
        {
            "schema": "lazypv.core/1",
            "guest_id": chain.newest.header.guest_id,
            "files": [{"file_id": file.header.file_id, "root": file.root} for file in chain.files],
        }
    ).encode()
    padded = text + bytes(-len(text) % 4)
    return struct.pack(_NHDR, len(NOTE_NAME) - 1, len(text), NOTE_TYPE) + NOTE_NAME + padded


def _offsets(segments: NDArray[np.int64], start: int, pages: int) -> NDArray[np.int64]:
    """Where in the core each guest page is, -1 for those without bytes: int64[pages]."""
    offsets = np.full(pages, -1, np.int64)
    at = start
    for first, count, stored in segments.tolist():
        if stored:
            offsets[first : first + count] = at + PAGE_SIZE * np.arange(count)
            at += count * PAGE_SIZE
    return offsets


def _write_pages(chain: Chain, index: PageIndex, sink: Sink, offsets: NDArray[np.int64], progress: Progress) -> int:
    """Page bytes as they are in the files, in order of address; how many pages."""
    wanted = np.flatnonzero(offsets >= 0)
    for start in range(0, wanted.size, ROWS):
        pages = wanted[start : start + ROWS]
        content = _sealed(chain, index, pages)
        runs = np.concatenate([[0], np.flatnonzero(np.diff(offsets[pages]) != PAGE_SIZE) + 1, [pages.size]])
        for first, last in zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True):
            sink.write(np.ascontiguousarray(content[first:last]).reshape(-1), int(offsets[pages[first]]))
        progress(f"guest page {int(pages[0]):#x}")
    return int(np.count_nonzero(index.kind != KIND_ZERO))


def _sealed(chain: Chain, index: PageIndex, pages: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The bytes of rows as stored, after the rows were verified: uint8[k, 4096]."""
    content = np.zeros((pages.size, PAGE_SIZE), np.uint8)
    file, row = index.file[pages].astype(np.int64), index.row[pages]
    places = np.stack([file, row // ROWS], axis=1)
    for number, batch in np.unique(places[file >= 0], axis=0).tolist():
        opened = chain.files[number]
        buffer = opened.new_buffer()
        at = opened.read_batch(batch, buffer)
        stored = data_of(buffer, at).copy()
        opened.open_rows(batch, buffer, at, 0, stored.shape[0])
        here = (places[:, 0] == number) & (places[:, 1] == batch)
        content[here] = stored[row[here] % ROWS]
    return content

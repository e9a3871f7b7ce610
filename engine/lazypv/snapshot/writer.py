"""Writing a snapshot: batches are sealed by as many threads as there are, each puts its own where they belong.

What a thread seals fits into its cache and is written from there; while one seals others write. Memory is one batch a
thread. Rows that the host may know to be zero are left out of the file, as holes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lazypv.snapshot import layout
from lazypv.snapshot.keys import FILE_ID_BYTES, FileKeys, SnapshotKey
from lazypv.snapshot.layout import NO_DIGITS, Header, Layout
from lazypv.snapshot.reader import footer_mac, header_mac, kinds_of, pages_of, root_mac
from lazypv.snapshot.store import Sink, Target, new_file
from lazypv_kernels import rows as row_kernels
from lazypv_kernels.layout import KIND_ZERO, PAGE_SIZE, TAG_SIZE
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

Fill = Callable[["NDArray[np.uint8]", "NDArray[np.int64]", int, FileKeys, "NDArray[np.uint64]"], None]
"""Seals the rows of batch `index` into a buffer: ``fill(buffer, at, index, keys, row_words)``."""


class Progress(Protocol):
    """Who wants to know how far it is."""

    def expect(self, phases: int) -> None:
        """How many phases there will be."""

    def __call__(self, phase: str) -> None:
        """The next phase begins."""


class NoProgress:
    """Nobody wants to know."""

    def expect(self, phases: int) -> None:
        """Nothing."""

    def __call__(self, phase: str) -> None:
        """Nothing."""


def save_threads() -> int:
    """Threads that seal and write: two at least, so that one can write while another seals."""
    return max(2, min(os.cpu_count() or 1, 32))


def new_file_keys(key: SnapshotKey) -> FileKeys:
    """Keys of a snapshot that is to be: its file id is fresh, so they were never used."""
    return FileKeys(key, os.urandom(FILE_ID_BYTES))


class SnapshotWriter:
    """Lays one snapshot out and writes it.

    Parameters
    ----------
    header : Header
        But for what follows from the keys and the layout.
    keys : FileKeys
        Fresh ones.
    """

    def __init__(self, header: Header, keys: FileKeys, threads: int | None = None) -> None:
        self._metadata = {rows: self._template(rows) for rows in {layout.ROWS, header.rows % layout.ROWS} - {0}}
        full = layout.batch_metadata(layout.ROWS)
        identified = replace(header, file_id=keys.file_id.hex(), key_check=keys.check.hex())
        self.header = layout.finished(identified, full)
        self._plain_message, _ = layout.header_bytes(self.header)
        self._message = layout.with_header_mac(self._plain_message, header_mac(keys, self._plain_message))
        self.layout = Layout(len(self._message), header.rows)
        self._keys = keys
        self._macs: NDArray[np.uint8] = np.zeros((self.layout.batches, TAG_SIZE), np.uint8)
        self._first_pages: NDArray[np.uint32] = np.zeros(self.layout.batches, np.uint32)
        self._threads = threads or save_threads()
        self._local = threading.local()
        self._written = 0

    @staticmethod
    def _template(rows: int) -> NDArray[np.uint8]:
        return np.frombuffer(layout.batch_metadata(rows), np.uint8)

    def write(self, target: Target, fill: Fill, progress: Progress | None = None) -> str:
        """Write all batches, trailer and footer; the root.

        Raises
        ------
        SnapshotWriteError
            The store is full or cannot be written: nothing is left there.
        """
        progress = progress or NoProgress()
        progress.expect(self.layout.batches + 1)
        with new_file(target, self._where) as sink:
            sink.write(self._message, 0)
            workers = Workers(self._threads)
            try:
                if sink.in_order:
                    self._write_in_order(sink, fill, workers, progress)
                else:
                    workers.run(self.layout.batches, lambda a, b: self._write_some(sink, fill, a, b, progress), chunk=4)
            finally:
                workers.close()  # nobody writes any more when the file is closed
            return self._write_end(sink)

    def _where(self) -> str:
        return f"batch {self._written} of {self.layout.batches}"

    def _write_some(self, sink: Sink, fill: Fill, first: int, last: int, progress: Progress) -> None:
        for index in range(first, last):
            buffer, at = self._sealed(fill, index, self._buffer())
            self._put(sink, index, buffer, at)
            progress(f"batch {index}")

    def _write_in_order(self, sink: Sink, fill: Fill, workers: Workers, progress: Progress) -> None:
        """As many batches at a time as there are threads are sealed, then written one after the other."""
        buffers = [np.empty(self.layout.stride, np.uint8) for _ in range(self._threads)]
        for start in range(0, self.layout.batches, self._threads):
            some = range(start, min(start + self._threads, self.layout.batches))

            def seal(first: int, last: int, some: range = some) -> list[NDArray[np.int64]]:
                return [self._sealed(fill, some[slot], buffers[slot])[1] for slot in range(first, last)]

            columns = [at for piece in workers.run(len(some), seal, chunk=1) for at in piece]
            for slot, at in enumerate(columns):
                sink.write(buffers[slot][: at[5]], self.layout.offset(some[slot]))
                self._written = some[slot] + 1
                progress(f"batch {some[slot]}")

    def _buffer(self) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = np.empty(self.layout.stride, np.uint8)
        return found

    def _sealed(self, fill: Fill, index: int, buffer: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        rows = layout.rows_of(self.header.rows, index)
        at = layout.columns(rows, self.header.metadata_size)
        buffer[: at[0]] = self._metadata[rows]
        buffer[at[1] : at[5]] = 0
        words = self._keys.row_words()
        words[5] = index
        fill(buffer, at, index, self._keys, words)
        packed = np.empty(layout.packed_size(at), np.uint8)
        digits, keys = self.header.mac_offset, self._keys
        row_kernels.batch_mac(buffer, at, digits, rows, keys.id_bytes, index, keys.batches, packed, True)
        written = buffer[digits : digits + row_kernels.MAC_HEX].tobytes()
        self._macs[index] = np.frombuffer(bytes.fromhex(written.decode()), np.uint8)
        self._first_pages[index] = pages_of(buffer, at)[0]
        return buffer, at

    def _put(self, sink: Sink, index: int, buffer: NDArray[np.uint8], at: NDArray[np.int64]) -> None:
        """Write a batch but for its zero rows; what lies behind one of them and another is one write."""
        start = self.layout.offset(index)
        stored = np.flatnonzero(kinds_of(buffer, at) != KIND_ZERO)
        bounds = [0, int(at[0])]
        if stored.size:
            gaps = np.flatnonzero(np.diff(stored) > 1)
            begins = stored[np.concatenate([[0], gaps + 1])]
            ends = stored[np.concatenate([gaps, [stored.size - 1]])] + 1
            bounds += (int(at[0]) + PAGE_SIZE * np.stack([begins, ends], axis=1)).reshape(-1).tolist()
        bounds += [int(at[1]), int(at[5])]
        for first, last in _joined(bounds):
            sink.write(buffer[first:last], start + first)
        self._written += 1

    def _write_end(self, sink: Sink) -> str:
        macs, first = self._macs.tobytes(), self._first_pages
        size = len(layout.trailer_bytes(macs, first, NO_DIGITS, NO_DIGITS))
        schema = layout.schema_with(self._message)
        end = self.layout.file_end(schema, size)
        footer_digits = footer_mac(self._keys, end)
        plain = layout.trailer_bytes(macs, first, footer_digits, NO_DIGITS)
        root = root_mac(self._keys, self.header, self._plain_message, plain)
        trailer = layout.trailer_bytes(macs, first, footer_digits, root)
        at = self.layout.offset(self.layout.batches)
        sink.write(trailer + end, at)
        return root.decode()


def _joined(bounds: list[int]) -> list[tuple[int, int]]:
    """Pairs of a flat list of bounds; those that touch are one."""
    pairs: list[tuple[int, int]] = []
    for first, last in zip(bounds[::2], bounds[1::2], strict=True):
        if pairs and pairs[-1][1] == first:
            pairs[-1] = (pairs[-1][0], last)
        else:
            pairs.append((first, last))
    return pairs

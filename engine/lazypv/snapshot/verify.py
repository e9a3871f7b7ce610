"""Look at snapshots without restoring them: verify, info, diff; and a table for plain readers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lazypv.errors import UsageError
from lazypv.snapshot.chain import Chain, PageIndex, all_columns
from lazypv.snapshot.keys import SnapshotKey
from lazypv.snapshot.layout import KINDS, ROWS
from lazypv.snapshot.ledger import Ledger
from lazypv.snapshot.reader import SnapshotFile, data_of, read_header
from lazypv.snapshot.store import Target, is_uri, open_source
from lazypv.snapshot.writer import NoProgress, Progress, save_threads
from lazypv_kernels.layout import KIND_ZERO, PAGE_SIZE
from lazypv_kernels.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Verified:
    """A chain in which every row of every file is what was sealed.

    Attributes
    ----------
    files : list of str
        Newest first.
    rows : int
    kinds : dict of str to int
        Rows of each kind.
    ledger : str
        What the ledger says of the newest.
    """

    files: list[str]
    root: str
    guest_id: str
    sequence: int
    rows: int
    batches: int
    kinds: dict[str, int]
    incomplete: bool
    ledger: str


def verify(
    target: Target,
    key: SnapshotKey,
    *,
    ledger: Ledger | None = None,
    alone: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Verified:
    """Check every byte of a snapshot and of those it builds on. An older one is reported, not refused.

    Parameters
    ----------
    alone : bool
        Only the file itself, not its parents.

    Raises
    ------
    LazyPVError
        As :class:`~lazypv.snapshot.chain.Chain`; names the batch and guest page that are not what was sealed.
    """
    progress = progress or NoProgress()
    with _Alone(target, key) if alone else Chain(target, key, incomplete=True) as chain:
        progress.expect(sum(file.layout.batches for file in chain.files))
        kinds = np.zeros(len(KINDS), np.int64)
        for file in chain.files:
            kinds += verify_rows(file, progress, threads)
        header, root = chain.newest.header, chain.newest.root
        standing = (ledger or Ledger.beside(key)).standing(header.guest_id, header.sequence, root, header.equals)
        return Verified(
            files=[file.name for file in chain.files],
            root=root,
            guest_id=header.guest_id,
            sequence=header.sequence,
            rows=int(kinds.sum()),
            batches=sum(file.layout.batches for file in chain.files),
            kinds=dict(zip(KINDS, kinds.tolist(), strict=True)),
            incomplete=any(file.header.incomplete for file in chain.files),
            ledger=standing.verdict,
        )


class _Alone(Chain):
    """One file without its parents."""

    def __init__(self, target: Target, key: SnapshotKey) -> None:
        self.files = [SnapshotFile(target, key)]


def verify_rows(file: SnapshotFile, progress: Progress, threads: int | None = None) -> NDArray[np.int64]:
    """Verify all rows of one file; how many there are of each kind: int64[3]."""
    from lazypv.snapshot.reader import kinds_of

    def check(first: int, last: int) -> NDArray[np.int64]:
        buffer, kinds = file.thread_buffer(), np.zeros(len(KINDS), np.int64)
        for index in range(first, last):
            at = file.read_batch(index, buffer)
            of_rows = kinds_of(buffer, at)
            file.open_rows(index, buffer, at, 0, of_rows.size)
            kinds += np.bincount(of_rows, minlength=len(KINDS))
            progress(f"batch {index}")
        buffer[:] = 0
        return kinds

    workers = Workers(threads or save_threads())
    try:
        pieces = workers.run(file.layout.batches, check, chunk=4)
    finally:
        workers.close()
    total: NDArray[np.int64] = np.sum([np.zeros(len(KINDS), np.int64), *pieces], axis=0)
    return total


# --- info --------------------------------------------------------------------------------------------------------


def info(target: Target) -> dict[str, Any]:
    """What a file says of itself, and its sizes. No key is needed, and nothing is verified.

    Raises
    ------
    NotAnArrowFileError, DamagedSnapshotError, UsageError
    """
    source = open_source(target)
    try:
        found = read_header(source)
        header = found.header
        told: dict[str, Any] = {
            "file": os.fspath(target),
            "format": header.format,
            "file_id": header.file_id,
            "guest_id": header.guest_id,
            "sequence": header.sequence,
            "parent": header.parent_name or None,
            "parent_root": header.parent_root or None,
            "equals": header.equals or None,
            "guest_bytes": header.guest_pages * PAGE_SIZE,
            "vcpus": header.vcpus,
            "rows": header.rows,
            "batches": found.layout.batches,
            "incomplete": bool(header.incomplete),
            "file_bytes": source.size,
            "stored_bytes": None if is_uri(target) else os.stat(target).st_blocks * 512,
        }
        if source.size > found.layout.offset(found.layout.batches):
            told["kinds"] = _claimed_kinds(target)
        return told
    finally:
        source.close()


def _claimed_kinds(target: Target) -> dict[str, int] | None:
    """Rows of each kind, as the file says; None where a plain reader cannot read it."""
    try:
        kinds = table(target, columns=["kind"])["kind"].to_numpy()
    except (pa.ArrowException, OSError):
        return None
    return dict(zip(KINDS, np.bincount(kinds, minlength=len(KINDS))[: len(KINDS)].tolist(), strict=True))


def table(target: Target, columns: list[str] | None = None) -> pa.Table:
    """A snapshot as a plain Arrow table over a memory map, unverified: for looking at, never for a guest.

    Raises
    ------
    UsageError
        Its store cannot be mapped.
    """
    if is_uri(target):
        raise UsageError(f"{target}: only a file of this computer can be mapped")
    import pyarrow.ipc as ipc

    options = None
    if columns is not None:
        names = ["data", "guest_page", "kind", "tag", "version"]
        options = ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
    return ipc.open_file(pa.memory_map(os.fspath(target)), options=options).read_all()


# --- diff --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How two states of a guest differ, in guest pages.

    Attributes
    ----------
    changed : int64[k]
        Pages with other content or another kind.
    compared : int
        Pages whose content had to be compared.
    """

    pages: int
    changed: NDArray[np.int64]
    compared: int

    def runs(self) -> list[tuple[int, int]]:
        """Changed pages as runs: first, and how many."""
        if not self.changed.size:
            return []
        gaps = np.flatnonzero(np.diff(self.changed) != 1) + 1
        return [(int(run[0]), int(run.size)) for run in np.split(self.changed, gaps)]


def diff(one: Target, other: Target, key: SnapshotKey, progress: Progress | None = None) -> Difference:
    """Compare two states, each with the snapshots it builds on; rows that both take from the same file are equal.

    Raises
    ------
    UsageError
        They are not of guests of the same size.
    LazyPVError
        As :class:`~lazypv.snapshot.chain.Chain`.
    """
    progress = progress or NoProgress()
    with Chain(one, key, incomplete=True) as first, Chain(other, key, incomplete=True) as second:
        sizes = [chain.newest.header.guest_pages for chain in (first, second)]
        if sizes[0] != sizes[1]:
            raise UsageError(f"a guest of {sizes[0]} pages and one of {sizes[1]} cannot be compared")
        states = State(first), State(second)
        names = [np.array([*(file.header.file_id for file in chain.files), ""]) for chain in (first, second)]
        origin = [names[at][states[at].index.file] for at in range(2)]
        same_row = (origin[0] == origin[1]) & (states[0].index.row == states[1].index.row)
        both_zero = (states[0].index.kind == KIND_ZERO) & (states[1].index.kind == KIND_ZERO)
        open_question = np.flatnonzero(~same_row & ~both_zero)
        progress.expect(batch_steps(open_question.size))
        changed = []
        for start in range(0, open_question.size, ROWS):
            pages = open_question[start : start + ROWS]
            contents = [state.read(pages) for state in states]
            other_kind = states[0].index.kind[pages] != states[1].index.kind[pages]
            changed.append(pages[(contents[0] != contents[1]).any(axis=1) | other_kind])
            progress(f"guest page {int(pages[0]):#x}")
        none = np.empty(0, np.int64)
        return Difference(sizes[0], np.concatenate([none, *changed]), int(open_question.size))


def batch_steps(rows: int) -> int:
    """How many times 256 rows there are."""
    return -(-rows // ROWS)


class State:
    """The state of a guest that a chain holds: verified plain pages by guest page."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.index = PageIndex(chain)

    def read(self, pages: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Content of guest `pages` (ascending): uint8[k, 4096]; zero where no file has the page.

        Raises
        ------
        DamagedSnapshotError
        """
        content = np.zeros((pages.size, PAGE_SIZE), np.uint8)
        file, row, kind = self.index.file[pages], self.index.row[pages], self.index.kind[pages]
        wanted = (file >= 0) & (kind != KIND_ZERO)
        places = np.stack([file.astype(np.int64), row // ROWS], axis=1)
        for number, index in np.unique(places[wanted], axis=0).tolist():
            here = np.flatnonzero(wanted & (places[:, 0] == number) & (places[:, 1] == index))
            content[here] = self._read_rows(self.chain.files[number], index, row[here] % ROWS)
        return content

    @staticmethod
    def _read_rows(file: SnapshotFile, index: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        buffer = file.new_buffer()
        at = file.read_columns(index, buffer)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1, [rows.size]])
        for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            first, last = int(rows[start]), int(rows[end - 1]) + 1
            file.read_pages(index, buffer, at, first, last)
            file.open_rows(index, buffer, at, first, last)
        return data_of(buffer, at)[rows]


def rows_of_all(file: SnapshotFile) -> NDArray[np.uint32]:
    """Guest pages of all rows of a file, columns verified: uint32[rows]."""
    return np.concatenate([np.empty(0, np.uint32), *(pages for _, (pages, _, _) in all_columns(file))])

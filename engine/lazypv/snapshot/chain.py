"""A snapshot and those that it builds on, newest first; which of them has a page."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import LazyPVError
from lazypv.snapshot.errors import IncompleteSnapshotError, NotAnArrowFileError, WrongParentError
from lazypv.snapshot.keys import SnapshotKey
from lazypv.snapshot.reader import SnapshotFile, kinds_of, pages_of, versions_of
from lazypv.snapshot.store import Target, is_uri
from lazypv_kernels.layout import KIND_ZERO

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_CHAIN = 4096


class Chain:
    """All files of one state of a guest, opened and checked; newest first.

    Parameters
    ----------
    target : path or URI
        The newest.
    incomplete : bool
        Whether a recovered part will do.

    Raises
    ------
    WrongParentError
        A parent is missing or another snapshot.
    IncompleteSnapshotError
        A part only.
    LazyPVError
        As :class:`SnapshotFile`.
    """

    def __init__(self, target: Target, key: SnapshotKey, *, incomplete: bool = False) -> None:
        self.files: list[SnapshotFile] = []
        try:
            newest = SnapshotFile(target, key)
            self.files.append(newest)
            while self.files[-1].header.parent_root:
                self.files.append(self._parent(self.files[-1], key))
            if len(self.files) > LONGEST_CHAIN:
                raise WrongParentError(f"{newest.name}: its chain has more than {LONGEST_CHAIN} snapshots")
            for file in self.files:
                if file.header.incomplete and not incomplete:
                    raise IncompleteSnapshotError(
                        f"{file.name}: was recovered from an unfinished file and is incomplete; --force restores it"
                    )
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _parent(child: SnapshotFile, key: SnapshotKey) -> SnapshotFile:
        header = child.header
        target = parent_target(child.name, header.parent_name)
        try:
            parent = SnapshotFile(target, key)
        except NotAnArrowFileError as error:
            raise WrongParentError(f"{child.name}: its parent is {target}, which is not an Arrow file") from error
        except LazyPVError as error:
            if error.exit_status == WrongParentError.exit_status:
                raise
            raise WrongParentError(f"{child.name}: its parent is {target}, which cannot be opened") from error
        same_guest = parent.header.guest_id == header.guest_id
        if not same_guest or header.parent_root not in (parent.root, parent.header.equals):
            parent.close()
            raise WrongParentError(
                f"{child.name}: builds on root {header.parent_root[:16]}, but {target} has root {parent.root[:16]}"
            )
        return parent

    def close(self) -> None:
        """Let go of all files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def newest(self) -> SnapshotFile:
        """The one that was named."""
        return self.files[0]

    @property
    def incomplete(self) -> bool:
        """Whether a part of the state is missing."""
        return any(file.header.incomplete for file in self.files)


def parent_target(child: str, name: str) -> str:
    """Where a snapshot's parent is, as its header names it."""
    if is_uri(name):
        return name
    if is_uri(child):
        return f"{child.rpartition('/')[0]}/{name}"
    return os.fspath(Path(child).parent / name)


def name_of_parent(child: Target, parent: Target) -> str:
    """The parent's file as seen from the child's folder."""
    if is_uri(child) or is_uri(parent):
        return os.fspath(parent)
    return os.path.relpath(os.path.realpath(parent), os.path.realpath(Path(child).parent))


class PageIndex:
    """Of each guest page: which file of a chain has it, in which batch and row. All columns are read and verified.

    Attributes
    ----------
    file : int16[pages]
        Place in the chain, -1 where no file has the page.
    row : int64[pages]
        Row in that file.
    kind, version : uint8[pages], uint64[pages]
    """

    def __init__(self, chain: Chain) -> None:
        pages = chain.newest.header.guest_pages
        self.file: NDArray[np.int16] = np.full(pages, -1, np.int16)
        self.row: NDArray[np.int64] = np.zeros(pages, np.int64)
        self.kind: NDArray[np.uint8] = np.full(pages, KIND_ZERO, np.uint8)
        self.version: NDArray[np.uint64] = np.zeros(pages, np.uint64)
        for number in reversed(range(len(chain.files))):
            for start, columns in all_columns(chain.files[number]):
                self._enter(number, start, *columns)

    def _enter(
        self, number: int, start: int, pages: NDArray[np.uint32], kinds: NDArray[np.uint8], versions: NDArray[np.uint64]
    ) -> None:
        self.file[pages] = number
        self.row[pages] = start + np.arange(pages.size)
        self.kind[pages] = kinds
        self.version[pages] = versions

    @property
    def pages(self) -> NDArray[np.int64]:
        """Guest pages that some file has, ascending: int64[k]."""
        return np.flatnonzero(self.file >= 0)


Columns = tuple["NDArray[np.uint32]", "NDArray[np.uint8]", "NDArray[np.uint64]"]


def all_columns(file: SnapshotFile) -> Iterator[tuple[int, Columns]]:
    """First row, and guest pages, kinds and versions, of each batch of a file."""
    buffer = file.new_buffer()
    for index in range(file.layout.batches):
        at = file.read_columns(index, buffer)
        yield index * 256, (pages_of(buffer, at).copy(), kinds_of(buffer, at).copy(), versions_of(buffer, at).copy())


class BatchPages:
    """Guest pages of the batches of one file, read and verified when they are first asked for."""

    def __init__(self, file: SnapshotFile) -> None:
        self._file = file
        self._known: dict[int, NDArray[np.uint32]] = {}
        self._lock = threading.Lock()

    def locate(self, page: int) -> tuple[int, int] | None:
        """Batch and row of a guest page; None if the file has it not."""
        index = int(np.searchsorted(self._file.first_pages, page, side="right")) - 1
        if index < 0:
            return None
        pages = self.of(index)
        row = int(np.searchsorted(pages, page))
        return (index, row) if row < pages.size and pages[row] == page else None

    def of(self, index: int) -> NDArray[np.uint32]:
        """Guest pages of batch `index`: uint32[n], ascending."""
        with self._lock:
            known = self._known.get(index)
        if known is None:
            buffer = self._file.new_buffer()
            known = pages_of(buffer, self._file.read_columns(index, buffer)).copy()
            with self._lock:
                self._known[index] = known
        return known

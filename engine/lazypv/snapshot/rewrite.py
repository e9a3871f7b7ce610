"""New snapshots out of old ones, of unfinished files, and of plain memory: merge, recover, import.

Rows never keep their seal: the new file has an id, hence keys, of its own.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import LazyPVError, UsageError
from lazypv.image import NO_PAGE, GuestImage
from lazypv.snapshot import layout
from lazypv.snapshot.chain import Chain
from lazypv.snapshot.errors import DamagedSnapshotError
from lazypv.snapshot.keys import FileKeys, SnapshotKey
from lazypv.snapshot.layout import ROWS, Header
from lazypv.snapshot.ledger import Ledger
from lazypv.snapshot.reader import SnapshotFile, check_header, open_state, pages_of, read_header
from lazypv.snapshot.save import Lineage, Saved
from lazypv.snapshot.store import Target, keep_sources, open_source
from lazypv.snapshot.verify import State
from lazypv.snapshot.writer import Fill, Progress, SnapshotWriter, new_file_keys
from lazypv.ultravisor.snapshots import ConfigurationState
from lazypv_kernels import rows as row_kernels
from lazypv_kernels.layout import KIND_SEALED, KIND_ZERO, PAGE_SIZE, SCRATCH_SIZE, TAG_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

Read = Callable[["NDArray[np.int64]"], "NDArray[np.uint8]"]
"""Content of guest pages: uint8[k, 4096]."""


@dataclass(frozen=True)
class Rows:
    """What a new snapshot is to hold.

    Attributes
    ----------
    pages : int64[n]
        Guest pages, ascending.
    kinds, versions : uint8[n], uint64[n]
    read : callable
    """

    pages: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    versions: NDArray[np.uint64]
    read: Read

    def fill(self) -> Fill:
        """Seals one batch of them."""

        def seal(
            buffer: NDArray[np.uint8], at: NDArray[np.int64], index: int, keys: FileKeys, words: NDArray[np.uint64]
        ) -> None:
            part = slice(ROWS * index, ROWS * (index + 1))
            content = np.ascontiguousarray(self.read(self.pages[part]))
            scratch = np.zeros(2 * SCRATCH_SIZE, np.uint8)
            row_kernels.seal_buffer(
                content, self.kinds[part].copy(), self.versions[part].copy(), keys.rows, words, self.pages[part],
                buffer, at, scratch,
            )  # fmt: skip
            content[:] = 0

        return seal


def _write(
    header: Header, state: ConfigurationState, rows: Rows, target: Target, key: SnapshotKey, progress: Progress | None
) -> Saved:
    keys = new_file_keys(key)
    sealed = base64.b64encode(state.seal(keys.state, keys.file_id)).decode()
    header = replace(header, rows=int(rows.pages.size), state=sealed)
    root = SnapshotWriter(header, keys).write(target, rows.fill(), progress)
    return Saved(str(target), root, header.guest_id, header.sequence, header.rows, header.parent_root)


# --- merge -------------------------------------------------------------------------------------------------------


def merge(targets: list[Target], output: Target, key: SnapshotKey, *, progress: Progress | None = None) -> Saved:
    """One file with the state of the newest of `targets`, which has to have all others among those it builds on.

    It stands for that newest one: as old as it in the ledger, and a parent for what builds on it.

    Raises
    ------
    UsageError
        They are no chain, or `output` is one that others may build on.
    LazyPVError
        As :class:`~lazypv.snapshot.chain.Chain`.
    """
    newest = _newest_of(targets, key)
    with Chain(newest, key, incomplete=True) as chain:
        # The newest may be replaced: the new file stands for it. Others may have more children.
        keep_sources(output, (file.name for file in chain.files[1:]))
        state = State(chain)
        pages = state.index.pages
        old = chain.newest.header
        header = replace(
            old,
            parent_root="",
            parent_name="",
            equals=old.equals or chain.newest.root,
            incomplete=int(chain.incomplete),
        )
        rows = Rows(pages, state.index.kind[pages], state.index.version[pages], state.read)
        return _write(header, chain.newest.state(), rows, output, key, progress)


def _newest_of(targets: list[Target], key: SnapshotKey) -> Target:
    newest, most = targets[0], -1
    for target in targets:
        file = SnapshotFile(target, key)
        file.close()
        if file.header.sequence > most:
            newest, most = target, file.header.sequence
    with Chain(newest, key, incomplete=True) as chain:
        members = {os.path.realpath(file.name) for file in chain.files}
        strangers = [str(target) for target in targets if os.path.realpath(target) not in members]
    if strangers:
        raise UsageError(f"{strangers[0]}: {newest} does not build on it")
    return newest


# --- recover -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recovered:
    """What was found in an unfinished file.

    Attributes
    ----------
    batches, of : int
        Complete batches, and how many the file should have had.
    """

    saved: Saved
    batches: int
    of: int


def recover(target: Target, output: Target, key: SnapshotKey, *, progress: Progress | None = None) -> Recovered:
    """Make a snapshot, marked incomplete, of the complete batches of an unfinished or damaged file.

    Raises
    ------
    DamagedSnapshotError
        Its header is not whole, or no batch of it.
    NotAnArrowFileError, UsageError
    """
    keep_sources(output, [target])
    source = open_source(target)
    try:
        found = read_header(source)
        keys = FileKeys(key, bytes.fromhex(found.header.file_id))
        check_header(source.name, found, keys)
        part = _Part(target, key, found.header, found.layout)
        complete = [index for index in range(found.layout.batches) if part.is_complete(index)]
        if not complete and found.layout.batches:
            raise DamagedSnapshotError(source.name, "batch 0", "no batch of the file is complete")
        state = open_state(found.header, keys)
        if state is None:
            raise DamagedSnapshotError(source.name, "header", "the configuration's state was altered")
        header = replace(found.header, incomplete=1)
        saved = _write(header, state, part.rows(), output, key, progress)
        return Recovered(saved, len(complete), found.layout.batches)
    finally:
        source.close()


class _Part(SnapshotFile):
    """A file of which only the header is known to be whole: batches say themselves whether they are."""

    def __init__(self, target: Target, key: SnapshotKey, header: Header, positions: layout.Layout) -> None:
        self.source = open_source(target)
        self.name = self.source.name
        self._local = threading.local()
        self.header, self.layout = header, positions
        self.keys = FileKeys(key, bytes.fromhex(header.file_id))
        self.macs = bytearray(TAG_SIZE * positions.batches)  # type: ignore[assignment]
        self._place: dict[int, tuple[int, int]] = {}
        self._columns: list[tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint64]]] = []

    def is_complete(self, index: int) -> bool:
        """Whether batch `index` is there with all of its rows; what it holds is remembered then."""
        from lazypv.snapshot.reader import kinds_of, versions_of

        buffer, at = self.new_buffer(), self.columns(index)
        if self.source.read_into(buffer[: at[5]], self.layout.offset(index)) < at[5]:
            return False
        digits = self.header.mac_offset
        claimed = buffer[digits : digits + row_kernels.MAC_HEX].tobytes()
        try:
            self.macs[TAG_SIZE * index : TAG_SIZE * (index + 1)] = bytes.fromhex(claimed.decode())  # type: ignore[index]
            self._check_mac(index, buffer, at)
            pages = pages_of(buffer, at).copy()
            kinds, versions = kinds_of(buffer, at).copy(), versions_of(buffer, at).copy()
            self.open_rows(index, buffer, at, 0, pages.size)
        except (ValueError, LazyPVError):
            return False
        self._place |= {int(page): (index, row) for row, page in enumerate(pages)}
        self._columns.append((pages, kinds, versions))
        return True

    def rows(self) -> Rows:
        """All rows of complete batches."""
        pages, kinds, versions = ([each[column] for each in self._columns] for column in range(3))
        return Rows(
            np.concatenate([np.empty(0, np.int64), *pages]).astype(np.int64),
            np.concatenate([np.empty(0, np.uint8), *kinds]),
            np.concatenate([np.empty(0, np.uint64), *versions]),
            self._read,
        )

    def _read(self, pages: NDArray[np.int64]) -> NDArray[np.uint8]:
        content = np.zeros((pages.size, PAGE_SIZE), np.uint8)
        places = np.array([self._place[int(page)] for page in pages], np.int64).reshape(-1, 2)
        for index in np.unique(places[:, 0]).tolist():
            buffer = self.new_buffer()
            at = self.read_batch(index, buffer)
            self.open_rows(index, buffer, at, 0, pages_of(buffer, at).size)
            here = places[:, 0] == index
            content[here] = buffer[at[0] : at[1]].reshape(-1, PAGE_SIZE)[places[here, 1]]
        return content


# --- import ------------------------------------------------------------------------------------------------------


def import_image(
    image: GuestImage,
    output: Target,
    key: SnapshotKey,
    *,
    vcpus: int = 2,
    ledger: Ledger | None = None,
    progress: Progress | None = None,
) -> Saved:
    """A snapshot of a protected guest whose memory is that of a dump; its zero pages are those it never had."""
    ledger = ledger or Ledger.beside(key)
    stored = image.source()
    kinds = np.where(stored == NO_PAGE, KIND_ZERO, KIND_SEALED).astype(np.uint8)
    for start in range(0, image.pages.shape[0], ROWS):
        some = slice(start, start + ROWS)
        empty = ~image.pages[some].any(axis=1)
        kinds[image.guest_page[some][empty]] = KIND_ZERO

    def read(pages: NDArray[np.int64]) -> NDArray[np.uint8]:
        row = stored[pages]
        content = image.pages[np.where(row == NO_PAGE, 0, row)] if len(image.pages) else _zeroes(pages.size)
        content[row == NO_PAGE] = 0
        return content

    pages = np.arange(stored.size, dtype=np.int64)
    lineage = Lineage()
    header = Header(
        file_id="", guest_id=lineage.guest_id, sequence=1, parent_root="", parent_name="", equals="", rows=0,
        guest_pages=int(pages.size), vcpus=vcpus, incomplete=0, state="", key_check="",
    )  # fmt: skip
    rows = Rows(pages, kinds, np.ones(pages.size, np.uint64), read)
    saved = _write(header, ConfigurationState(int(pages.size), vcpus), rows, output, key, progress)
    ledger.enter(saved.guest_id, saved.sequence, saved.root)
    return saved


def _zeroes(rows: int) -> NDArray[np.uint8]:
    return np.zeros((rows, PAGE_SIZE), np.uint8)


def unfinished_beside(path: Path) -> list[Path]:
    """What killed saves of `path` have left beside it."""
    from lazypv.snapshot.store import UNFINISHED

    return sorted(path.resolve().parent.glob(f".{path.name}.*{UNFINISHED}"))

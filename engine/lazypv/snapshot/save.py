"""Save a protected guest, standing still or running; all of it, or what has changed since a parent.

A running guest is saved as it was at one moment: what it wants to change before it has been saved is copied aside
first, and where that would take too much memory the guest waits.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lazypv.errors import LazyPVError
from lazypv.snapshot.chain import Chain, name_of_parent
from lazypv.snapshot.errors import SnapshotStateError, WrongParentError
from lazypv.snapshot.keys import FileKeys, SnapshotKey
from lazypv.snapshot.layout import ROWS, Header
from lazypv.snapshot.ledger import Ledger, refuse
from lazypv.snapshot.reader import SnapshotFile
from lazypv.snapshot.store import Target, keep_sources
from lazypv.snapshot.writer import Fill, Progress, SnapshotWriter, new_file_keys
from lazypv_kernels.layout import RC_DONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.host.vm import Vm
    from lazypv.ultravisor.snapshots import ConfigurationState

ROOM_ASIDE: Final = (96 << 20) // 4096
"""Pages that may be aside while a running guest is saved: with the buffers of all threads well below 256 MiB."""
MOST_WORKING_SET: Final = 2048
GUEST_ID_BYTES: Final = 16


@dataclass
class Lineage:
    """Who a guest is through all its snapshots.

    Attributes
    ----------
    guest_id : str
    sequence : int
        Place of its last snapshot, 0 before the first.
    working_set : list of int
        Guest pages in the order in which this run wanted them.
    shared : list of int
        Guest pages that the guest shares.
    """

    guest_id: str = field(default_factory=lambda: secrets.token_hex(GUEST_ID_BYTES))
    sequence: int = 0
    working_set: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)

    def told_in(self, state: ConfigurationState, changed: NDArray[np.int64]) -> ConfigurationState:
        """`state`, and what the guest will want first: what it wanted last time, then what it `changed` last."""
        wanted = [*self.working_set, *changed.tolist()]
        first = tuple(dict.fromkeys(wanted[: 2 * MOST_WORKING_SET]))[:MOST_WORKING_SET]
        return replace(state, working_set=first, shared=tuple(self.shared))


@dataclass(frozen=True)
class Saved:
    """A snapshot that was written.

    Attributes
    ----------
    pages : int
        Rows of it.
    aside : int
        The most pages that were copied aside at a time.
    overridden : str
        What the ledger would have refused, if that was overridden.
    """

    target: str
    root: str
    guest_id: str
    sequence: int
    pages: int
    parent_root: str
    aside: int = 0
    overridden: str = ""


def save(
    vm: Vm,
    lineage: Lineage,
    target: Target,
    key: SnapshotKey,
    *,
    parent: Target | None = None,
    ledger: Ledger | None = None,
    allow_fork: bool = False,
    room: int = ROOM_ASIDE,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Save the protected guest in `vm`, which may run meanwhile.

    Parameters
    ----------
    parent : path or URI, optional
        A snapshot of this same run of the guest: only pages changed since are saved, as dirty tracking knows them.
    allow_fork : bool
        Override a ledger that knows a child of the parent already.
    room : int
        Pages that may be copied aside.

    Raises
    ------
    SnapshotStateError
        The guest is not protected, or is being saved already; a page of it cannot be read.
    WrongParentError
        `parent` is not a snapshot of this run.
    RollBackError
        The ledger knows another child of the parent.
    UsageError
        `target` is one of those that the snapshot would build on.
    SnapshotWriteError
        The store did not take it. The guest goes on unharmed, and nothing is left of the file.
    """
    ultravisor, handle = vm.host.machine.ultravisor, vm.kvm.pv.handle
    state = ultravisor.configuration_state(handle)
    if state is None:
        raise SnapshotStateError("only a protected guest of a machine with contents can be saved")
    ledger = ledger or Ledger.beside(key)
    before = _open_parent(parent, key, lineage)
    keep_sources(target, _ancestors(parent, key))
    overridden = _ask_ledger(ledger, lineage, target, before, allow_fork)
    sequence = ledger.next_sequence(lineage.guest_id, lineage.sequence)
    pages = ultravisor.begin_snapshot(handle, None if before is None else bytes.fromhex(before.base), room)
    if pages is None:
        if before is not None:
            raise WrongParentError(f"{parent}: is not a snapshot of this run of the guest, or the guest is being saved")
        raise SnapshotStateError("the guest is being saved already, or its configuration is gone")
    keys = new_file_keys(key)
    root = None
    aside = 0
    try:
        state = lineage.told_in(state, pages[:0] if before is None else pages[:MOST_WORKING_SET])
        header = _header(state, lineage.guest_id, sequence, pages.size, keys, before, target)
        writer = SnapshotWriter(header, keys, threads)
        root = writer.write(target, _sealing(vm, handle, pages, sequence), progress)
    finally:
        aside = ultravisor.end_snapshot(handle, None if root is None else bytes.fromhex(root))
    ledger.enter(lineage.guest_id, sequence, root)
    lineage.sequence = sequence
    return Saved(str(target), root, lineage.guest_id, sequence, int(pages.size), header.parent_root, aside, overridden)


@dataclass(frozen=True)
class _Parent:
    """What a child has to know of its parent; `base` is the root that this run of the guest knows it by."""

    target: Target
    header: Header
    root: str

    @property
    def base(self) -> str:
        return self.header.equals or self.root


def _open_parent(parent: Target | None, key: SnapshotKey, lineage: Lineage) -> _Parent | None:
    if parent is None:
        return None
    file = SnapshotFile(parent, key)
    file.close()
    if file.header.guest_id != lineage.guest_id:
        raise WrongParentError(f"{parent}: is a snapshot of guest {file.header.guest_id}, not of {lineage.guest_id}")
    return _Parent(parent, file.header, file.root)


def _ancestors(parent: Target | None, key: SnapshotKey) -> list[Target]:
    """What a child of `parent` would build on; as far as it is there, since a save needs no more than the parent."""
    if parent is None:
        return []
    try:
        with Chain(parent, key, incomplete=True) as chain:
            return [file.name for file in chain.files]
    except LazyPVError:
        return [parent]


def _ask_ledger(ledger: Ledger, lineage: Lineage, target: Target, before: _Parent | None, allow_fork: bool) -> str:
    """Refuse a second child; what was overridden, in words."""
    if before is not None:
        sequence, root, equals = before.header.sequence, before.root, before.header.equals
        standing = ledger.standing(lineage.guest_id, sequence, root, equals)
        fork = standing.refused
    else:
        sequence = lineage.sequence
        standing = ledger.standing(lineage.guest_id, sequence, "")
        fork = standing.verdict == "older"
    if not fork:
        return ""
    error = refuse(target, standing, sequence, "would be a second child of the snapshot it builds on", "--allow-fork")
    if not allow_fork:
        raise error
    return str(error)


def _header(
    state: ConfigurationState,
    guest_id: str,
    sequence: int,
    rows: int,
    keys: FileKeys,
    before: _Parent | None,
    target: Target,
) -> Header:
    return Header(
        file_id="",
        guest_id=guest_id,
        sequence=sequence,
        parent_root=before.root if before else "",
        parent_name=name_of_parent(target, before.target) if before else "",
        equals="",
        rows=rows,
        guest_pages=state.pages,
        vcpus=state.cpus,
        incomplete=0,
        state=base64.b64encode(state.seal(keys.state, keys.file_id)).decode(),
        key_check="",
    )


def _sealing(vm: Vm, handle: int, pages: NDArray[np.int64], version: int) -> Fill:
    ultravisor = vm.host.machine.ultravisor

    def fill(
        buffer: NDArray[np.uint8], at: NDArray[np.int64], index: int, keys: FileKeys, words: NDArray[np.uint64]
    ) -> None:
        part = pages[ROWS * index : ROWS * (index + 1)]
        code = ultravisor.seal_rows(handle, part, keys.rows, words, version, buffer, at)
        bad = np.flatnonzero(code != RC_DONE)
        if bad.size:
            raise SnapshotStateError(
                f"guest page {int(part[bad[0]]):#x} cannot be saved: rc {int(code[bad[0]]):#06x}, what backs it is"
                " gone, or was altered while the host had it"
            )

    return fill

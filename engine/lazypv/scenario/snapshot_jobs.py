"""What `lazypv snapshot save` and `restore` do: a machine for one guest, from an image or a snapshot."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import SizeError, UsageError
from lazypv.guest import GuestRun
from lazypv.hardware import Machine
from lazypv.host.run import access
from lazypv.image import NO_PAGE, GuestImage
from lazypv.image import image_for as _image_for
from lazypv.scenario.compare import machine_size
from lazypv.scenario.host import VM, Host
from lazypv.sizes import PAGE_SIZE
from lazypv_kernels.access import COPY_PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.snapshot.keys import SnapshotKey
    from lazypv.snapshot.ledger import Ledger
    from lazypv.snapshot.save import Saved
    from lazypv.snapshot.store import Target
    from lazypv.snapshot.writer import Progress

_PIECE = 1024


@contextmanager
def host_for(memory: int, vcpus: int, threads: int | None) -> Iterator[Host]:
    """A host with room for one guest of `memory` bytes."""
    machine = Machine(machine_size(memory, vcpus), threads=threads or os.cpu_count() or 1)
    host = Host(machine)
    try:
        yield host
    finally:
        host.close()
        machine.close()


def boot(host: Host, image: GuestImage, memory: int | str | None, vcpus: int) -> VM:
    """A running protected guest whose memory is the image's; what is zero there it never touches."""
    vm = host.create_vm(memory, vcpus=vcpus, image=image)
    vm.protect()
    rows = image.source(vm.pages * PAGE_SIZE)
    write_rows(vm, image, rows, np.arange(vm.boot_image.pages, vm.pages, dtype=np.int64), zeroes=False)
    return vm


def write_rows(vm: VM, image: GuestImage, rows: NDArray[np.uint32], pages: NDArray[np.int64], *, zeroes: bool) -> int:
    """The guest writes the image's content into `pages`; with `zeroes` also where that is zero. How many it wrote."""
    words = image.pages.view(np.uint64)
    written = 0

    async def write() -> None:
        nonlocal written
        for first in range(0, pages.size, _PIECE):
            part = pages[first : first + _PIECE]
            row = np.where(rows[part] == NO_PAGE, -1, rows[part].astype(np.int64))
            if not zeroes:
                held = row >= 0
                held[held] = image.pages[row[held]].any(axis=1)
                part, row = part[held], row[held]
            if part.size:
                await access(vm.kernel_vm, 0, part, COPY_PAGE, np.zeros(part.size, np.uint64), words, row)
            written += int(part.size)

    vm.host.clock.run(write(), "write the image")
    return written


def save_image(
    image_path: str | None,
    target: Target,
    key: SnapshotKey,
    *,
    memory: str | None = None,
    parent: Target | None = None,
    vcpus: int = 2,
    ledger: Ledger | None = None,
    allow_fork: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Boot the image as a protected guest and save it; with `parent`, let that one become it, and save what changed.

    Raises
    ------
    LazyPVError
    """
    image = _image_for(image_path, memory, 0)
    if parent is not None:
        return _save_child(image, target, key, parent, ledger, allow_fork, threads, progress)
    size = image.size if memory is None else len(image.source(_bytes(memory))) * PAGE_SIZE
    with host_for(size, vcpus, threads) as host:
        vm = boot(host, image, size, vcpus)
        return vm.snapshot(target, key=key, ledger=ledger, threads=threads, progress=progress)


def _bytes(memory: str) -> int:
    from lazypv.sizes import parse_pages

    return parse_pages(memory) * PAGE_SIZE


def _save_child(
    image: GuestImage,
    target: Target,
    key: SnapshotKey,
    parent: Target,
    ledger: Ledger | None,
    allow_fork: bool,
    threads: int | None,
    progress: Progress | None,
) -> Saved:
    from lazypv.snapshot.chain import Chain

    with Chain(parent, key) as chain:
        header = chain.newest.header
        size = header.guest_pages * PAGE_SIZE
        if image.size > size:
            raise SizeError(f"image {image.name} has {image.size} bytes, but the guest of {parent} has {size}")
        rows = image.source(size)
        changed = differing(chain, image, rows)
    with host_for(size, header.vcpus, threads) as host:
        vm = host.restore(parent, key=key, ledger=ledger, allow_rollback=allow_fork)
        write_rows(vm, image, rows, changed, zeroes=True)
        return vm.snapshot(
            target, key=key, parent=parent, ledger=ledger, allow_fork=allow_fork, threads=threads, progress=progress
        )


def differing(chain: object, image: GuestImage, rows: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Guest pages in which a snapshot's state is not the image: int64[k]."""
    from lazypv.snapshot.chain import Chain
    from lazypv.snapshot.verify import State

    assert isinstance(chain, Chain)
    state = State(chain)
    changed = []
    for first in range(0, rows.size, _PIECE):
        pages = np.arange(first, min(first + _PIECE, rows.size), dtype=np.int64)
        row = rows[pages]
        wanted = image.pages[np.where(row == NO_PAGE, 0, row)]
        wanted[row == NO_PAGE] = 0
        changed.append(pages[(state.read(pages) != wanted).any(axis=1)])
    return np.concatenate([np.empty(0, np.int64), *changed])


@dataclass(frozen=True)
class Restored:
    """A guest that was restored, and ran.

    Attributes
    ----------
    first_page_s : float
        Until the guest had read its first page.
    all_s : float
        Until no page was left in the snapshot.
    """

    pages: int
    vcpus: int
    guest_id: str
    sequence: int
    mapped: int
    first_page_s: float
    all_s: float


def restore_and_run(
    target: Target,
    key: SnapshotKey,
    *,
    lazy: bool,
    ledger: Ledger | None = None,
    allow_rollback: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Restore a guest, let it read its first page, and let it have all of its memory.

    Raises
    ------
    LazyPVError
    """
    from lazypv.snapshot.reader import SnapshotFile

    opened = SnapshotFile(target, key)
    header = opened.header
    opened.close()
    if header.guest_pages == 0:
        raise UsageError(f"{target}: a guest without memory")
    with host_for(header.guest_pages * PAGE_SIZE, max(1, header.vcpus), threads) as host:
        start = time.perf_counter()
        vm = host.restore(
            target, key=key, lazy=lazy, ledger=ledger, allow_rollback=allow_rollback, force=force, progress=progress
        )
        assert isinstance(vm.guest, GuestRun)
        vm.read(np.zeros(1, np.int64))
        first_page = time.perf_counter() - start
        vm.complete_restore()
        whole = time.perf_counter() - start
        mapped = vm.kernel_vm.gmap.pte.count()
        return Restored(vm.pages, vm.vcpus, header.guest_id, header.sequence, mapped, first_page, whole)

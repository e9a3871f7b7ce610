"""Snapshots of the library's VMs: save one, restore one. The substance is in :mod:`lazypv.snapshot`.

What takes time to import is imported when it is used: most hosts never see a snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypv.errors import MemoryShortageError
from lazypv.guest import GuestRun
from lazypv.host.host import frames_for
from lazypv.host.run import access
from lazypv.image import NO_PAGE, GuestImage
from lazypv.sizes import PAGE_SIZE, format_size
from lazypv_kernels.access import COPY_PAGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypv.clocks.actors import Actor
    from lazypv.clocks.live import LiveClock
    from lazypv.host.host import Host as Kernel
    from lazypv.host.vm import Vm
    from lazypv.scenario.host import VM, Host
    from lazypv.snapshot.chain import Chain
    from lazypv.snapshot.keys import SnapshotKey
    from lazypv.snapshot.ledger import Ledger
    from lazypv.snapshot.pager import SnapshotPager
    from lazypv.snapshot.save import Lineage, Saved
    from lazypv.snapshot.store import Target
    from lazypv.snapshot.writer import Progress


class SnapshotVM:
    """The part of a VM that snapshots are about."""

    host: Host
    kernel_vm: Vm
    guest: GuestRun
    _lineage: Lineage | None = None
    _lineage_handle = 0
    _prefetch: Actor | None = None

    @property
    def lineage(self) -> Lineage:
        """Who this run of the guest is through all its snapshots."""
        from lazypv.snapshot.save import Lineage

        handle = self.kernel_vm.kvm.pv.handle
        if self._lineage is None or self._lineage_handle != handle:
            self._lineage, self._lineage_handle = Lineage(), handle
        return self._lineage

    def snapshot(
        self,
        path: Target,
        *,
        key: SnapshotKey,
        parent: Target | None = None,
        ledger: Ledger | None = None,
        allow_fork: bool = False,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Saved:
        """Save the protected guest, which may run meanwhile, to an Arrow file that only `key` opens.

        Parameters
        ----------
        parent : path or URI, optional
            A snapshot of this run of the guest, or the one it was restored from: only what has changed since is saved.
        ledger : Ledger, optional
            The one beside the key's file, unless another is given.
        allow_fork : bool
            Override a ledger that knows another child of `parent`.

        Raises
        ------
        SnapshotStateError, WrongParentError, RollBackError, SnapshotWriteError
            Nothing is left of the file, and the guest goes on unharmed.
        """
        from lazypv.snapshot.save import save

        self.complete_restore()
        lineage = self.lineage
        lineage.shared = self.guest.shared.tolist()
        return save(
            self.kernel_vm,
            lineage,
            path,
            key,
            parent=parent,
            ledger=ledger,
            allow_fork=allow_fork,
            threads=threads,
            progress=progress,
        )

    def write_pages(self, pages: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """The guest writes ``content[i]`` (uint8[k, 4096]) into its page ``pages[i]``, as it is."""
        words = np.ascontiguousarray(content).view(np.uint64)
        rows = np.arange(pages.size, dtype=np.int64)

        async def write() -> None:
            for first in range(0, pages.size, 1024):
                part = slice(first, first + 1024)
                unused = np.zeros(rows[part].size, np.uint64)
                await access(self.kernel_vm, 0, np.ascontiguousarray(pages[part]), COPY_PAGE, unused, words, rows[part])

        self.host.clock.run(write(), "write pages")

    # --- a guest that was restored lazily ------------------------------------------------------------------------

    @property
    def pager(self) -> SnapshotPager | None:
        """Where pages come from that are still in a snapshot."""
        found: SnapshotPager | None = self.kernel_vm.pager  # type: ignore[assignment]
        return found

    def start_prefetch(self, working_set: tuple[int, ...], progress: Progress | None = None) -> None:
        """Fetch what is still in the snapshot, in the background."""
        pager = self.pager
        if pager is not None and self._prefetch is None:
            self._prefetch = self.host.clock.spawn(pager.prefetch(working_set, progress), "prefetch")

    def complete_restore(self) -> None:
        """Wait until no page of the guest is left in the snapshot it was restored from.

        Raises
        ------
        DamagedSnapshotError
            A batch of it is not what was sealed.
        """
        if self.pager is None:
            return
        self.start_prefetch(())
        assert self._prefetch is not None
        actor, self._prefetch = self._prefetch, None
        self.host.clock.join([actor])
        self._leave_snapshot()

    def _leave_snapshot(self) -> None:
        """The guest needs its snapshot no more, or will not live to need it."""
        pager = self.pager
        if pager is None:
            return
        pager.stopping = True
        if self._prefetch is not None:
            self._prefetch.join()
            self._prefetch = None
            self.host.clock.join_ended()
        self.lineage.working_set = list(dict.fromkeys([*pager.touched, *self.lineage.working_set]))
        self.kernel_vm.pager = None
        pager.close()


class SnapshotHost:
    """The part of a host that snapshots are about."""

    kernel: Kernel
    clock: LiveClock

    def restore(
        self,
        path: Target,
        *,
        key: SnapshotKey,
        lazy: bool = False,
        prefetch: bool = True,
        ledger: Ledger | None = None,
        allow_rollback: bool = False,
        force: bool = False,
        image: GuestImage | None = None,
        progress: Progress | None = None,
    ) -> VM:
        """A guest that goes on where the one that was saved stood, under a fresh key of the Ultravisor.

        Parameters
        ----------
        path : path or URI
            The newest snapshot of a chain; its parents are found beside it.
        lazy : bool
            Return at once, and bring each page in when the guest first touches it.
        prefetch : bool
            With `lazy`, fetch the rest in the background.
        allow_rollback : bool
            Override a ledger that knows a newer snapshot of the guest.
        force : bool
            Restore an incomplete one, recovered from an unfinished file; what is missing reads as zero.
        image : GuestImage, optional
            What the guest boots from after its next reboot; an empty one, unless it is given.

        Raises
        ------
        NotAnArrowFileError, UsageError
            No Arrow file, or not to be read.
        IntegrityError
            Not what was sealed, another key, a wrong parent, or older than the ledger knows. No guest is left.
        MemoryShortageError
            The machine has not enough frames.
        """
        from lazypv.snapshot.chain import Chain
        from lazypv.snapshot.ledger import Ledger as BesideKey
        from lazypv.snapshot.restore import ask_ledger

        ledger = ledger or BesideKey.beside(key)
        chain = Chain(path, key, incomplete=force)
        try:
            ask_ledger(chain, ledger, allow_rollback)
            vm = _empty_vm(self, chain, image)  # type: ignore[arg-type]
            try:
                _fill(vm, chain, lazy, progress)
            except BaseException:
                vm.kernel_vm.pager = None
                vm.kill()
                vm.host.drain()
                raise
        except BaseException:
            chain.close()
            raise
        header = chain.newest.header
        if not allow_rollback and not chain.incomplete:
            ledger.enter(header.guest_id, header.sequence, chain.newest.root)
        if lazy and prefetch:
            vm.start_prefetch(chain.newest.state().working_set, progress)
        if not lazy:
            chain.close()
        return vm


def _empty_vm(host: Host, chain: Chain, image: GuestImage | None) -> VM:
    from lazypv.scenario.host import VM

    header = chain.newest.header
    vcpus = max(1, header.vcpus)
    needed = frames_for(0, vcpus, host.kernel.storage_sizes) + host.kernel.storage_sizes.total(header.guest_pages, 0)
    if needed > host.machine.frames.free():
        raise MemoryShortageError(
            f"a guest of {format_size(header.guest_pages * PAGE_SIZE)} takes {needed} frames of the host beside its"
            f" pages, of which {host.machine.frames.free()} are free"
        )
    size = header.guest_pages * PAGE_SIZE
    if image is None:
        empty = np.zeros((1, PAGE_SIZE), np.uint8)
        image = GuestImage("restored", empty, np.zeros(1, np.uint32), size)
        rows: NDArray[np.uint32] = np.broadcast_to(np.array(NO_PAGE, np.uint32), (header.guest_pages,))
    else:
        rows = image.source(size)
    process = host.kernel.create_process()
    return VM(host, process, host.kernel.create_vm(process, [range(header.guest_pages)], vcpus), image, rows, 0)


def _fill(vm: VM, chain: Chain, lazy: bool, progress: Progress | None) -> None:
    from lazypv.host.kvm import start_cpus
    from lazypv.snapshot.errors import SnapshotStateError
    from lazypv.snapshot.pager import SnapshotPager
    from lazypv.snapshot.restore import begin, finish, restore_all

    state = chain.newest.state()

    async def restore() -> None:
        await begin(vm.kernel_vm, chain, state)
        if lazy:
            vm.kernel_vm.pager = SnapshotPager(vm.kernel_vm, chain)
        else:
            await restore_all(vm.kernel_vm, chain, progress)
            await finish(vm.kernel_vm)
        result = await start_cpus(vm.kernel_vm)
        if result.errno:
            raise SnapshotStateError(f"CPU_SET_STATE failed: rc {result.rc:#06x}")

    vm.host.clock.run(restore(), "restore")
    lineage = vm.lineage
    lineage.guest_id, lineage.sequence = chain.newest.header.guest_id, chain.newest.header.sequence
    lineage.working_set = list(state.working_set)
    vm.guest.shared = np.array(state.shared, np.int64)

"""The series' way to end a protected guest: at once, or behind its back.

It is one teardown policy (:mod:`lazypv.host.policy`) and the default; another is another class with the same methods,
and may call the texts below. Each of them is one move that can be made again or left out.

Source: semantics 4.1, 4.8, 4.9, 4.10; defects repaired as they are named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazypv.host.exit import drain_set_aside, export_unmapped, mmput, pass_the_list_over, set_aside
from lazypv.host.kvm import EIO, Protected, Result
from lazypv.host.uvc import uv_call
from lazypv.host.walk import destroy_range
from lazypv.steps import Alloc, Spawn, Text
from lazypv.ultravisor.interface import RC_DEFERRED, RRC_DEFERRED

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazypv.host.gmap import CrstTable
    from lazypv.host.host import Host
    from lazypv.host.mm import Mm, Vma
    from lazypv.host.vm import Vm
    from lazypv.ultravisor import Answer


DESTROY_THREAD: Final = "kvm_s390_pv_destroy_vm_thread"
DEFERRED: Final = Result(0, RC_DEFERRED, RRC_DEFERRED)
"""What an ioctl gives back that put its work off."""
MARKED_TABLE: Final = "top table that is still marked"


@dataclass(eq=False)
class Deferred:
    """``struct deferred_priv``: a configuration on its way out.

    Attributes
    ----------
    table : CrstTable
        The top table that the firmware knows.
    pv : Protected
        What the VM knew of the configuration: the storage donated for it.
    handle : int
        The configuration's, once it was handed over.
    has_mm : bool
        Whoever has the record is a user of the address space; `holds_mm`: and holds a reference to it.
    """

    mm: Mm
    table: CrstTable
    pv: Protected
    handle: int = 0
    has_mm: bool = False
    holds_mm: bool = False


class SeriesTeardown:
    """Teardown as the eleven patches have it."""

    async def enabled(self, vm: Vm) -> None:
        """With the parameter off nothing is set aside later (patch 10)."""
        if vm.host.sync_only:
            async with vm.mm.mmap_lock.exclusive():
                vm.mm.pv_sync_destroy = True

    async def reset(self, vm: Vm) -> Result:
        """KVM_PV_DISABLE, CPUs gone: put off, or done at once."""
        if not vm.host.series.lazy_reboot:
            return await self.immediate(vm)
        return await deinit_deferred(vm, self.start_cleaning)

    async def closed(self, vm: Vm) -> Result:
        """The VM's file is closed, CPUs gone."""
        return await self.reset(vm)

    async def abandoned(self, vm: Vm, answer: Answer) -> None:
        """The VM's file is closed, but a CPU could not be destroyed: the configuration can never be (invariant 34)."""
        await drain_set_aside(vm.host.pages, vm.mm, "destroyed_sync")
        if vm.host.series.leak_asce:
            await leak_table(vm)
        await vm.host.lost(vm.mm, vm.kvm.pv, answer)
        vm.gmap.guest_handle = 0
        vm.kvm.pv = Protected()

    async def immediate(self, vm: Vm) -> Result:
        """Everything now, in the caller's time."""
        return await deinit_now(vm)

    async def unmapped(self, host: Host, mm: Mm, vma: Vma, at: int) -> int:
        """Pages of a dying address space are set aside (patch 09), or exported."""
        if host.series.lazy_shutdown and not mm.pv_sync_destroy:
            return await set_aside(host, mm, vma, at)
        return await export_unmapped(host, mm, vma, at)

    async def start_cleaning(self, vm: Vm, record: Deferred) -> bool:
        """Find somebody who destroys what a reset has put off; false if nobody can be had."""
        return await start_thread(vm.host, record.pv, lambda: self.in_background(vm, record))

    async def in_background(self, vm: Vm, record: Deferred) -> None:
        """The text of the thread that does it."""
        await destroy_thread(vm, record)


async def deinit_now(vm: Vm) -> Result:
    """Walk all memory, destroy the configuration, report the real result.

    Pages that were set aside before are worked off here too, since no thread will come for them; as posted nobody
    does (D18).
    """
    mm, host, pv = vm.mm, vm.host, vm.kvm.pv
    if host.series.list_forgotten:
        await pass_the_list_over(mm)
    else:
        await drain_set_aside(host.pages, mm, "destroyed_sync")
    if await mm.get_not_zero():
        await destroy_range(host.pages, mm, 0, 0, mm.end, host.batch, "destroyed_sync")
        await mmput(host, mm)
    answer = await destroy_configuration(vm, pv.handle)
    vm.gmap.guest_handle = 0
    vm.kvm.pv = Protected()
    if not answer.ok:
        await host.lost(mm, pv, answer)
        if host.series.leak_asce:
            await leak_table(vm)
            await vm.gmap.replace_asce()
        return Result(EIO, answer.rc, answer.rrc)
    await give_storage_back(vm, mm, pv)
    return Result(0, answer.rc, answer.rrc)


async def deinit_deferred(vm: Vm, start_cleaning: Callable[[Vm, Deferred], Text[bool]]) -> Result:
    """Put the destruction off; only what lies below the limit, where prefix pages are, is destroyed now.

    The rest is left to whoever ``start_cleaning(vm, record)`` finds for it.

    Falls back on :func:`deinit_now` when the parameter forbids it, when there is no memory for the record, when the
    guest is so small that its top table cannot be replaced (D10), when nothing is left to clean, and when the top table
    or the thread cannot be had; then every reference taken here is dropped again, which was forgotten as posted (D4).

    As posted the parameter forbids nothing: the immediate destroy is followed by this one, for a handle that is 0 (D1).
    Without patch 09 the thread as posted is a user of the address space, but holds no reference to it (D2).

    Source: semantics 4.8, 4.9; invariants 20, 22, 25, 32, 40.
    """
    mm, host, gmap = vm.mm, vm.host, vm.gmap
    if host.sync_only or gmap.must_keep_table:
        result = await deinit_now(vm)
        if not (host.sync_only and host.series.destroyed_twice):
            return result
    record = await Alloc("record", lambda: host.recorded(Deferred(mm, gmap.table, vm.kvm.pv)))
    if record is None:
        return await deinit_now(vm)
    if host.series.lazy_shutdown or not host.series.mm_not_held:
        await mm.grab()
        record.holds_mm = True
    record.has_mm = await mm.get_not_zero()
    if record.has_mm:
        await destroy_below_limit(vm)
    elif not await _something_set_aside(mm):
        await _let_go(host, record)
        return await deinit_now(vm)
    if await _hand_over(vm, record, start_cleaning):
        return DEFERRED
    if host.series.references_forgotten:
        host.discarded(record)
    else:
        await _let_go(host, record)
    return await deinit_now(vm)


async def destroy_below_limit(vm: Vm) -> None:
    """What is never lazy, while other users than the caller are left: guest pages below ``sync_below``.

    Exported where they cannot be destroyed: nothing there may be left to the old run (invariant 22).
    """
    host = vm.host
    limit = vm.base + min(host.sync_below_pages, vm.guest_pages)
    await destroy_range(host.pages, vm.mm, 1, vm.base, limit, host.batch, "destroyed_sync", or_export=True)


async def _let_go(host: Host, record: Deferred) -> None:
    """The record is not needed after all: no reference that it stands for stays behind."""
    if record.has_mm:
        await mmput(host, record.mm)
    if record.holds_mm:
        await record.mm.drop()
    host.discarded(record)


async def _hand_over(vm: Vm, record: Deferred, start_cleaning: Callable[[Vm, Deferred], Text[bool]]) -> bool:
    """Take the configuration from the VM and give it to a thread; false, and nothing changed, if that is impossible.

    As posted only the record knows the old table by then, so without a thread that table is lost (D5).
    """
    host, gmap = vm.host, vm.gmap
    record.handle, record.table = gmap.guest_handle, gmap.table
    if record.has_mm:
        if not await gmap.replace_asce():
            await gmap.restore_asce(record.table)
            return False
    else:
        await gmap.remove_old_asce()
    gmap.guest_handle = 0
    if not await start_cleaning(vm, record):
        gmap.guest_handle = record.handle
        if not host.series.old_table_forgotten:
            await gmap.restore_asce(record.table)
        return False
    vm.kvm.pv = Protected()
    return True


async def start_thread(host: Host, pv: Protected, text: Callable[[], Text[None]]) -> bool:
    """A kernel thread runs ``text()``, and the host waits for it wherever it waits for all cleaning.

    `pv` is what it was handed; until it ends, the storage donated for that counts as held back. False: there is no
    thread to be had.
    """
    host.put_off(pv)

    async def thread() -> None:
        await text()
        host.taken_up(pv)

    if await Spawn(DESTROY_THREAD, thread) is not None:
        return True
    host.taken_up(pv)
    return False


async def destroy_thread(vm: Vm, record: Deferred) -> None:
    """The kernel thread: the list, the walk, the configuration, and only then what was donated for it.

    As posted the address space is let go before its counter is written (D3), and when the configuration could not be
    destroyed nobody keeps the answer or counts what is leaked (D22), the record with it (D27).

    Source: semantics 4.8, 4.9; invariants 21, 23, 24, 25, 27, 34.
    """
    mm, host = record.mm, vm.host
    await drain_set_aside(host.pages, mm, "destroyed_background", host.throttle)
    if record.has_mm:
        await destroy_range(host.pages, mm, 1, 0, mm.end, host.batch, "destroyed_background", host.throttle)
        await mmput(host, mm, nobody_drains=True)
        record.has_mm = False
    if record.holds_mm and host.series.mm_dropped_early:
        await mm.drop()
        record.holds_mm = False
    answer = await destroy_configuration(vm, record.handle)
    if answer.ok:
        await give_storage_back(vm, mm, record.pv)
        vm.gmap.free_table(record.table)
    elif not host.series.result_hidden:
        await host.lost(mm, record.pv, answer)
        host.ledger.leak(MARKED_TABLE, record.table.frames)
    if record.holds_mm:
        await mm.drop()
        record.holds_mm = False
    if answer.ok or not host.series.record_leaked:
        host.discarded(record)


async def destroy_configuration(vm: Vm, handle: int) -> Answer:
    """DESTROY_SEC_CONF until it is neither busy nor partial (invariant 36); the kernel warns if there is no handle."""
    if not handle:
        vm.host.ledger.broke(38, "a configuration that has no handle, since it is gone already, is destroyed again")
    return await uv_call("DESTROY_SEC_CONF", lambda: vm.host.machine.ultravisor.destroy_sec_conf(handle), vm)


async def give_storage_back(vm: Vm, mm: Mm, pv: Protected) -> None:
    """After a successful destroy: the counter goes down, the donated storage back to the allocator."""
    (await mm.write_protected()).gone()
    vm.host.machine.frames.put(pv.base)
    vm.host.machine.frames.put(pv.variable)
    vm.host.destroyed(pv.handle)


async def leak_table(vm: Vm) -> None:
    """Keep the top table from the allocator for good: the firmware has not let go of it (patch 01)."""
    table = await vm.gmap.remove_old_asce()
    vm.host.ledger.leak(MARKED_TABLE, table.frames)


async def _something_set_aside(mm: Mm) -> bool:
    async with mm.set_aside.held():
        return bool(mm.set_aside.nodes)

"""The series' way to end a protected guest: at once, or behind its back.

A teardown policy is a small set of texts: what a reset does, what the closing of the VM does, what becomes of pages
when an address space dies. Another policy is another class with these methods.

Source: semantics 4.1, 4.8, 4.9, 4.10; defects repaired as they are named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazypv.host.exit import drain_set_aside, mmput, pass_the_list_over
from lazypv.host.kvm import EIO, Protected, Result
from lazypv.host.walk import destroy_range
from lazypv.steps import Alloc, Call, Spawn
from lazypv.ultravisor import Answer
from lazypv.ultravisor.interface import RC_DEFERRED, RRC_DEFERRED

if TYPE_CHECKING:
    from lazypv.host.gmap import CrstTable
    from lazypv.host.host import Host
    from lazypv.host.mm import Mm
    from lazypv.host.vm import Vm


DESTROY_THREAD: Final = "kvm_s390_pv_destroy_vm_thread"


MARKED_TABLE: Final = "top table that is still marked"


@dataclass(eq=False)
class Deferred:
    """``struct deferred_priv``: a configuration on its way out.

    Attributes
    ----------
    has_mm : bool
        Whoever has the record is a user of the address space; `holds_mm`: and holds a reference to it.
    """

    mm: Mm
    has_mm: bool
    handle: int
    table: CrstTable
    pv: Protected
    holds_mm: bool = True


class SeriesTeardown:
    """Teardown as the eleven patches have it."""

    async def reset(self, vm: Vm) -> Result:
        """KVM_PV_DISABLE, CPUs gone: put off, or done at once."""
        if not vm.host.series.lazy_reboot:
            return await self.immediate(vm)
        return await deinit_deferred(vm)

    async def closed(self, vm: Vm) -> Result:
        """The VM's file is closed, CPUs gone."""
        return await self.reset(vm)

    async def abandoned(self, vm: Vm, answer: Answer) -> None:
        """The VM's file is closed, but a CPU could not be destroyed: the configuration can never be (invariant 34)."""
        await drain_set_aside(vm.host.pages, vm.mm, "destroyed_sync")
        if vm.host.series.leak_asce:
            await _leak_table(vm)
        await vm.host.lost(vm.mm, vm.kvm.pv, answer)
        vm.gmap.guest_handle = 0
        vm.kvm.pv = Protected()

    async def immediate(self, vm: Vm) -> Result:
        """Everything now, in the caller's time."""
        return await deinit_now(vm)


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
            await _leak_table(vm)
            await vm.gmap.replace_asce()
        return Result(EIO, answer.rc, answer.rrc)
    await _forget(vm, mm, pv)
    return Result(0, answer.rc, answer.rrc)


async def deinit_deferred(vm: Vm) -> Result:
    """Put the destruction off; only what lies below the limit, where prefix pages are, is destroyed now.

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
    record = await Alloc("record", lambda: host.recorded(Deferred(mm, False, 0, gmap.table, vm.kvm.pv)))
    if record is None:
        return await deinit_now(vm)
    record.holds_mm = host.series.lazy_shutdown or not host.series.mm_not_held
    if record.holds_mm:
        await mm.grab()
    record.has_mm = await mm.get_not_zero()
    if record.has_mm:
        limit = vm.base + min(host.sync_below_pages, vm.guest_pages)
        # Exported where it cannot be destroyed: below the limit nothing may be left to the old run (invariant 22).
        await destroy_range(host.pages, mm, 1, vm.base, limit, host.batch, "destroyed_sync", or_export=True)
    elif not await _something_set_aside(mm):
        await _let_go(host, record)
        return await deinit_now(vm)
    if await _hand_over(vm, record):
        return Result(0, RC_DEFERRED, RRC_DEFERRED)
    if host.series.references_forgotten:
        host.discarded(record)
    else:
        await _let_go(host, record)
    return await deinit_now(vm)


async def _let_go(host: Host, record: Deferred) -> None:
    """The record is not needed after all: no reference that it stands for stays behind."""
    if record.has_mm:
        await mmput(host, record.mm)
    if record.holds_mm:
        await record.mm.drop()
    host.discarded(record)


async def _hand_over(vm: Vm, record: Deferred) -> bool:
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
    host.put_off(record.pv)
    thread = await Spawn(DESTROY_THREAD, lambda: destroy_thread(vm, record))
    if thread is None:
        host.taken_up(record.pv)
        gmap.guest_handle = record.handle
        if not host.series.old_table_forgotten:
            await gmap.restore_asce(record.table)
        return False
    vm.kvm.pv = Protected()
    return True


async def destroy_thread(vm: Vm, record: Deferred) -> None:
    """The kernel thread: the list, the walk, the configuration, and only then what was donated for it.

    As posted the address space is let go before its counter is written (D3), and when the configuration could not be
    destroyed nobody keeps the answer or counts what is leaked (D22), the record with it (D27).

    Source: semantics 4.8, 4.9; invariants 21, 23, 24, 25, 27, 34.
    """
    mm, host = record.mm, vm.host
    await drain_set_aside(host.pages, mm, "destroyed_background")
    if record.has_mm:
        await destroy_range(host.pages, mm, 1, 0, mm.end, host.batch, "destroyed_background", host.throttle)
        await mmput(host, mm, nobody_drains=True)
        record.has_mm = False
    if record.holds_mm and host.series.mm_dropped_early:
        await mm.drop()
        record.holds_mm = False
    answer = await destroy_configuration(vm, record.handle)
    if answer.ok:
        await _forget(vm, mm, record.pv)
        vm.gmap.free_table(record.table)
    elif not host.series.result_hidden:
        await host.lost(mm, record.pv, answer)
        host.ledger.leak(MARKED_TABLE, record.table.frames)
    if record.holds_mm:
        await mm.drop()
        record.holds_mm = False
    if answer.ok or not host.series.record_leaked:
        host.discarded(record)
    host.taken_up(record.pv)


async def destroy_configuration(vm: Vm, handle: int) -> Answer:
    """DESTROY_SEC_CONF until it is neither busy nor partial (invariant 36); the kernel warns if there is no handle."""
    if not handle:
        vm.host.ledger.broke(38, "a configuration that has no handle, since it is gone already, is destroyed again")
    while True:
        answer: Answer = await Call(
            "DESTROY_SEC_CONF",
            lambda: vm.host.machine.ultravisor.destroy_sec_conf(handle),
            vm,
            pages_of=lambda answer: answer.pages,
        )
        if answer.cc < 2:
            return answer


async def _forget(vm: Vm, mm: Mm, pv: Protected) -> None:
    """After a successful destroy: the counter goes down, the donated storage back to the allocator."""
    (await mm.write_protected()).gone()
    vm.host.machine.frames.put(pv.base)
    vm.host.machine.frames.put(pv.variable)
    vm.host.destroyed(pv.handle)


async def _leak_table(vm: Vm) -> None:
    """Keep the top table from the allocator for good: the firmware has not let go of it (patch 01)."""
    table = await vm.gmap.remove_old_asce()
    vm.host.ledger.leak(MARKED_TABLE, table.frames)


async def _something_set_aside(mm: Mm) -> bool:
    async with mm.set_aside.held():
        return bool(mm.set_aside.nodes)

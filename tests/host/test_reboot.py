"""Reboots: what is cleaned when, and by whom."""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.errors import UsageError
from lazypv.host import kvm
from lazypv.host.exit import unmap_range
from lazypv.host.gmap import ASCE_ORIGIN, ASCE_TYPE, ASCE_TYPE_SEGMENT
from lazypv.host.kvm import Result
from lazypv.host.run import access
from lazypv.host.walk import destroy_range
from lazypv.steps import Spawn, Wait
from lazypv_kernels.access import STORE_WORD
from lazypv_kernels.layout import MARK_SECURE, NS, SEC

from .stepping import Stepper, acquires, named
from .worlds import BATCH, GUEST_PAGES, LIMIT_PAGES, ZERO_PAGE

OLD_SHARED = 120
PAGE = np.array([200])


def test_after_a_lazy_disable_nothing_below_the_limit_belongs_to_the_old_configuration(make_world):
    """Invariant 22, with memory on both sides of the limit and a hole across it."""
    world = make_world(slots=[range(48), range(80, 256)])
    old = world.protect()
    pages = np.concatenate([np.arange(48), np.arange(80, 256)])
    world.write(pages, 7)
    world.hold()
    assert world.disable() == Result(0, 1, 42)
    assert world.owned_guest_pages(old).tolist() == list(range(80, 256))
    world.drain()
    assert world.owned(old).size == 0
    world.check()


@pytest.mark.parametrize("last", [LIMIT_PAGES - 1, LIMIT_PAGES, LIMIT_PAGES + 1])
def test_the_limit_is_exact(make_world, last):
    """Invariant 22, pages next to the limit on both sides."""
    world = make_world()
    old = world.protect()
    world.write(np.arange(last), 7)
    world.hold()
    world.disable()
    assert world.owned_guest_pages(old).tolist() == list(range(LIMIT_PAGES, last))


def test_a_guest_at_the_limit_has_a_segment_table_and_takes_the_immediate_path(make_world):
    """D10, invariant 19: its top table cannot be replaced, so nothing is put off; the table stays in use."""
    world = make_world(guest_pages=LIMIT_PAGES)
    table = world.vm.gmap.table
    assert world.vm.gmap.asce & ASCE_TYPE == ASCE_TYPE_SEGMENT
    world.protect()
    world.write(world.all_pages(), 7)
    assert world.disable() == Result(0, 1, 0)
    assert world.host.threads == 0
    assert world.vm.gmap.table is table
    world.protect()
    world.exit()
    assert world.vm.closed_result == Result(0, 1, 0)
    world.check_all_gone()


def test_a_guest_one_page_above_the_limit_is_lazy(make_world):
    """D10, the other side of the limit."""
    world = make_world(guest_pages=LIMIT_PAGES + 1)
    assert world.vm.gmap.asce & ASCE_TYPE != ASCE_TYPE_SEGMENT
    world.protect()
    assert world.disable() == Result(0, 1, 42)


def test_the_old_configuration_keeps_the_old_table_and_the_guest_goes_on_with_a_copy(world):
    """Invariants 13, 17, 18: ASCE and table agree, on the list once; the old one belongs to the record alone."""
    world.protect()
    gmap = world.vm.gmap
    old, content = gmap.table, world.machine.load(gmap.table.origin, 4 * 4096)
    control = gmap.asce & ~ASCE_ORIGIN
    world.hold()
    world.disable()
    assert gmap.table is not old
    assert gmap.asce == gmap.table.origin | control == gmap.mm.gmap_asce
    assert gmap.crst_list == [gmap.table]
    assert gmap.table.index == 0
    assert world.machine.load(gmap.table.origin, 4 * 4096) == content
    world.drain()
    assert world.is_free(old.frames).all()
    assert not world.is_free(gmap.table.frames).any()


def test_no_page_becomes_owned_by_a_configuration_that_was_put_off(world):
    """Invariants 20, 21: its page set only shrinks, whatever the guest touches."""
    old = world.reboot_with_old_pages()
    before = set(world.owned(old).tolist())
    world.write(np.arange(100, 140), 8)
    world.protect()
    world.write(np.arange(120, 200), 9)
    after = set(world.owned(old).tolist())
    assert after < before
    world.drain()
    assert world.owned(old).size == 0


def test_the_walk_ends_although_pages_come_and_go_behind_it(world):
    """Invariant 39: `next` only grows; what appears behind it is not visited."""
    world.reboot_with_old_pages()
    new = world.protect()
    world.write(world.all_pages(), 8)
    world.drain()
    assert np.sort(world.owned_guest_pages(new)).tolist() == list(range(GUEST_PAGES))
    world.check()


@pytest.mark.parametrize("present", [0, 1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_a_walk_takes_as_many_batches_as_it_has_pages_for(make_world, present):
    """Invariant 39 at batch borders: each batch is full but the last, and holds are as long as a batch."""
    world = make_world()
    pages = LIMIT_PAGES + np.arange(present) * 2
    world.write(pages, 1)
    world.fresh_clock()
    mm, base = world.vm.mm, world.vm.base
    world.run(destroy_range(world.host.pages, mm, 0, base, base + GUEST_PAGES, BATCH, "destroyed_sync"))
    assert world.machine.ultravisor.useless["DESTR_SEC_STOR"] == present
    assert world.longest_hold("mmap_lock") == (min(present, BATCH), 0)
    assert set(world.machine.frames.byte[world.frames(pages)]) <= {1}, "its references are dropped"


def test_a_walk_stops_when_only_so_many_users_are_left(world):
    """Semantics 4.5: `users` = 1 means that the walker is the last holder."""
    world.reboot_with_old_pages()
    stepper = Stepper()
    mm = world.vm.mm
    assert stepper.run(mm.get_not_zero())
    users = mm.users
    walk = stepper.start(destroy_range(world.host.pages, mm, 1, 0, mm.end, BATCH, "walk"))
    walk.until(named("gather"))
    mm.users = 1
    walk.finish()
    assert world.host.ledger.pages["walk"] <= BATCH, "the batch it had begun, and no other"
    mm.users = users - 1


def test_at_most_one_batch_has_extra_references(world):
    """Invariant 33: and they are gone before the next batch is gathered."""
    world.protect()
    world.write(world.all_pages(), 7)
    stepper = Stepper()
    mm, frames = world.vm.mm, world.frames(world.all_pages())
    world.run(kvm.destroy_cpus(world.vm))
    walk = stepper.start(destroy_range(world.host.pages, mm, 0, 0, mm.end, BATCH, "walk"))
    most = 0
    while walk.pending is not None:
        extra = int(np.count_nonzero(world.machine.frames.byte[frames] & 0x3F > 1))
        if acquires("mmap_lock")(walk.pending):
            assert extra == 0
        most = max(most, extra)
        walk.step()
    assert most == BATCH


def test_two_reboots_before_the_first_cleanup_ends(world):
    """Semantics 4.6: three configurations at once, the counter says so, each is cleaned once."""
    first = world.reboot_with_old_pages()
    second = world.protect()
    world.write(np.arange(150, 200), 8)
    world.disable()
    third = world.protect()
    world.write(np.arange(180, 220), 9)
    assert world.process.mm.protected.value == 3
    assert world.host.threads == 2
    assert world.owned(first).size
    assert world.owned(second).size
    world.drain()
    assert world.process.mm.protected.value == 1
    assert list(world.firmware.configurations) == [third]
    assert world.read(230) == ZERO_PAGE
    world.exit()
    world.drain()
    world.check_all_gone()


def test_the_accounts_of_a_reboot_balance(world):
    """Design, accounts: owned at the last instruction = destroyed before, behind, on fault + exported + by the end."""
    old = world.protect()
    world.write(world.all_pages(), 7)
    world.share(OLD_SHARED)
    owned, exported = world.owned(old).size, world.exported(old)
    world.hold()
    world.disable()
    world.write(np.arange(70, 90), 1)
    world.protect()
    world.write(np.arange(85, 125), 2)
    world.drain()
    books = world.host.ledger.pages
    by_export, by_destruction = world.firmware.history[old]
    assert books["destroyed_sync"] == LIMIT_PAGES
    assert by_export - exported == 20 + 1, "touched by the normal guest; shared, then imported for the new one"
    assert books["destroyed_on_fault"] == 40 - 5 - 1
    clean = books["destroyed_sync"] + books["destroyed_background"] + books["destroyed_on_fault"]
    assert clean + by_export - exported + by_destruction == owned


def test_the_walk_spares_everything_else_that_the_process_has(world):
    """Design: private, file and special pages are in the way of the walk; destroying them is a no-op."""
    others = [vma for vma in world.process.mm.vmas if vma not in world.vm.slots]
    frames = np.concatenate([vma.pte.frames() for vma in others])
    content = np.random.default_rng(1).integers(0, 255, (frames.size, 4096), dtype=np.uint8)
    world.machine.copy_pages(frames, content, write=True)
    references = [world.machine.frames.reference_count(int(frame)) for frame in frames]
    world.protect()
    world.write(world.all_pages(), 7)
    world.disable()
    world.drain()
    found = np.empty_like(content)
    world.machine.copy_pages(frames, found, write=False)
    assert np.array_equal(found, content)
    assert [world.machine.frames.reference_count(int(frame)) for frame in frames] == references


def test_users_and_references_of_the_address_space_are_as_before_once_the_cleaner_is_gone(world):
    """Invariants 9, 24, 25: one of each for the thread while it lives."""
    mm = world.process.mm
    users, count = mm.users, mm.count
    world.reboot_with_old_pages()
    assert (mm.users, mm.count, mm.protected.value) == (users + 1, count + 1, 1)
    world.drain()
    assert (mm.users, mm.count, mm.protected.value) == (users, count, 0)


def test_enable_twice_and_disable_without_are_refused(world):
    """Semantics 6.2, -EINVAL; nothing changes."""
    assert world.disable() == Result(kvm.EINVAL, 0, 0)
    handle = world.protect()
    assert world.run(kvm.enable(world.vm)) == Result(kvm.EINVAL, 0, 0)
    assert world.vm.kvm.pv.handle == handle


def test_memory_slots_have_to_be_ascending(world):
    """UsageError: the slots are in the message."""
    free = world.machine.frames.free()
    process = world.new_process()
    used = free - world.machine.frames.free()
    for slots in ([], [range(10, 20), range(5)], [range(10), range(5, 20)]):
        with pytest.raises(UsageError, match="memory slots"):
            world.host.create_vm(process, slots, 1)
    assert world.machine.frames.free() == free - used


# --- the freeze rule ---------------------------------------------------------------------------------------------


def test_an_import_waits_while_somebody_holds_the_page(world):
    """Invariant 5: a page that the walk has gathered is not imported before the walk has put it."""
    frame = _exported_page_of_a_protected_guest(world)
    world.machine.frames.get(frame)
    _import_waits_until(world, lambda: world.machine.frames.put(frame))


def test_an_import_waits_while_the_page_is_written_out(world):
    """Invariant 6, and -EAGAIN of semantics 2.5."""
    frame = _exported_page_of_a_protected_guest(world)
    world.machine.frames.set_writeback(frame, True)
    _import_waits_until(world, lambda: world.machine.frames.set_writeback(frame, False))


def _exported_page_of_a_protected_guest(world):
    world.protect()
    world.write(200, 1)
    frame = world.frames(200)
    world.run(world.host.pages.export_owned(frame))
    return frame


def _import_waits_until(world, end):
    """A guest that touches page 200 waits, without any call, until `end` was done."""
    frame = world.frames(200)

    async def main():
        imports = world.issued("CONV_TO_SEC_STOR")
        reader = await Spawn("vcpu0", lambda: access(world.vm, 0, PAGE, STORE_WORD, np.ones(1, np.uint64)))
        await Wait(lambda: reader.waiting is not None, "the import to wait", outside=True)
        assert world.issued("CONV_TO_SEC_STOR") == imports
        assert world.states(frame) == {NS: 1}
        assert world.machine.frames.byte[frame] & MARK_SECURE == 0
        end()
        await Wait(lambda: reader.done, "the import to end")

    world.run(main())
    assert world.states(frame) == {SEC: 1}
    world.check()


def test_a_gathered_page_that_is_unmapped_meanwhile_is_kept_alive_and_cleaned(world):
    """Semantics 4.5: the reference of the batch; the unmap hook exports, then destroy is a no-op."""
    world.reboot_with_old_pages()
    stepper, mm = Stepper(), world.vm.mm
    walk = stepper.start(destroy_range(world.host.pages, mm, 1, world.vm.base + 100, mm.end, BATCH, "walk"))
    walk.until(named("destroy pages"))
    frame = world.frames(100)
    stepper.run(unmap_range(world.host, mm, world.vm.slots[0], 100, 101))
    assert world.states(frame) == {NS: 1}
    assert not world.is_free(frame).any()
    walk.finish()
    assert world.is_free(frame).all()
    world.check()

"""Defects of the series as posted, D1 to D12: the order of semantics 5 shows each, and is clean once it is repaired."""

from __future__ import annotations

import numpy as np
import pytest

from lazypv.errors import ModelError
from lazypv.host import kvm
from lazypv.host.faults import ProcessKilledError
from lazypv.host.kvm import EIO, Result
from lazypv.host.teardown import DESTROY_THREAD
from lazypv_kernels.layout import SEC

from .stepping import Stepper, named
from .worlds import GUEST_PAGES, LIMIT_PAGES, ZERO_PAGE, posted

OLD_PAGE = LIMIT_PAGES + 100
"""A guest page that a lazy reboot leaves to the old configuration."""


# --- D1 ----------------------------------------------------------------------------------------------------------


def test_d1_with_lazy_destroy_0_a_reset_destroys_twice_and_reports_the_second(make_world):
    """Invariant 38: the second time with handle 0; a table is replaced and lost; rc 1, rrc 42, not the real answer."""
    world = make_world(posted("D1"), lazy_destroy=False)
    world.full_guest()
    table = world.vm.gmap.table
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    assert world.issued("DESTROY_SEC_CONF") == 2
    assert 38 in world.broken()
    assert world.vm.gmap.table is not table
    assert not world.is_free(table.frames).any()


def test_d1_with_lazy_destroy_0_a_shutdown_destroys_twice(make_world):
    """Invariant 38: nothing was set aside, so the immediate destroy runs again, and its failure is what is reported."""
    world = make_world(posted("D1"), lazy_destroy=False)
    world.full_guest()
    world.exit()
    assert world.issued("DESTROY_SEC_CONF") == 2
    assert world.vm.closed_result.errno == EIO
    assert world.process.mm.to_drain == 0
    assert 38 in world.broken()


def test_d1_a_guest_that_is_too_small_to_be_put_off_is_destroyed_once(make_world):
    """The return is missing behind the parameter only."""
    world = make_world(posted("D1"), guest_pages=LIMIT_PAGES)
    world.full_guest()
    assert world.disable() == Result(0, 1, 0)
    assert world.issued("DESTROY_SEC_CONF") == 1
    world.end_clean()


def test_d1_repaired_one_destroy_and_its_result(make_world):
    """Invariant 38."""
    world = make_world(lazy_destroy=False)
    world.full_guest()
    table = world.vm.gmap.table
    assert world.disable() == Result(0, 1, 0)
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.vm.gmap.table is table
    world.end_clean()


# --- D2, D3 ------------------------------------------------------------------------------------------------------


def _reset_then_exit_then_the_thread(world):
    """The VM's file is closed while the thread is a user of the address space."""
    world.full_guest()
    stepper = Stepper()
    stepper.run(kvm.disable(world.vm))
    stepper.run(world.process.exit())
    assert not world.process.mm.freed
    stepper.threads[0].finish()


def test_d2_the_thread_uses_an_address_space_after_its_last_reference(make_world):
    """Invariant 24: without patch 09, whose reference the thread of patch 08 does not have."""
    world = make_world(posted("D2", without=("09",)))
    with pytest.raises(ModelError, match="invariant 24"):
        _reset_then_exit_then_the_thread(world)
    assert world.process.mm.freed
    assert world.process.mm.protected.value == 1, "nobody could write it any more"


def test_d2_repaired_the_thread_holds_the_address_space(make_world):
    """Invariant 24: with patch 08 alone too."""
    world = make_world(posted(without=("09",)))
    _reset_then_exit_then_the_thread(world)
    world.check_all_gone()


def test_d2_does_not_show_with_patch_09_which_brings_the_reference(make_world):
    """Semantics 4.8, 4.9: the series as a whole has another defect there, D3."""
    world = make_world(posted("D2"))
    _reset_then_exit_then_the_thread(world)
    world.check_all_gone()


def test_d2_does_not_show_while_the_vm_is_open(make_world):
    """Semantics 5: it takes that the VM's file is closed before."""
    world = make_world(posted("D2", without=("09",)))
    world.full_guest()
    world.disable()
    world.drain()
    world.end_clean()


def _shutdown_then_the_thread(world):
    world.full_guest()
    stepper = Stepper()
    stepper.run(world.process.exit())
    stepper.threads[0].finish()


def test_d3_the_counter_of_an_address_space_that_is_gone_is_written(make_world):
    """Invariant 24: certain at a shutdown, where nobody else holds it."""
    world = make_world(posted("D3"))
    with pytest.raises(ModelError, match="invariant 24"):
        _shutdown_then_the_thread(world)
    assert world.process.mm.freed


def test_d3_repaired_the_reference_goes_last(world):
    """Invariant 24."""
    _shutdown_then_the_thread(world)
    world.check_all_gone()


# --- D4, D5 ------------------------------------------------------------------------------------------------------


def _reset_without_a_thread_then_exit(world):
    world.full_guest()
    world.fail(DESTROY_THREAD, None)
    assert world.disable() == Result(0, 1, 0)
    world.repair()
    world.exit()
    world.drain()


def test_d4_an_address_space_whose_hand_over_failed_is_never_torn_down(make_world):
    """Invariant 25: nobody drops what was taken, and all guest memory stays with a process that is gone."""
    world = make_world(posted("D4"))
    _reset_without_a_thread_then_exit(world)
    mm = world.process.mm
    assert (mm.users, mm.count, mm.torn_down) == (1, 2, False)
    assert mm.mapped(world.vm.slots[0]) == GUEST_PAGES
    assert world.broken() == [25]


def test_d4_at_a_shutdown_the_structure_is_kept_for_ever(make_world):
    """Invariant 25: there the reference on the mappings does not exist, the one on the structure does."""
    world = make_world(posted("D4"))
    world.full_guest()
    world.fail(DESTROY_THREAD, None)
    world.exit()
    assert (world.process.mm.users, world.process.mm.count) == (0, 1)
    assert world.broken() == [25]


def test_d5_the_old_table_is_lost_although_its_configuration_was_destroyed(make_world):
    """Invariants 17, 25: frames with a reference that nobody accounts for."""
    world = make_world(posted("D5"))
    world.full_guest()
    old = world.vm.gmap.table
    world.fail(DESTROY_THREAD, None)
    assert world.disable() == Result(0, 1, 0)
    world.repair()
    assert world.firmware.configurations == {}
    assert old not in world.vm.gmap.crst_list
    world.exit()
    world.drain()
    assert not world.is_free(old.frames).any()
    assert world.machine.frames.free() == world.free_at_start - old.frames.size
    assert world.broken() == [25]


def test_d4_d5_repaired_a_hand_over_that_fails_leaves_nothing_behind(world):
    """Invariants 17, 25."""
    _reset_without_a_thread_then_exit(world)
    world.end_clean()


# --- D9, D10 -----------------------------------------------------------------------------------------------------


def test_d9_the_new_top_table_does_not_begin_at_guest_address_0(make_world):
    """Invariant 18: whoever computes a guest address from it gets another one."""
    world = make_world(posted("D9"))
    world.full_guest()
    world.disable()
    world.drain()
    assert world.vm.gmap.table.index != 0
    assert world.broken() == [18]


def test_d9_repaired_the_new_top_table_begins_at_guest_address_0(world):
    """Invariant 18."""
    world.full_guest()
    table = world.vm.gmap.table
    world.disable()
    world.drain()
    assert world.vm.gmap.table is not table
    assert world.vm.gmap.table.index == 0
    world.end_clean()


def _small_guest_reboots(world):
    world.full_guest()
    result = world.disable()
    world.drain()
    return result


def test_d10_the_segment_table_of_a_small_guest_is_freed_while_others_point_into_it(make_world):
    """Invariant 19: the entries that point into it are followed when the process's page tables go."""
    world = make_world(posted("D10"), guest_pages=LIMIT_PAGES)
    table = world.vm.gmap.table
    assert _small_guest_reboots(world) == Result(0, 1, 42)
    assert world.vm.gmap.table is not table
    assert world.is_free(table.frames).all()
    world.exit()
    assert world.broken() == [19]
    assert "was freed" in world.host.ledger.broken[0][1]


def test_d10_the_segment_table_is_not_in_use_any_more_even_if_it_is_not_free_yet(make_world):
    """Invariant 19: the process exits before the thread is through."""
    world = make_world(posted("D10"), guest_pages=LIMIT_PAGES)
    world.full_guest()
    stepper = Stepper()
    stepper.run(kvm.disable(world.vm))
    (thread,) = stepper.threads
    thread.until(named("DESTROY_SEC_CONF"))
    stepper.run(world.process.exit())
    thread.finish()
    assert [number for number, _ in world.host.ledger.broken] == [19]
    assert "not the guest's" in world.host.ledger.broken[0][1]


def test_d10_does_not_show_when_the_vm_is_closed_before_the_process_exits(make_world):
    """The map goes with the gmap, and with it what points nowhere."""
    world = make_world(posted("D10"), guest_pages=LIMIT_PAGES)
    _small_guest_reboots(world)
    world.run(kvm.close_vm(world.vm))
    world.end_clean()


def test_d10_repaired_a_small_guest_keeps_its_table_and_is_destroyed_at_once(make_world):
    """Invariant 19."""
    world = make_world(guest_pages=LIMIT_PAGES)
    table = world.vm.gmap.table
    assert _small_guest_reboots(world) == Result(0, 1, 0)
    assert world.vm.gmap.table is table
    world.end_clean()


# --- D11, D12 ----------------------------------------------------------------------------------------------------


def _old_page_whose_slot_is_gone(world):
    """A lazy reboot, then the slot with an old page is removed before anybody has come by."""
    world.reboot_with_old_pages()
    world.remove_slot(OLD_PAGE, OLD_PAGE + 1)


def test_d11_a_guest_that_touches_an_address_without_translation_goes_round_for_ever(make_world):
    """Invariant 35: the handler returns, the instruction is repeated, 0x3d again."""
    world = make_world(posted("D11"))
    _old_page_whose_slot_is_gone(world)
    with pytest.raises(ProcessKilledError, match="0x3d") as killed:
        world.read(OLD_PAGE)
    assert killed.value.signal == "endless loop"
    assert [number for number, _ in world.host.ledger.broken] == [35]


def test_d11_others_in_the_same_round_are_helped(make_world):
    """Each page is an exception of its own."""
    world = make_world(posted("D11"))
    _old_page_whose_slot_is_gone(world)
    with pytest.raises(ProcessKilledError, match="endless"):
        world.write([OLD_PAGE - 1, OLD_PAGE, OLD_PAGE + 1], 9)
    assert world.states(world.frames([OLD_PAGE - 1, OLD_PAGE, OLD_PAGE + 1]))[SEC] == 1


def test_d11_repaired_an_address_without_translation_is_a_bad_mapping(world):
    """Invariant 35."""
    _old_page_whose_slot_is_gone(world)
    with pytest.raises(ProcessKilledError, match=r"0x3d.*no translation") as killed:
        world.read(OLD_PAGE)
    assert killed.value.signal == "SIGSEGV"
    assert world.host.ledger.broken == []


def test_d12_a_page_outside_every_mapping_is_handled_with_the_next_mapping(make_world):
    """Patch 03: the page is destroyed for a guest that has no memory there."""
    world = make_world(posted("D12"))
    _old_page_whose_slot_is_gone(world)
    world.protect()
    before = world.host.ledger.pages["destroyed_on_fault"]
    assert world.read(OLD_PAGE) == ZERO_PAGE
    assert world.host.ledger.pages["destroyed_on_fault"] - before == 1


def test_d12_an_address_above_every_mapping_is_refused(make_world):
    """find_vma finds nothing there."""
    world = make_world(posted("D12"))
    _old_page_whose_slot_is_gone(world)
    world.protect()
    assert world.vm.has_mapping(world.all_pages()).all()
    assert not world.vm.has_mapping(np.array([GUEST_PAGES])).any()


def test_d12_repaired_a_page_outside_every_mapping_is_refused(world):
    """Patch 03: -EFAULT, SIGSEGV; the page stays what it was."""
    _old_page_whose_slot_is_gone(world)
    frame = world.frames(OLD_PAGE)
    world.protect()
    with pytest.raises(ProcessKilledError, match=r"0x3f.*no mapping") as killed:
        world.read(OLD_PAGE)
    assert killed.value.signal == "SIGSEGV"
    assert world.states(frame) == {SEC: 1}

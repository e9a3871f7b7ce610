"""Each defect of the series as posted: the order of semantics 5 shows it, and is clean once it is repaired."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from lazypv.clocks.live import Fault
from lazypv.errors import ModelError, UsageError
from lazypv.explain import lookup
from lazypv.host import kvm
from lazypv.host.exit import drain_set_aside, exit_mmap
from lazypv.host.faults import ProcessKilledError
from lazypv.host.kvm import EIO, Result
from lazypv.host.loose_ends import loose_ends
from lazypv.host.teardown import DESTROY_THREAD
from lazypv.invariants import check_frames, check_structures
from lazypv.series import DEFECTS, NOT_SWITCHED, PATCHES, PRESETS, Series, defect
from lazypv_kernels.layout import SEC

from .stepping import Stepper, acquires, named
from .worlds import GUEST_PAGES, LIMIT_PAGES, REFUSED, ZERO_PAGE

OLD_PAGE = LIMIT_PAGES + 100
"""A guest page that a lazy reboot leaves to the old configuration."""


def posted(*numbers, without=()):
    return Series().without(*without).with_defects(*numbers)


def broken(world):
    """Numbers of the invariants that do not hold now that nothing runs."""
    host = world.host
    found = [*loose_ends(host), *check_frames(host), *check_structures(host, drained=True)]
    return sorted({number for number, _ in found})


def full_guest(world):
    handle = world.protect()
    world.write(world.all_pages(), 7)
    return handle


def clean(world):
    """Everything ends, and nothing is left."""
    world.exit()
    world.drain()
    assert broken(world) == []
    world.check_all_gone()


# --- D1 ----------------------------------------------------------------------------------------------------------


def test_d1_with_lazy_destroy_0_a_reset_destroys_twice_and_reports_the_second(make_world):
    """Invariant 38: the second time with handle 0; a table is replaced and lost; rc 1 and rrc 42 for the real answer."""
    world = make_world(posted("D1"), lazy_destroy=False)
    full_guest(world)
    table = world.vm.gmap.table
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    assert world.issued("DESTROY_SEC_CONF") == 2
    assert 38 in broken(world)
    assert world.vm.gmap.table is not table
    assert not world.is_free(table.frames).any()


def test_d1_with_lazy_destroy_0_a_shutdown_destroys_twice(make_world):
    """Invariant 38: nothing was set aside, so the immediate destroy runs again, and its failure is what is reported."""
    world = make_world(posted("D1"), lazy_destroy=False)
    full_guest(world)
    world.exit()
    assert world.issued("DESTROY_SEC_CONF") == 2
    assert world.vm.closed_result.errno == EIO
    assert 38 in broken(world)


def test_d1_repaired_one_destroy_and_its_result(make_world):
    """Invariant 38."""
    world = make_world(lazy_destroy=False)
    full_guest(world)
    table = world.vm.gmap.table
    assert world.disable() == Result(0, 1, 0)
    assert world.issued("DESTROY_SEC_CONF") == 1
    assert world.vm.gmap.table is table
    clean(world)


# --- D2, D3 ------------------------------------------------------------------------------------------------------


def _reset_then_exit_then_the_thread(world):
    """The VM's file is closed while the thread is a user of the address space."""
    full_guest(world)
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


def test_d2_does_not_show_while_the_vm_is_open(make_world):
    """Semantics 5: it takes that the VM's file is closed before."""
    world = make_world(posted("D2", without=("09",)))
    full_guest(world)
    world.disable()
    world.drain()
    clean(world)


def _shutdown_then_the_thread(world):
    full_guest(world)
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
    full_guest(world)
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
    assert broken(world) == [25]


def test_d4_at_a_shutdown_the_structure_is_kept_for_ever(make_world):
    """Invariant 25: there the reference on the mappings does not exist, the one on the structure does."""
    world = make_world(posted("D4"))
    full_guest(world)
    world.fail(DESTROY_THREAD, None)
    world.exit()
    assert (world.process.mm.users, world.process.mm.count) == (0, 1)
    assert broken(world) == [25]


def test_d5_the_old_table_is_lost_although_its_configuration_was_destroyed(make_world):
    """Invariants 17, 25: frames with a reference that nobody accounts for."""
    world = make_world(posted("D5"))
    full_guest(world)
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
    assert broken(world) == [25]


def test_d4_d5_repaired_a_hand_over_that_fails_leaves_nothing_behind(world):
    """Invariants 17, 25."""
    _reset_without_a_thread_then_exit(world)
    clean(world)


# --- D9, D10 -----------------------------------------------------------------------------------------------------


def test_d9_the_new_top_table_does_not_begin_at_guest_address_0(make_world):
    """Invariant 18: whoever computes a guest address from it gets another one."""
    world = make_world(posted("D9"))
    full_guest(world)
    world.disable()
    world.drain()
    assert world.vm.gmap.table.index != 0
    assert world.vm.gmap.address_notified(3) != 3
    assert broken(world) == [18]


def test_d9_repaired_the_new_top_table_begins_at_guest_address_0(world):
    """Invariant 18."""
    full_guest(world)
    table = world.vm.gmap.table
    world.disable()
    world.drain()
    assert world.vm.gmap.table is not table
    assert world.vm.gmap.address_notified(3) == 3
    clean(world)


def _small_guest_reboots(world):
    full_guest(world)
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
    assert broken(world) == [19]
    assert "was freed" in world.host.ledger.broken[0][1]


def test_d10_the_segment_table_is_not_in_use_any_more_even_if_it_is_not_free_yet(make_world):
    """Invariant 19: the process exits before the thread is through."""
    world = make_world(posted("D10"), guest_pages=LIMIT_PAGES)
    full_guest(world)
    stepper = Stepper()
    stepper.run(kvm.disable(world.vm))
    (thread,) = stepper.threads
    thread.until(named("DESTROY_SEC_CONF"))
    stepper.run(world.process.exit())
    thread.finish()
    assert [number for number, _ in world.host.ledger.broken] == [19]
    assert "not the guest's" in world.host.ledger.broken[0][1]


def test_d10_repaired_a_small_guest_keeps_its_table_and_is_destroyed_at_once(make_world):
    """Invariant 19."""
    world = make_world(guest_pages=LIMIT_PAGES)
    table = world.vm.gmap.table
    assert _small_guest_reboots(world) == Result(0, 1, 0)
    assert world.vm.gmap.table is table
    clean(world)


# --- D11, D12 ----------------------------------------------------------------------------------------------------


def _old_page_whose_slot_is_gone(world):
    """A lazy reboot, then the slot with an old page is removed before anybody has come by."""
    world.reboot_with_old_pages()
    world.vm.remove_slots(OLD_PAGE, OLD_PAGE + 1)


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


# --- D15 ---------------------------------------------------------------------------------------------------------


def _disable_twice_since_a_cpu_fails(world):
    """The first CPU is destroyed, the second is not; userspace tries again."""
    full_guest(world)
    world.fail("DESTROY_SEC_CPU", REFUSED, after=1)
    assert world.disable().errno == EIO
    world.repair()
    return world.disable()


def test_d15_a_cpu_that_is_destroyed_again_frees_its_data_area_again(make_world):
    """Invariant 15: a reference that nobody holds is dropped."""
    world = make_world(posted("D15"))
    with pytest.raises(ModelError, match="dropped twice"):
        _disable_twice_since_a_cpu_fails(world)


def test_d15_somebody_else_loses_a_page(make_world):
    """Invariants 15, 25: the area has a new owner meanwhile, whose reference is dropped."""
    world = make_world(posted("D15"))
    full_guest(world)
    sidas = [vcpu.sida for vcpu in world.vm.kvm.vcpus]
    world.fail("DESTROY_SEC_CPU", REFUSED, after=1)
    world.disable()
    world.repair()
    theirs = world.machine.frames.allocate(world.machine.frames.free())
    assert np.isin(np.concatenate(sidas), theirs).all()
    assert world.disable().errno == EIO
    assert world.is_free(np.concatenate(sidas)).all()


def test_d15_does_not_show_where_each_cpu_is_destroyed_once(make_world):
    """Closing a VM asks for the handle first, as posted too."""
    world = make_world(posted("D15"))
    full_guest(world)
    world.disable()
    world.protect()
    clean(world)


def test_d15_repaired_a_second_try_frees_nothing(world):
    """Invariant 15."""
    assert _disable_twice_since_a_cpu_fails(world) == Result(EIO, REFUSED.rc, REFUSED.rrc)
    assert broken(world) == []


# --- D17 ---------------------------------------------------------------------------------------------------------


def _process_leaves_between_the_look_and_the_put(world):
    """The cleaner has seen two users, then the process exits, then the cleaner drops its own."""
    world.reboot_with_old_pages()
    world.protect()
    world.write(world.all_pages(), 8)
    world.drain()
    stepper = Stepper()
    stepper.run(kvm.disable(world.vm))
    (thread,) = stepper.threads
    mm = world.process.mm

    def about_to_leave(step):
        writes_users = step.label == "mm_users" and step.write
        return writes_users or (acquires("mmap_lock")(step) and not step.shared)

    thread.until(about_to_leave)
    assert mm.users > 1
    stepper.run(world.process.exit())
    assert mm.users == 1
    thread.finish()
    return mm


def test_d17_pages_go_onto_a_list_that_nobody_will_read(make_world):
    """Invariant 27: mm_users was 2 when it was looked at, and the put is the last all the same."""
    world = make_world(posted("D17"))
    mm = _process_leaves_between_the_look_and_the_put(world)
    assert (mm.pv_sync_destroy, mm.torn_down) == (False, True)
    assert mm.set_aside.pages > GUEST_PAGES // 2
    assert broken(world) == [27]
    assert world.machine.frames.free() < world.free_at_start - GUEST_PAGES // 2


def test_d17_a_cleaner_that_sees_itself_alone_asks_for_exports(make_world):
    """Semantics 4.9, thread order, 2: what was meant to happen."""
    world = make_world(posted("D17"))
    world.reboot_with_old_pages()
    world.exit()
    world.drain()
    assert world.process.mm.pv_sync_destroy
    world.check_all_gone()


def test_d17_repaired_the_last_user_knows_that_it_is(world):
    """Invariant 27."""
    mm = _process_leaves_between_the_look_and_the_put(world)
    assert mm.pv_sync_destroy
    assert broken(world) == []
    world.check_all_gone()


# --- D18 ---------------------------------------------------------------------------------------------------------


def _shutdown_without_a_record(world):
    full_guest(world)
    world.fail("record", None)
    world.exit()
    assert world.vm.closed_result == Result(0, 1, 0)
    assert world.firmware.configurations == {}


def test_d18_set_aside_pages_are_lost_when_there_is_no_memory_for_the_record(make_world):
    """Invariant 27: the immediate path cleans them through their configuration, and nobody frees them."""
    world = make_world(posted("D18"))
    _shutdown_without_a_record(world)
    aside = world.process.mm.set_aside.pages
    assert aside > GUEST_PAGES // 2
    assert world.machine.frames.free() < world.free_at_start - GUEST_PAGES // 2
    assert broken(world) == [27]


def test_d18_repaired_the_immediate_path_works_the_list_off(world):
    """Invariant 27."""
    _shutdown_without_a_record(world)
    assert broken(world) == []
    world.check_all_gone()


# --- D19, D20 ----------------------------------------------------------------------------------------------------


def _two_vms(world):
    second = world.new_vm(process=world.process)
    for vm in (world.vm, second):
        world.protect(vm)
        world.write(world.all_pages(vm), 7, vm)
    return second


def _first_cleaner_while_the_second_vm_has_cpus(world):
    """The process exits; the thread of the first VM ends before the second VM's CPUs are destroyed; stepper, exit."""
    second = _two_vms(world)
    stepper = Stepper()
    exiting = stepper.start(world.process.exit())
    exiting.until(lambda step: step.label == "DESTROY_SEC_CPU" and step.what is second.kvm.vcpus[0])
    stepper.threads[0].finish()
    return stepper, exiting


def test_d19_pages_of_a_vm_that_has_cpus_are_freed_secure_by_the_cleaner_of_another(make_world):
    """Invariant 1: refused, and dropped all the same."""
    world = make_world(posted("D19"))
    _first_cleaner_while_the_second_vm_has_cpus(world)
    assert world.process.mm.set_aside.pages == 0
    assert 1 in {number for number, _ in check_frames(world.host)}


def _two_cleaners_at_the_same_node(world):
    """Both look at the first node before one of them has taken it off."""
    _two_vms(world)
    stepper = Stepper()
    stepper.run(world.process.exit())
    first, second = stepper.threads
    for thread in (first, second):
        thread.until(named("deferred_list"))
        thread.step()
    for thread in (first, second):
        thread.finish()


def test_d19_two_cleaners_take_the_same_node_off_the_list(make_world):
    """Invariant 26: each of its pages is put twice."""
    world = make_world(posted("D19"))
    with pytest.raises(ModelError, match="dropped twice"):
        _two_cleaners_at_the_same_node(world)
    assert [number for number, _ in world.host.ledger.broken] == [26]


def test_d19_repaired_a_refused_page_goes_back_and_the_list_has_a_lock(world):
    """Invariants 1, 26."""
    stepper, exiting = _first_cleaner_while_the_second_vm_has_cpus(world)
    assert world.process.mm.set_aside.pages > 0
    assert check_frames(world.host)[:0] == []
    world.check()
    exiting.finish()
    stepper.threads[1].finish()
    world.check_all_gone()


def test_d19_repaired_two_cleaners_that_begin_together_share_the_list(world):
    """Invariant 26: who comes second finds it empty."""
    _two_vms(world)
    stepper = Stepper()
    stepper.run(world.process.exit())
    first, second = stepper.threads
    first.until(acquires("deferred_list"))
    second.until(acquires("deferred_list"))
    first.step()
    with pytest.raises(AssertionError, match="is held"):
        second.step()


def _drain_while_the_cpus_live(world):
    """The last drain meets pages whose owner has CPUs; how many there were."""
    handle = full_guest(world)
    mm = world.process.mm
    stepper = Stepper()
    mm.users = 0
    stepper.run(exit_mmap(world.host, mm))
    aside = world.owned(handle)
    stepper.run(drain_set_aside(world.host.pages, mm, "destroyed_background"))
    return aside


def test_d20_a_page_that_was_refused_goes_to_the_allocator_secure(make_world):
    """Invariant 1: the dropped reference was the last."""
    world = make_world(posted("D20"))
    aside = _drain_while_the_cpus_live(world)
    assert aside.size > GUEST_PAGES // 2
    assert world.is_free(aside).all()
    assert world.states(aside) == {SEC: aside.size}
    assert 1 in {number for number, _ in check_frames(world.host)}


def test_d20_repaired_a_page_that_was_refused_is_exported_before_it_is_free(world):
    """Invariant 1."""
    aside = _drain_while_the_cpus_live(world)
    assert world.is_free(aside).all()
    assert world.states(aside)[SEC] == 0
    world.check()


# --- D22, D27 ----------------------------------------------------------------------------------------------------


def _destroy_fails_in_the_thread(world):
    handle = full_guest(world)
    world.fail("DESTROY_SEC_CONF")
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    world.repair()
    return handle


def test_d22_a_configuration_that_could_not_be_destroyed_is_in_no_books(make_world):
    """Invariant 34: neither destroyed nor leaked as far as anybody can tell; its storage has references of nobody."""
    world = make_world(posted("D22"))
    handle = _destroy_fails_in_the_thread(world)
    assert world.host.leaked == {}
    assert world.host.ledger.leaked_frames == 0
    assert handle in world.firmware.configurations
    assert {25, 34} <= set(broken(world))


def test_d27_the_record_stays_behind(make_world):
    """Invariant 34: what nobody needs any more is not given back."""
    world = make_world(posted("D27"))
    handle = _destroy_fails_in_the_thread(world)
    assert [record.handle for record in world.host.records] == [handle]
    assert world.host.threads == 0
    assert broken(world) == [34]


def test_d27_does_not_show_when_the_destroy_succeeds(make_world):
    """Semantics 5: on the error return only."""
    world = make_world(posted("D27"))
    full_guest(world)
    world.disable()
    world.drain()
    assert world.host.records == []
    clean(world)


def test_d22_d27_repaired_answer_and_storage_are_in_the_books_and_the_record_is_gone(world):
    """Invariants 32, 34."""
    handle = _destroy_fails_in_the_thread(world)
    assert world.host.leaked[handle][2] == REFUSED
    assert world.host.records == []
    assert broken(world) == []


# --- all at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy_destroy", [True, False])
def test_as_posted_a_guest_reboots_and_runs(make_world, lazy_destroy):
    """Nothing of what is wrong keeps the plain case from working: two runs, and what the second reads is zero."""
    world = make_world(Series.posted(), lazy_destroy=lazy_destroy)
    full_guest(world)
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    world.protect()
    assert world.read(OLD_PAGE) == ZERO_PAGE
    assert broken(world) == ([18] if lazy_destroy else [18, 25, 38])


# --- the switchboard ---------------------------------------------------------------------------------------------


def test_every_defect_is_a_switch_that_names_its_place_and_is_explained_there():
    """Design, the switchboard."""
    for each in DEFECTS:
        module, _, name = each.place.partition(":")
        place = importlib.import_module(module)
        for part in name.split("."):
            place = getattr(place, part)
        assert getattr(Series(), each.switch) is False
        assert getattr(posted(each.number), each.switch) is True
        entry = lookup(each.number)
        assert (entry.title, entry.place) == (each.title, each.place)


def test_every_known_defect_is_a_switch_or_has_a_reason_not_to_be():
    """Semantics 5: D1 to D31."""
    known = {f"D{number}" for number in range(1, 32)} | {"D11b"}
    switched = {each.number for each in DEFECTS}
    assert switched | set(NOT_SWITCHED) == known
    assert switched & set(NOT_SWITCHED) == set()
    assert all("\n" not in reason for reason in NOT_SWITCHED.values())


def test_presets():
    """posted is version 1 as mailed, repaired what is in force unless said otherwise."""
    assert Series.repaired() == Series() == PRESETS["repaired"]
    assert Series.posted() == PRESETS["posted"] == posted(*(each.number for each in DEFECTS))
    assert all(getattr(Series.posted(), each.switch) for each in (*PATCHES, *DEFECTS))


def test_a_defect_that_does_not_exist_is_refused_with_those_that_do():
    """Series.with_defects."""
    with pytest.raises(UsageError, match=r"'D99'.*D1, D2, .*D27"):
        posted("D99")


@pytest.mark.parametrize("number", NOT_SWITCHED)
def test_a_defect_that_is_no_switch_is_refused_with_the_reason(number):
    """Series.with_defects."""
    with pytest.raises(UsageError) as refused:
        posted(number)
    assert NOT_SWITCHED[number] in str(refused.value)


@pytest.mark.parametrize(("number", "patch"), [(each.number, patch) for each in DEFECTS for patch in each.needs])
def test_a_defect_without_the_patch_that_brought_it_is_refused(number, patch):
    """In whatever order they are named."""
    for make in (
        lambda: Series().without(patch).with_defects(number),
        lambda: Series().with_defects(number).without(patch),
    ):
        with pytest.raises(UsageError, match=rf"{number} .*patch {patch}"):
            make()


def test_a_defect_has_a_number_and_patches():
    assert defect("D17").needs == ("08", "09")
    assert defect("D1").needs == ("08", "10")
